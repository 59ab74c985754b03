"""Data sets of one's own, in .npz files or folders of images: read, checked and described."""

import dataclasses
import hashlib
import os
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from utils.datasets.arrays import Arrays, check_own_arrays
from utils.datasets.folders import FOLDER_SIDE, find_folder
from utils.datasets.packed import find_packed
from utils.datasets.splits import Source, check_splits, listed, split_off
from utils.process.errors import UserError, notify

CHUNK = 1 << 24  # pixels that are measured at a time


@dataclass(frozen=True)
class OwnData:
    """What is known of a data set of one's own once it is read; a model file keeps it.

    `classes` has their names in the order of the labels. `side` is that of the images unless
    --image_size gives another; it is None for images that are not square. `mean` and `std` are of
    the training images' channels, in 0 ... 1; a channel that is constant has the deviation 1.
    `images` counts those for training and for testing, and `sha256` is of all pixels and labels.
    Raises UserError for values that no data set has.
    """

    classes: tuple[str, ...]
    channels: int
    side: int | None
    mean: tuple[float, ...]
    std: tuple[float, ...]
    images: tuple[int, int]
    sha256: str

    def __post_init__(self) -> None:
        for field in ("classes", "mean", "std", "images"):  # lists in files
            object.__setattr__(self, field, tuple(getattr(self, field)))
        numbers = (*self.mean, *self.std)
        if not (
            len(self.classes) > 1
            and all(isinstance(name, str) for name in self.classes)
            and [type(count) for count in self.images] == [int, int]
            and type(self.channels) is int
            and self.channels in (1, 3)
            and (self.side is None or (type(self.side) is int and self.side > 0))
            and len(self.mean) == len(self.std) == self.channels
            and all(type(value) is float for value in numbers)
            and all(0 <= value <= 1 for value in numbers)
            and all(value > 0 for value in self.std)
        ):
            raise ValueError("no data set is like this")

    @classmethod
    def of(cls, stored: Mapping[str, Any]) -> "OwnData":
        """From the plain types of a file; raises UserError for what `plain` did not make."""
        try:
            return cls(**stored)
        except (TypeError, ValueError):
            raise UserError("own_data: describes no data set") from None

    def plain(self) -> dict[str, Any]:
        """As plain types, for files."""
        values = dataclasses.asdict(self)
        return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}

    def difference(self, other: "OwnData") -> str | None:
        """How this data set differs from another of its name, in words, or None."""
        if self.classes != other.classes:
            return f"its {listed(self.classes)}, not {listed(other.classes)}"
        for what in ("channels", "side"):
            ours, theirs = getattr(self, what), getattr(other, what)
            if ours != theirs:
                return f"its images have {what} {ours}, not {theirs}"
        if self.images != other.images:
            counts = ["{:,} training and {:,} test images".format(*d.images) for d in (self, other)]
            return f"it has {counts[0]}, not {counts[1]}"
        return "its pixels or labels are others" if self.sha256 != other.sha256 else None


# What was read last, until it is released: it is read for the settings of a run, which need the
# number of classes, and then for the run itself.
_held: dict[Hashable, tuple[Arrays, OwnData]] = {}


def find_own(
    name: str, data_dir: Path, image_size: int | None = None, unsplit: bool = False
) -> Source | None:
    """The data set called `name`, if there is one, not yet read.

    It is in .npz files, as `find_packed` finds them, or in the folder `data_dir`/NAME, as
    `find_folder` does; images in folders are brought to the side `image_size`, by default 32.
    Raises UserError for a name that is none, and for data that are unreadable or of the wrong form.
    """
    check_name(name)
    try:
        source = find_packed(name, data_dir)
        if source is None and os.path.lexists(data_dir / name):
            source = find_folder(data_dir / name, image_size or FOLDER_SIDE, unsplit)
    except OSError as error:
        raise UserError(
            f"--data {name}: {error.filename} cannot be read ({error.strerror})"
        ) from None
    return source


def read_own(
    source: Source, test_fraction: float = 0, known: OwnData | None = None
) -> tuple[Arrays, OwnData]:
    """The arrays of a data set, images with channels last, and what is known of it.

    Without test images, `test_fraction` of the training images become these. For a model that was
    trained on the data set `known`, test images alone are enough. Raises UserError for data that
    are damaged or of the wrong form.
    """
    key = source.mark, test_fraction
    if key not in _held:
        _held.clear()
        check_splits(source, test_fraction, test_alone=known is not None)
        arrays = source.read()
        classes = check_own_arrays(arrays, source.place, known.classes if known else ())
        for note in source.notes:
            notify(note)
        if "x_test" not in arrays:
            split_off(arrays, test_fraction, classes, source.place)
        _held[key] = arrays, _describe(arrays, classes, source.side, known)
    return _held[key]


def release_own() -> None:
    """Forget the arrays that `read_own` read last."""
    _held.clear()


def check_name(name: str) -> None:
    """Raise UserError for what cannot be the name of a data set of one's own."""
    if name.endswith(".npz"):
        raise UserError(f"--data {name}: give the name without .npz")
    if "/" in name or os.sep in name:
        raise UserError(
            f"--data {name}: is a path; give the folder that holds the data set as --data_dir, and"
            " its name as --data"
        )
    if not name or not name.isprintable() or name.startswith("."):
        raise UserError(f"--data {name!r}: is no name of a data set; give another")


def _describe(
    arrays: Arrays, classes: list[str], side: int | None, known: OwnData | None
) -> OwnData:
    """What is known of these arrays. Those of training images, where there are none, become empty.

    Their mean and deviation are then those that are `known`.
    """
    test = arrays["x_test"]
    if "x_train" not in arrays:
        arrays |= {"x_train": test[:0], "y_train": arrays["y_test"][:0]}
        mean, std, side = known.mean, known.std, known.side
    else:
        mean, std = measure(arrays["x_train"])
        side = side or (test.shape[1] if test.shape[1] == test.shape[2] else None)
    digest = hashlib.sha256("\n".join(classes).encode(errors="replace"))
    for key in ("x_train", "y_train", "x_test", "y_test"):
        values = np.ascontiguousarray(arrays[key])
        digest.update(f"{key} {values.shape}".encode())
        digest.update(values)
    counts = len(arrays["x_train"]), len(test)
    return OwnData(tuple(classes), test.shape[3], side, mean, std, counts, digest.hexdigest())


def measure(images: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The mean and standard deviation of each channel of uint8 images, channels last, in 0 ... 1.

    The sums are exact integers. A channel that is constant has the deviation 1.
    """
    pixels = images.reshape(-1, images.shape[-1])
    count, means, stds = len(pixels), [], []
    for channel in pixels.T:
        frequencies = np.zeros(256, np.int64)
        for start in range(0, count, CHUNK):
            frequencies += np.bincount(channel[start : start + CHUNK], minlength=256)
        total, squares = (
            sum(value**power * int(n) for value, n in enumerate(frequencies)) for power in (1, 2)
        )
        means.append(total / (255 * count))
        std = (count * squares - total**2) ** 0.5 / (255 * count)
        stds.append(std or 1.0)
    return tuple(means), tuple(stds)
