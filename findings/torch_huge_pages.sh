#!/usr/bin/env bash
# Where Linux gives huge pages to programs that ask for them, as on Debian and Ubuntu, NumPy asks for
# them for its large arrays, and PyTorch does not: the same steps of SGD are slower on PyTorch's own
# tensors than on tensors that share the memory of NumPy's arrays.
set -euo pipefail
grep -q '\[madvise\]' /sys/kernel/mm/transparent_hugepage/enabled ||
    { echo "needs Linux with transparent huge pages in the mode madvise"; exit 2; }
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.15.0 numpy==2.4.6
cd "$folder"
cat > steps.py <<'PYTHON'
import sys
import time

import numpy as np
import torch

ENTRIES, maker = 1 << 24, sys.argv[1]
makers = {
    "torch": lambda: torch.zeros(ENTRIES),
    "numpy": lambda: torch.from_numpy(np.full(ENTRIES, 0, np.float32)),
}
theta, gradient = makers[maker](), makers[maker]()
parameter = torch.nn.Parameter(theta)
parameter.grad = gradient
optimizer = torch.optim.SGD([parameter], lr=0.1, momentum=0.9, fused=True)
optimizer.step()
optimizer.state[parameter]["momentum_buffer"] = makers[maker]()
seconds = []
for _ in range(50):
    start = time.perf_counter()
    optimizer.step()
    seconds.append(time.perf_counter() - start)
with open("/proc/self/smaps_rollup") as file:
    (huge,) = (int(line.split()[1]) for line in file if line.startswith("AnonHugePages:"))
print(f"{huge // 1024} {1000 * sorted(seconds)[25]:.2f}")
PYTHON
python="$folder/venv/bin/python"
"$python" -c 'import torch, numpy; print("torch", torch.__version__, "numpy", numpy.__version__)'
read -r own own_ms < <("$python" steps.py torch)
read -r numpy numpy_ms < <("$python" steps.py numpy)
read -r asked asked_ms < <(THP_MEM_ALLOC_ENABLE=1 "$python" steps.py torch)
echo "seen: three float32 tensors of 64 MiB each, and a step of fused SGD on them:"
echo "  made by PyTorch: $own MiB in huge pages, $own_ms ms a step"
echo "  made by NumPy: $numpy MiB in huge pages, $numpy_ms ms a step"
echo "  made by PyTorch with THP_MEM_ALLOC_ENABLE=1: $asked MiB in huge pages, $asked_ms ms a step"
[ "$own" -lt 64 ] && [ "$numpy" -gt 128 ] && [ "$asked" -gt 128 ] || { echo changed; exit 1; }
