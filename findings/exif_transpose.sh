#!/usr/bin/env bash
# PIL.ImageOps.exif_transpose writes the EXIF data again without the orientation. An entry of an
# unusual type, here a text for the image's width, makes that raise, though the pixels are sound and
# the orientation is readable.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check pillow==13.0.0
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import struct

import PIL
from PIL import Image, ImageOps

# A little-endian TIFF header and two entries: 0x100 (width) as the text "8", 0x112 (orientation) 6.
entries = struct.pack("<HHI4s", 0x100, 2, 2, b"8\0") + struct.pack("<HHIHH", 0x112, 3, 1, 6, 0)
exif = b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", 2) + entries + bytes(4)
Image.new("RGB", (8, 4), "red").save("a.jpg", exif=exif)

print("Pillow", PIL.__version__)
image = Image.open("a.jpg")
image.load()
assert image.size == (8, 4) and image.getexif()[0x112] == 6
try:
    ImageOps.exif_transpose(image)
    raise SystemExit("changed: the image is transposed")
except (SystemExit, KeyboardInterrupt):
    raise
except Exception as error:
    print(f"seen: {type(error).__name__}: {error}")
PYTHON
