"""Data sets of one's own, in .npz files or folders of images: read, checked and described."""

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from utils.datasets.arrays import Arrays, check_own_arrays
from utils.datasets.builtin import DATASETS, DatasetInfo
from utils.datasets.folders import FOLDER_SIDE, read_folder
from utils.datasets.packed import read_packed
from utils.datasets.splits import listed, split_off
from utils.process.errors import UserError


@dataclass(frozen=True)
class OwnData:
    """What is known of a data set of one's own once it is read; a model file keeps it."""

    classes: tuple[str, ...]  # their names, in the order of the labels
    channels: int
    side: int | None  # unless --image_size gives another; None for images that are not square
    mean: tuple[float, ...]  # of the training images' channels, in 0 ... 1
    std: tuple[float, ...]  # 1 for a channel that is constant
    images: tuple[int, int]  # how many are for training and for testing
    sha256: str  # of the classes' names, and all pixels and labels

    @classmethod
    def of(cls, stored: Mapping[str, Any]) -> "OwnData":
        """From the plain types of a file; raises UserError for what `plain` did not make."""
        try:
            own = cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in stored.items()})
            if (
                own.channels in (1, 3)
                and len(own.mean) == len(own.std) == own.channels
                and (own.side is None or own.side > 0)
                and min(*own.std, len(own.classes) - 1) > 0
            ):
                return own
        except (AttributeError, TypeError, ValueError):
            pass
        raise UserError("own_data: describes no data set")

    @property
    def info(self) -> DatasetInfo:
        """The same as of a built-in data set."""
        return DatasetInfo(None, len(self.classes), self.channels, self.side, self.mean, self.std)

    def plain(self) -> dict[str, Any]:
        """As plain types, for files."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in vars(self).items()}

    def difference(self, other: "OwnData") -> str | None:
        """How this data set differs from another of its name, in words, or None."""
        if self.classes != other.classes:
            return f"its {listed(self.classes)}, not {listed(other.classes)}"
        if (self.channels, self.side) != (other.channels, other.side):
            forms = [f"{d.channels} channels and side {d.side}" for d in (self, other)]
            return f"its images have {forms[0]}, not {forms[1]}"
        if self.images != other.images:
            counts = ["{:,} training and {:,} test images".format(*d.images) for d in (self, other)]
            return f"it has {counts[0]}, not {counts[1]}"
        return "its pixels or labels are others" if self.sha256 != other.sha256 else None


def read_own(
    name: str,
    data_dir: Path,
    image_size: int | None = None,
    test_fraction: float = 0,
    known: OwnData | None = None,
) -> tuple[Arrays, OwnData]:
    """The arrays of a data set, images with channels last, and what is known of it.

    Images in folders are brought to the side `image_size`, by default 32. Without test images,
    `test_fraction` of the training images become these. For a model that was trained on the data
    set `known`, test images alone are enough; the arrays for training are then empty. Raises
    UserError for a name that is none, and for data that are missing or of the wrong form.
    """
    check_name(name)
    folder, wanted = data_dir / name, (test_fraction, known is not None)
    try:
        found = read_packed(name, data_dir, *wanted)
        if found is None and os.path.lexists(folder):
            found = read_folder(folder, image_size or FOLDER_SIDE, *wanted), folder
    except OSError as error:
        reason = f"{error.filename} cannot be read ({error.strerror})"
        raise UserError(f"--data {name}: {reason}") from None
    if found is None:
        raise UserError(
            f"--data {name}: choose one of {', '.join(DATASETS)}, or put {name}.npz or {name}/ with"
            f" train/ and test/ into --data_dir {data_dir}"
        )
    arrays, place = found
    classes = check_own_arrays(arrays, place, known.classes if known else ())
    if "x_test" not in arrays:
        split_off(arrays, test_fraction, classes, place)
    own = _describe(arrays, classes, place, known)
    if own.side is None and image_size is None:
        raise UserError(f"--data {name}: its images are not square; give --image_size")
    return arrays, own


def _describe(
    arrays: Arrays, classes: Sequence[str], place: Path, known: OwnData | None
) -> OwnData:
    count, test = len(arrays["x_train"]), arrays["x_test"]
    mean, std = (known.mean, known.std) if known else measure(arrays["x_train"])
    side = test.shape[1] if test.shape[1] == test.shape[2] else None
    if not count:
        side = known.side
    elif place.is_dir():
        side = FOLDER_SIDE
    digest = hashlib.sha256("\n".join(classes).encode(errors="replace"))
    for key in ("x_train", "y_train", "x_test", "y_test"):
        digest.update(f"{key} {arrays[key].shape}".encode())
        digest.update(np.ascontiguousarray(arrays[key]))
    counts, sha256 = (count, len(test)), digest.hexdigest()
    return OwnData(tuple(classes), test.shape[3], side, mean, std, counts, sha256)


def check_name(name: str) -> None:
    """Raise UserError for what cannot be the name of a data set of one's own."""
    if not name.isprintable() or "/" in name or not name.strip(".") or name.endswith(".npz"):
        raise UserError(
            f"--data {name!r}: is no name of a data set; give that of its folder or, without .npz,"
            " of its file, and the folder that holds it as --data_dir"
        )


def measure(images: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The mean and standard deviation of each channel of uint8 images, channels last, in 0 ... 1.

    The sums are exact integers. A channel that is constant has the deviation 1.
    """
    pixels = images.reshape(-1, images.shape[-1])
    totals = pixels.sum(0, dtype=np.int64).tolist()
    squares = np.einsum("pc,pc->c", pixels, pixels, dtype=np.int64).tolist()
    scale, pairs = 255 * len(pixels), list(zip(totals, squares, strict=True))
    stds = (((len(pixels) * square - total**2) ** 0.5 / scale) or 1.0 for total, square in pairs)
    return tuple(total / scale for total in totals), tuple(stds)
