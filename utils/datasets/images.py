"""Image files: decoded once, on all cores, into a cache that is made anew when they change."""

import contextlib
import hashlib
import os
import warnings
from concurrent.futures import ThreadPoolExecutor
from itertools import repeat
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from tqdm import tqdm

from utils.datasets.arrays import Arrays, check_memory, read_array
from utils.process.errors import RunError, UserError, notify, warn
from utils.process.writing import atomic_write

if TYPE_CHECKING:
    from PIL import Image

# For "train" and "test", as far as they are there, the image files and their labels.
Splits = dict[str, list[tuple[Path, int]]]

# The EXIF tag of an image's orientation and, by its value, Pillow's Image.Transpose that undoes it.
ORIENTATION = 0x0112
TURNS = {2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}


def fingerprint(root: Path, splits: Splits, side: int) -> str:
    """Changes with the name, label, size and time of any image, and with the side.

    Raises OSError for an image that is not there.
    """
    digest = hashlib.sha256(f"{side}".encode())
    for split, items in splits.items():
        for path, label in items:
            name, state = os.fsencode(path.relative_to(root)), path.stat()
            digest.update(repr((split, label, name, state.st_size, state.st_mtime_ns)).encode())
    return digest.hexdigest()


def decoded_once(root: Path, splits: Splits, mark: str, side: int, exact: bool = False) -> Arrays:
    """The images of `splits`, uint8 (images, side, side, 3), and their labels.

    They come from a cache beside the folder `root`, if that holds those of the same `mark`, their
    fingerprint. Otherwise they are decoded, and the cache is written. Raises UserError for an image
    that cannot be decoded or, if they are to be `exact`, has another size, and for more than memory
    holds.
    """
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
    # Pillow warns of odd metadata, which do not concern the pixels.
    with (
        warnings.catch_warnings(action="ignore"),
        ThreadPoolExecutor(os.cpu_count()) as pool,
    ):
        decoded = pool.map(decode, paths, repeat(side), repeat(exact))
        bar = tqdm(decoded, title, len(paths), leave=False, unit="image", disable=None)
        for place, image in enumerate(bar):
            images[place] = image
    return images


def decode(path: Path, side: int, exact: bool = False) -> np.ndarray:
    """The centre of an image that is resized to this shorter side: uint8 (side, side, 3).

    Grey is repeated and transparency dropped, as torchvision's ImageFolder does; a photo is turned
    as its EXIF data say. Raises UserError for a file that is no image or, if `exact`, of
    another size.
    """
    from PIL import Image

    try:
        with Image.open(path) as image:
            if exact and image.size != (side, side):
                raise ValueError(f"it is {image.size}, not {side}x{side}")
            image.draft(None, (2 * side, 2 * side))  # a JPEG, at a fraction of a large size
            upright = _upright(image)
            if upright.mode.startswith("I;16") or (upright.mode, image.format) == ("I", "PPM"):
                upright = Image.fromarray((np.asarray(upright) >> 8).astype(np.uint8))  # 16 bits
            elif upright.mode in ("I", "F"):
                raise ValueError("its pixels are numbers of 32 bits, of unknown range")
            height, width, top, left = central_square(upright.height, upright.width, side)
            resized = upright.convert("RGB").resize((width, height), Image.Resampling.BILINEAR)
    except MemoryError:
        raise
    except Exception as error:  # damaged bytes can raise any error
        raise UserError(
            f"{path}: cannot be read as an image ({error}); replace or delete it"
        ) from None
    return np.asarray(resized)[top : top + side, left : left + side]


def _upright(image: "Image.Image") -> "Image.Image":
    """The image, turned as its metadata say; damaged ones count as none.

    `ImageOps.exif_transpose` fails where it cannot write the other metadata again.
    """
    image.load()  # which turns a TIFF
    try:
        turn = TURNS[image.getexif()[ORIENTATION]]
    except Exception:  # there is none, or damaged bytes raise any error
        return image
    return image.transpose(turn)


def central_square(height: int, width: int, side: int) -> tuple[int, int, int, int]:
    """The size of an image resized so that its shorter side is `side`, and where its centre starts.

    Returns height, width, top and left, rounded as torchvision does.
    """
    height, width = (side * length // min(height, width) for length in (height, width))
    return height, width, round((height - side) / 2), round((width - side) / 2)
