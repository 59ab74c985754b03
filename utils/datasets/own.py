"""Data sets of one's own: NAME.npz, or folders of images as torchvision's ImageFolder has them."""

import dataclasses
import hashlib
import os
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from utils.datasets.arrays import Arrays, check_own_arrays, read_npz
from utils.datasets.images import Splits, decode_fitted, decoded_once, fingerprint
from utils.process.errors import UserError

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
FOLDER_SIDE = 32  # to which images in folders are resized unless --image_size says otherwise
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
            return f"its {_listed(self.classes)}, not {_listed(other.classes)}"
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
_held: dict[tuple, tuple[Arrays, OwnData]] = {}


def has_own(name: str, data_dir: Path) -> bool:
    """Whether there is such a data set; raises UserError for a name that is none."""
    check_name(name)
    try:
        return (data_dir / f"{name}.npz").exists() or (data_dir / name).exists()
    except OSError as error:
        raise UserError(f"--data {name}: {error.strerror}; give another name") from None


def read_own(name: str, data_dir: Path, image_size: int | None) -> tuple[Arrays, OwnData]:
    """The arrays of the data set called `name`, images with channels last, and what is known of it.

    It is `data_dir`/NAME.npz, or images in `data_dir`/NAME/train/CLASS/ and test/CLASS/ or
    val/CLASS/, which are brought to the side `image_size`, by default 32. Raises UserError for data
    that are damaged or of the wrong form.
    """
    packed, root = data_dir / f"{name}.npz", data_dir / name
    try:
        if packed.exists():
            status = packed.stat()
            key = packed, status.st_size, status.st_mtime_ns
        else:
            classes, splits = _list_folder(root)
            side = image_size or FOLDER_SIDE
            key = root, fingerprint(root, splits, side)
    except OSError as error:
        raise UserError(f"{error.filename or root}: cannot be read ({error.strerror})") from None
    if key not in _held:
        _held.clear()
        if packed in key:
            arrays = read_npz(packed, optional=("classes",))
            classes = check_own_arrays(arrays, packed)
            height, width = arrays["x_train"].shape[1:3]
            default = height if height == width else None
        else:
            cache = data_dir / f"{name}.{side}x{side}.cache.npz"
            arrays = decoded_once(root, cache, splits, key[1], side, decode_fitted)
            default = FOLDER_SIDE
        _held[key] = arrays, _describe(arrays, classes, default)
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


def _list_folder(root: Path) -> tuple[list[str], Splits]:
    """The names of the classes, in the order of their labels, and the images of both splits."""
    train = _classes(root / "train")
    if len(train) < 2:
        found = f"the class {next(iter(train))} alone" if train else "no folder of images"
        raise UserError(
            f"{root / 'train'}: has {found}; put the training images of each class into a folder"
            f" {root / 'train'}/CLASS/"
        )
    others = [root / split for split in ("test", "val") if (root / split).is_dir()]
    if not others:
        raise UserError(f"{root}: has no test/ or val/; put test images into {root}/test/CLASS/")
    tests = {folder: _classes(folder) for folder in others}
    chosen = next((f for f, classes in tests.items() if classes.keys() == train.keys()), None)
    if chosen is None:
        folder, test = next(iter(tests.items()))
        only = {"train": train.keys() - test.keys(), folder.name: test.keys() - train.keys()}
        text = " and ".join(f"only {k}/ has {_listed(sorted(v))}" for k, v in only.items() if v)
        raise UserError(f"{root}: {text}; give both the same class folders")
    names = sorted(train)
    splits = {
        split: [(path, label) for label, name in enumerate(names) for path in _images(of[name])]
        for split, of in (("train", train), ("test", tests[chosen]))
    }
    return names, splits


def _classes(folder: Path) -> dict[str, Path]:
    """The class folders in a folder, by name; hidden ones, such as .ipynb_checkpoints, are none.

    A name is in Unicode's composed form, since file systems differ in how they keep accents.
    """
    if not folder.is_dir():
        return {}
    names = {
        unicodedata.normalize("NFC", os.fsencode(path.name).decode(errors="replace")): path
        for path in sorted(folder.iterdir())
        if path.is_dir() and not path.name.startswith(".")
    }
    return names


def _images(folder: Path) -> list[Path]:
    """The images of one class, in its folder or in folders within, in the order of their names."""
    found = sorted(
        Path(inner) / name
        for inner, _, names in os.walk(folder)
        for name in names
        if name.lower().endswith(SUFFIXES) and not name.startswith(".")
    )
    if not found:
        kinds = ", ".join(SUFFIXES)
        raise UserError(f"{folder}: has no image ({kinds}); add some, or delete it in all splits")
    return found


def _describe(arrays: Arrays, classes: list[str], side: int | None) -> OwnData:
    train = arrays["x_train"]
    mean, std = measure(train)
    digest = hashlib.sha256("\n".join(classes).encode(errors="replace"))
    for key in ("x_train", "y_train", "x_test", "y_test"):
        values = np.ascontiguousarray(arrays[key])
        digest.update(f"{key} {values.shape}".encode())
        digest.update(values)
    counts = len(train), len(arrays["x_test"])
    return OwnData(tuple(classes), train.shape[3], side, mean, std, counts, digest.hexdigest())


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


def _listed(names: tuple[str, ...] | list[str]) -> str:
    """The first few of these names of classes."""
    more = f" and {len(names) - 3:,} more" if len(names) > 3 else ""
    return f"class{'es' * (len(names) > 1)} {', '.join(names[:3])}{more}"
