#!/usr/bin/env bash
# torch.utils.flop_counter.FlopCounterMode on a CPU: an LSTM in float32 counts as nothing, since
# oneDNN computes it in one operation; and an attention layer whose parameters are frozen is not
# counted, since it takes PyTorch's fast path. Without oneDNN and the fast path both are counted.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.15.0 numpy==2.4.6
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


def count(model, x):
    with FlopCounterMode(display=False) as counter:
        model(x)
    return counter.get_total_flops()


print("torch", torch.__version__)
x = torch.randn(1, 16, 32)
lstm = nn.LSTM(32, 32, batch_first=True)
frozen = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True).eval().requires_grad_(False)
for name, model in (("LSTM", lstm), ("frozen attention layer", frozen)):
    usual = count(model, x)
    torch.backends.mha.set_fastpath_enabled(False)
    with torch.backends.mkldnn.flags(enabled=False):
        plain = count(model, x)
    torch.backends.mha.set_fastpath_enabled(True)
    print(f"seen: {name}: {usual:,} operations, {plain:,} without oneDNN and fast path")
    assert usual == 0 < plain, "changed"
PYTHON
