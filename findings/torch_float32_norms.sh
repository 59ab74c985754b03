#!/usr/bin/env bash
# On a CPU, PyTorch's float32 norm of tens of millions of entries is too small: entries are added to
# sums that have become too large for them. At a million entries the error is 1e-5.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.15.0 numpy==2.4.6
cd "$folder"
OMP_NUM_THREADS=1 "$folder/venv/bin/python" - <<'PYTHON'
import torch

print("torch", torch.__version__)
torch.manual_seed(0)
errors = {}
for count in (1_000_000, 40_000_000):
    x = torch.randn(count)
    errors[count] = (x.norm() / x.double().norm() - 1).item()
    print(f"seen: relative error of the float32 norm of {count:,} entries: {errors[count]:.1e}")
assert abs(errors[1_000_000]) < 1e-4 and errors[40_000_000] < -1e-3, "changed"
PYTHON
