#!/usr/bin/env bash
# On a CPU, PyTorch takes rows of a uint8 tensor by index_select many times faster than by indexing
# with the same numbers: the one copies rows, the other single entries.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.15.0 numpy==2.4.6
cd "$folder"
OMP_NUM_THREADS=1 "$folder/venv/bin/python" - <<'PYTHON'
import time

import torch

print("torch", torch.__version__)
images = torch.randint(0, 256, (50_000, 3, 32, 32), dtype=torch.uint8)
chosen = torch.randperm(len(images))[:128]
ways = {"index": lambda: images[chosen], "index_select": lambda: images.index_select(0, chosen)}
assert torch.equal(*(way() for way in ways.values()))
best = dict.fromkeys(ways, float("inf"))
for _ in range(200):
    for name, way in ways.items():
        start = time.perf_counter()
        way()
        best[name] = min(best[name], time.perf_counter() - start)
ratio = best["index"] / best["index_select"]
print(f"seen: 128 of 50,000 images by indexing take {ratio:.1f} times as long as by index_select")
assert ratio > 3, "changed"
PYTHON
