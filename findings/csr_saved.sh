#!/usr/bin/env bash
# The column indices of to_sparse_csr() are a view of a larger tensor of coordinates, and torch.save
# writes the whole of that: 8 bytes more for each entry.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.15.0 numpy==2.4.6
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import io

import torch

torch.manual_seed(0)
dense = torch.randn(512, 4608)
dense[torch.rand_like(dense) < 0.95] = 0
csr = dense.to_sparse_csr()


def bytes_an_entry(tensor):
    file = io.BytesIO()
    torch.save(tensor, file)
    return file.tell() / csr.values().numel()


print("torch", torch.__version__)
made, cloned = bytes_an_entry(csr), bytes_an_entry(csr.clone())
print(f"seen: {made:.1f} bytes an entry as it is made, {cloned:.1f} after clone()")
assert 19.5 < made < 20.5 and 11.5 < cloned < 12.5, "changed"
PYTHON
