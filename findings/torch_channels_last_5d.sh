#!/usr/bin/env bash
# Module.to(memory_format=torch.channels_last) is documented for tensors of four dimensions. A module
# that also has one of five, as of Conv3d, is refused with an error, and what came before that tensor
# is already converted; tensors of three dimensions are passed over.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.15.0 numpy==2.4.6
cd "$folder"
cat > five.py <<'PYTHON'
import sys

import torch
from torch import nn

print("torch", torch.__version__)


def converted(second):
    model = nn.Sequential(nn.Conv2d(3, 8, 3), second)
    try:
        model.to(memory_format=torch.channels_last)
        said = "no error"
    except RuntimeError as error:
        said = f"RuntimeError: {str(error).splitlines()[0]}"
    return said, model[0].weight.is_contiguous(memory_format=torch.channels_last)


one, five = converted(nn.Conv1d(8, 8, 3)), converted(nn.Conv3d(8, 8, 3))
for name, (said, first) in (("Conv1d", one), ("Conv3d", five)):
    print(f"seen: Conv2d and {name}: {said}; the Conv2d is channels_last: {first}")
if one != ("no error", True) or not (five[0].startswith("RuntimeError") and five[1]):
    sys.exit("changed")
PYTHON
"$folder/venv/bin/python" five.py
