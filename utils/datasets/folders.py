"""Images in folders, one for each class, as torchvision's ImageFolder has them."""

import os
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from utils.datasets.arrays import Arrays
from utils.datasets.images import Splits, decoded_once
from utils.datasets.splits import ADVICE, by_kind, listed, used_splits
from utils.process.errors import UserError, notify

# Those of torchvision.datasets.folder.IMG_EXTENSIONS.
SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
OF_SYSTEMS = ("@eaDir", "__MACOSX")  # folders of thumbnails and the like
FOLDER_SIDE = 32  # to which images are resized unless --image_size says otherwise

LeftOut = list[tuple[str, str]]  # why a file or folder is not read, and its path


def read_folder(root: Path, side: int, test_fraction: float, alone: bool) -> Arrays:
    """The images that `list_images` finds in the folder `root`, at this side, and their labels."""
    names, splits = list_images(root, test_fraction, alone)
    return decoded_once(root, splits, side) | {"classes": np.array(names)}


def list_images(root: Path, test_fraction: float, alone: bool = False) -> tuple[list[str], Splits]:
    """The names of the classes in the order of their labels, and the images.

    There are the images of "train", of "test", or of both; with `test_fraction`, class folders
    without these are of "train". Raises UserError as `used_splits`, and where folders are of the
    wrong form, and OSError where one is not readable.
    """
    left_out: LeftOut = []
    splits: Splits = {}
    for kind, folder in _find_splits(root, test_fraction, alone, left_out).items():
        classes = folders_in(folder, left_out)
        splits[kind] = labelled(classes.values(), left_out)
    if left_out:
        notify(_summary(root, left_out))
    return list(classes), splits


def _find_splits(
    root: Path, test_fraction: float, alone: bool, left_out: LeftOut
) -> dict[str, Path]:
    """The folders of "train" and "test": of test/ and val/ the first with the classes of train/."""
    beside: LeftOut = []
    inner = {f"{name}/": folder for name, folder in folders_in(root, beside).items()}
    found = by_kind({name: name[:-1] for name in inner}, root)
    if found:
        others = sorted(inner.keys() - set(found.values()))
        left_out += beside + [("no split", str(inner[name])) for name in others]
    elif test_fraction:
        inner, found = {"": root}, {"train": ""}
    else:
        raise UserError(
            f"{root}: has {listed([name[:-1] for name in inner])} where train/ and test/ are to be;"
            f" put the images of each class into {root}/train/CLASS/ and {root}/test/CLASS/, or"
            f" give {ADVICE}"
        )
    classes = {kind: folders_in(inner[name], []).keys() for kind, name in found.items()}
    first = next(iter(found))  # "train", unless there are test images alone
    if len(classes[first]) < 2:
        place = inner[found[first]]
        raise UserError(
            f"{place}: has {listed(classes[first])}, and two are needed; put the images of each"
            f" class into a folder {place}/CLASS/"
        )
    tests = [kind for kind in found if kind != "train"]
    taken = next((kind for kind in tests if classes[kind] == classes[first]), None)
    if tests and taken is None:
        train, test = classes["train"], classes[tests[0]]
        only = {found["train"]: train - test, found[tests[0]]: test - train}
        text = " and ".join(f"only {k} has {listed(sorted(v))}" for k, v in only.items() if v)
        raise UserError(f"{root}: {text}; give both the same class folders")
    used = used_splits(found, taken, root, test_fraction, alone)
    return {kind: inner[name] for kind, name in used.items()}


def _visible(folder: str | Path, left_out: LeftOut) -> Iterator[os.DirEntry]:
    """What is in a folder, by name; what is hidden is added to `left_out`."""
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if entry.name.startswith(".") or entry.name in OF_SYSTEMS:
            left_out.append(("hidden", entry.path))
        else:
            yield entry


def folders_in(folder: Path, left_out: LeftOut) -> dict[str, Path]:
    """The folders in a folder, sorted by name; hidden ones, such as .ipynb_checkpoints, are none.

    A name is in Unicode's composed form, since file systems differ in how they keep accents. What
    else is there is added to `left_out`. Raises UserError where two are of the same name.
    """
    found: dict[str, Path] = {}
    for entry in _visible(folder, left_out):
        name = unicodedata.normalize("NFC", os.fsencode(entry.name).decode(errors="replace"))
        if not entry.is_dir():
            left_out.append(("outside class folders", entry.path))
        elif name in found:
            raise UserError(
                f"{folder}: has the folders {found[name].name!a} and {entry.name!a}, whose name is"
                f" {name} in two forms of Unicode; merge them, or rename one"
            )
        else:
            found[name] = Path(entry.path)
    return dict(sorted(found.items()))


def labelled(classes: Iterable[Path], left_out: LeftOut) -> list[tuple[Path, int]]:
    """The images in these folders of classes, which are numbered 0, 1, 2 ..."""
    return [(path, y) for y, folder in enumerate(classes) for path in images_in(folder, left_out)]


def images_in(folder: Path, left_out: LeftOut) -> list[Path]:
    """The images of one class, in its folder or in folders within, in ImageFolder's order.

    Links are followed, and each folder is read once. What is not read is added to `left_out`.
    """
    start = Path(os.path.realpath(folder))
    folders, seen, images = [str(folder)], {*map(str, (start, *start.parents))}, []
    while folders:
        within = []
        for entry in _visible(folders.pop(), left_out):
            # A link that leads to itself raises an error in DirEntry.is_dir.
            is_folder = os.path.isdir(entry) if entry.is_symlink() else entry.is_dir()
            real = os.path.realpath(entry) if is_folder else None
            if real in seen:
                left_out.append(("linked again", entry.path))
            elif real:
                seen.add(real)
                within.append(entry.path)
            elif entry.name.lower().endswith(SUFFIXES):
                images.append(entry.path)
            else:
                ending = Path(entry.name).suffix.lower()
                left_out.append((ending or "without an ending", entry.path))
        folders += reversed(within)
    if not images:
        kinds = ", ".join(SUFFIXES)
        raise UserError(f"{folder}: has no image ({kinds}); add some, or delete it in all splits")
    return [Path(path) for path in sorted(images, key=os.path.split)]


def _summary(root: Path, left_out: LeftOut) -> str:
    """How many files and folders are left out, why, and the name of one for each reason."""
    reasons = Counter(reason for reason, _ in left_out).most_common()
    first = {reason: os.path.relpath(path, root) for reason, path in reversed(left_out)}
    shown = [f"{count:,} {reason} ({first[reason]})" for reason, count in reasons]
    return f"{root}: {len(left_out):,} files or folders left out: {', '.join(shown)}"
