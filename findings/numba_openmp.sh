#!/usr/bin/env bash
# Numba's OpenMP layer is linked with the system's libgomp; PyTorch's wheel brings one of its own. A
# process that uses both has two pools of threads, whose idle workers wait in loops on the same cores.
# Needs Linux with libgomp.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.15.0 numba==0.68.1 numpy==2.4.6
cd "$folder"
cat > pools.py <<'PYTHON'
import numba
import numpy as np
import torch


def libraries():
    with open("/proc/self/maps") as maps:
        return sorted({line.split()[-1].rsplit("/")[-1] for line in maps if "libgomp" in line})


@numba.njit(parallel=True)
def double(x):
    for i in numba.prange(x.size):
        x[i] *= 2


print("torch", torch.__version__, "numba", numba.__version__)
torch.randn(512, 512) @ torch.randn(512, 512)
before = libraries()
double(np.ones(1 << 20))
print("seen:", before, "with PyTorch alone,", libraries(), "with Numba's loop, threads:", numba.threading_layer())
assert numba.threading_layer() == "omp" and len(before) == 1 and len(libraries()) == 2, "changed"
PYTHON
NUMBA_THREADING_LAYER=omp "$folder/venv/bin/python" pools.py
