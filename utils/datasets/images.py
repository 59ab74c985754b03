"""Image files: decoded once, on all cores, into a cache that is made anew when they change."""

import contextlib
import hashlib
import os
import warnings
from pathlib import Path

import numpy as np
from tqdm.contrib.concurrent import thread_map

from utils.datasets.arrays import Arrays, check_memory, read_array, reading
from utils.process.errors import RunError, UserError, notify, warn
from utils.process.writing import atomic_write

# For "train" and "test", as far as they are there, the image files and their labels.
Splits = dict[str, list[tuple[Path, int]]]

# The EXIF tag of an image's orientation and, by its value, Pillow's Image.Transpose that undoes it.
ORIENTATION = 0x0112
TURNS = {2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}


def _fingerprint(root: Path, splits: Splits, side: int) -> str:
    """Changes with the name, label, size and time of any image, and with the side."""
    digest = hashlib.sha256(f"{side}".encode())
    for split, items in splits.items():
        for path, label in items:
            name, state = os.fsencode(path.relative_to(root)), path.stat()
            digest.update(repr((split, label, name, state.st_size, state.st_mtime_ns)).encode())
    return digest.hexdigest()


def decoded_once(root: Path, splits: Splits, side: int, exact: bool = False) -> Arrays:
    """The images of `splits`, uint8 (images, side, side, 3), and their labels.

    They come from a cache beside the folder `root`, unless files have changed. Otherwise they are
    decoded, and the cache is written. Raises UserError for an image that cannot be decoded or, if
    they are to be `exact`, has another size, and for more than memory holds, and OSError for an
    image that is not there.
    """
    mark = _fingerprint(root, splits, side)
    cache = root.with_name(f"{root.name}.{side}x{side}.cache.npz")
    if cache.exists():
        with contextlib.suppress(UserError):  # a damaged cache is made anew
            if str(read_array(cache, "fingerprint")) == mark:
                keys = [f"{array}_{split}" for split in splits for array in "xy"]
                return {key: read_array(cache, key) for key in keys}
    count = sum(map(len, splits.values()))
    size = count * (side**2 * 3 + 8)  # pixels and label
    check_memory(size, root)
    notify(
        f"decoding the {count:,} images of {root} once; {cache} will keep them, in"
        f" {size / 1e6:,.1f} MB"
    )
    arrays = {}
    for split, items in splits.items():
        paths = [path for path, _ in items]
        arrays[f"x_{split}"] = _decode(paths, side, exact, f"Decoding {root.name} {split}")
        arrays[f"y_{split}"] = np.array([label for _, label in items], dtype=np.int64)
    try:
        with atomic_write(cache, "wb") as file:
            np.savez(file, **arrays, fingerprint=np.array(mark))
    except RunError as error:
        warn(f"{error}; the images will be decoded again next time")
    return arrays


def _decode(paths: list[Path], side: int, exact: bool, title: str) -> np.ndarray:
    """All images, uint8 (images, side, side, 3)."""
    images = np.empty((len(paths), side, side, 3), np.uint8)

    def put(place: int) -> None:
        images[place] = decode(paths[place], side, exact)

    with warnings.catch_warnings(action="ignore"):  # Pillow's, of odd metadata
        thread_map(put, range(len(paths)), desc=title, unit="image", leave=False, disable=None)
    return images


def decode(path: Path, side: int, exact: bool = False) -> np.ndarray:
    """The centre of an image that is resized to this shorter side: uint8 (side, side, 3).

    Grey is repeated and transparency dropped, as torchvision's ImageFolder does; a photo is turned
    as its EXIF data say. Raises UserError for a file that is no image or, if `exact`, of
    another size.
    """
    from PIL import Image

    with reading(path, "an image"), Image.open(path) as image:
        if exact and image.size != (side, side):
            raise ValueError(f"it is {image.size}, not {side}x{side}")
        image.draft(None, (2 * side, 2 * side))  # a JPEG, at a fraction of a large size
        image.load()  # which turns a TIFF
        turn = None
        # ImageOps.exif_transpose fails where it cannot write the other metadata again.
        with contextlib.suppress(Exception):  # there is none, or damaged bytes raise any error
            turn = TURNS[image.getexif()[ORIENTATION]]
        upright = image if turn is None else image.transpose(turn)
        if upright.mode.startswith("I;16") or (upright.mode, image.format) == ("I", "PPM"):
            upright = Image.fromarray((np.asarray(upright) >> 8).astype(np.uint8))  # 16 bits
        elif upright.mode in ("I", "F"):
            raise ValueError("its pixels are numbers of 32 bits, of unknown range")
        height, width, top, left = central_square(upright.height, upright.width, side)
        resized = upright.convert("RGB").resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(resized)[top : top + side, left : left + side]


def central_square(height: int, width: int, side: int) -> tuple[int, int, int, int]:
    """The size of an image resized so that its shorter side is `side`, and where its centre starts.

    Returns height, width, top and left, rounded as torchvision does.
    """
    height, width = (side * length // min(height, width) for length in (height, width))
    return height, width, round((height - side) / 2), round((width - side) / 2)
