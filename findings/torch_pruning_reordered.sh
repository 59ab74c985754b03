#!/usr/bin/env bash
# torch-pruning follows channels through permute and flatten, but not the order in which flatten then
# lays them out: of the next layer it removes columns that belong to other channels. The smaller
# network runs and has the right shape. Here the removed channel is 0 everywhere, so that a right cut
# would not change the outputs.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.15.0 torch-pruning==1.6.1 numpy==2.4.6
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
from importlib.metadata import version

import torch
import torch_pruning
from torch import nn


class Network(nn.Module):
    def __init__(self, channels_last):
        super().__init__()
        self.conv, self.out = nn.Conv2d(1, 4, 3, padding=1), nn.Linear(4 * 4, 3)
        self.channels_last = channels_last

    def forward(self, x):
        x = self.conv(x).relu()
        return self.out((x.permute(0, 2, 3, 1) if self.channels_last else x).flatten(1))


print("torch", torch.__version__, "torch-pruning", version("torch-pruning"))
torch.manual_seed(0)
images, changes = torch.randn(8, 1, 2, 2), {}
for channels_last in (False, True):
    model = Network(channels_last)
    model.conv.weight.data[1] = model.conv.bias.data[1] = 0
    dense = model(images)
    graph = torch_pruning.DependencyGraph().build_dependency(model, images)
    cut = torch_pruning.prune_conv_out_channels
    graph.get_pruning_group(model.conv, cut, idxs=[1]).prune()
    changes[channels_last] = (model(images) - dense).abs().max().item()
print(f"seen: cutting a channel of zeros changes the outputs by {changes[False]:.1e} at most, and")
print(f"      behind permute(0, 2, 3, 1) by {changes[True]:.1e}")
assert changes[False] < 1e-5 and changes[True] > 1e-2, "changed"
PYTHON
