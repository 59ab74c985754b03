#!/usr/bin/env bash
# torchvision.datasets.ImageFolder: a link in a class that leads back to its folder is followed until
# the system refuses it; a hidden folder beside the classes is a class; 16 bits of grey are cut to 8
# where they exceed 255, which makes most of them white.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.15.0 torchvision==0.29.2 numpy==2.4.6 pillow==13.0.0
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import os

import numpy as np
import PIL
import torchvision
from PIL import Image
from torchvision.datasets import ImageFolder

print("torchvision", torchvision.__version__, "Pillow", PIL.__version__)
for name in ("images/a/0.png", "images/b/0.png", "images/.hidden/0.png"):
    os.makedirs(os.path.dirname(name))
    Image.new("L", (4, 4), 100).save(name)
os.symlink(os.path.abspath("images/a"), "images/a/again")
found = ImageFolder("images")
count = sum(found.classes[label] == "a" for _, label in found.samples)
print(f"seen: classes {found.classes}, {count} images in class a, which has one")
assert found.classes == [".hidden", "a", "b"] and count == 41, "changed"

Image.fromarray(np.full((4, 4), 30_000, np.uint16)).save("images/b/0.png")
pixel = next(np.asarray(image)[0, 0].tolist() for image, y in found if found.classes[y] == "b")
print(f"seen: 16-bit grey of 30000 out of 65535 is read as {pixel}")
assert pixel == [255, 255, 255], "changed"
PYTHON
