#!/usr/bin/env bash
# The first call of a method of torch.optim.Optimizer, and so making any optimizer, imports PyTorch's
# compiler, which takes a second or more of a program that compiles nothing.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.15.0 numpy==2.4.6
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import sys
import time

import torch

print("torch", torch.__version__)
p = torch.nn.Parameter(torch.zeros(10))
assert "torch._dynamo" not in sys.modules, "changed: importing torch imports it"
before = len(sys.modules)
start = time.process_time()
torch.optim.SGD([p], lr=0.1)
seconds = time.process_time() - start
print(f"seen: torch.optim.SGD(...) imported {len(sys.modules) - before} modules in {seconds:.1f} s")
assert "torch._dynamo" in sys.modules, "changed"
PYTHON
