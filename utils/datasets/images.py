"""Image files: decoded once, on all cores, into a cache that is made anew when they change."""

import contextlib
import hashlib
import os
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from tqdm import tqdm

from utils.datasets.arrays import Arrays, read_npz
from utils.process.errors import RunError, UserError, notify, warn
from utils.process.writing import atomic_write

if TYPE_CHECKING:
    from PIL import Image

# For "train" and "test", as far as they are there, the image files and their labels.
Splits = dict[str, list[tuple[Path, int]]]
Decoder = Callable[[Path, int], np.ndarray]

# The EXIF tag of an image's orientation and, by its value, Pillow's Image.Transpose that undoes it.
ORIENTATION = 0x0112
TURNS = {2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}


def fingerprint(root: Path, splits: Splits, side: int) -> str:
    """Changes with the name, label, size and time of any image, and with the side."""
    digest = hashlib.sha256(f"{side}\n".encode())
    for split, items in splits.items():
        for path, label in items:
            try:
                status = path.stat()
            except OSError as error:
                raise UserError(f"{path}: {error.strerror}; replace or delete it") from None
            name = os.fsencode(path.relative_to(root))
            line = f" {split} {label} {status.st_size} {status.st_mtime_ns}\n"
            digest.update(name + line.encode())
    return digest.hexdigest()


def decoded_once(
    root: Path, cache: Path, splits: Splits, mark: str, side: int, decode: Decoder, note: str = ""
) -> Arrays:
    """The images of `splits`, uint8 (images, side, side, 3), and their labels.

    They come from the file `cache`, if that holds those of the same `mark`, which `fingerprint`
    made. Otherwise `decode`, called with a path and `side`, gives each image, and the cache is
    written; people are told so, and `note`. Raises UserError for an image that cannot be decoded.
    """
    if cache.exists():
        keys = [f"{array}_{split}" for split in splits for array in "xy"]
        with contextlib.suppress(UserError):  # a damaged cache is made anew
            arrays = read_npz(cache, [*keys, "fingerprint"])
            if str(arrays.pop("fingerprint")) == mark:
                return arrays
    count = sum(map(len, splits.values()))
    size = count * (side**2 * 3 + np.dtype(np.int64).itemsize)
    notify(
        f"decoding the {count:,} images of {root} once; {cache} will keep them, in"
        f" {size / 1e6:,.1f} MB{note}"
    )
    arrays = {}
    for split, items in splits.items():
        paths = [path for path, _ in items]
        arrays[f"x_{split}"] = _decode(paths, side, decode, f"Decoding {root.name} {split}")
        arrays[f"y_{split}"] = np.array([label for _, label in items], dtype=np.int64)
    try:
        with atomic_write(cache, "wb") as file:
            np.savez(file, **arrays, fingerprint=np.array(mark))
    except RunError as error:
        warn(f"{error}; the images will be decoded again next time")
    return arrays


def _decode(paths: list[Path], side: int, decode: Decoder, title: str) -> np.ndarray:
    """All images, uint8 (images, side, side, 3)."""
    images = np.empty((len(paths), side, side, 3), np.uint8)

    def fill(place: int) -> None:
        images[place] = decode(paths[place], side)

    # Pillow warns of odd metadata, which do not concern the pixels.
    with (
        warnings.catch_warnings(action="ignore"),
        ThreadPoolExecutor(os.cpu_count()) as pool,
    ):
        filled = pool.map(fill, range(len(paths)))
        list(tqdm(filled, title, len(paths), leave=False, unit="image", disable=None))
    return images


def decode_exact(path: Path, side: int) -> np.ndarray:
    """An image of exactly this side, uint8 (side, side, 3); raises UserError for any other."""
    with _opened(path) as image:
        if image.size != (side, side):
            raise UserError(f"{path}: is {image.size}, not {side}x{side}; replace it")
        return np.asarray(image.convert("RGB"))


def decode_fitted(path: Path, side: int) -> np.ndarray:
    """An image of any size, resized to this shorter side, its centre: uint8 (side, side, 3).

    Grey is repeated and transparency dropped, as torchvision's ImageFolder does; a photo is turned
    as its EXIF data say. Raises UserError for a file that is no image.
    """
    from PIL import Image

    with _opened(path) as image:
        image.draft(None, (2 * side, 2 * side))  # a JPEG is decoded at a fraction of a large size
        upright = _upright(image)
        if upright.mode.startswith("I;16") or (upright.mode, image.format) == ("I", "PPM"):
            upright = Image.fromarray((np.asarray(upright) >> 8).astype(np.uint8))  # 16 bits
        elif upright.mode in ("I", "F"):
            raise UserError(
                f"{path}: its pixels are numbers of 32 bits, of unknown range; save it with 8 or 16"
            )
        height, width, top, left = central_square(upright.height, upright.width, side)
        resized = upright.convert("RGB").resize((width, height), Image.Resampling.BILINEAR)
        return np.asarray(resized)[top : top + side, left : left + side]


def _upright(image: "Image.Image") -> "Image.Image":
    """The image, turned as its metadata say; damaged ones count as none.

    `ImageOps.exif_transpose` also writes the other metadata again, and fails where that fails.
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


@contextlib.contextmanager
def _opened(path: Path) -> Iterator["Image.Image"]:
    """The image, whose damage becomes a UserError."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            yield image
    except (UserError, MemoryError):
        raise
    except Exception as error:  # damaged bytes can raise any error
        raise UserError(
            f"{path}: cannot be read as an image ({error}); replace or delete it"
        ) from None
