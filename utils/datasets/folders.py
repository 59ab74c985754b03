"""Images in folders, one for each class, as torchvision's ImageFolder has them."""

import os
import unicodedata
from collections import Counter
from pathlib import Path

import numpy as np

from utils.datasets.arrays import Arrays
from utils.datasets.images import Splits, decoded_once, fingerprint
from utils.datasets.splits import ADVICE, Source, by_kind, listed, note_of_test
from utils.process.errors import UserError

# Those of torchvision.datasets.folder.IMG_EXTENSIONS.
SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
OF_SYSTEMS = ("@eaDir", "__MACOSX")  # folders of thumbnails and the like
FOLDER_SIDE = 32  # to which images are resized unless --image_size says otherwise

LeftOut = list[tuple[str, str]]  # why a file or folder is not read, and its path


def find_folder(root: Path, side: int, unsplit: bool = False) -> Source:
    """The data set in the folder `root`, as `list_images` finds it, with images of this side."""
    names, splits, notes = list_images(root, unsplit)
    mark = fingerprint(root, splits, side)

    def read() -> Arrays:
        return decoded_once(root, splits, mark, side) | {"classes": np.array(names)}

    return Source(root, mark, splits.keys(), read, notes)


def list_images(root: Path, unsplit: bool = False) -> tuple[list[str], Splits, list[str]]:
    """The names of the classes in the order of their labels, the images, and notes for people.

    There are the images of "train", of "test", or of both; with `unsplit`, class folders without
    these are of "train". Raises UserError where folders are of the wrong form, and OSError where
    one is not readable.
    """
    left_out: LeftOut = []
    used, notes = _used_splits(root, unsplit, left_out)
    splits: Splits = {}
    for kind, folder in used.items():
        classes = folders_in(folder, left_out)
        names = sorted(classes)
        splits[kind] = [
            (path, label)
            for label, name in enumerate(names)
            for path in images_in(classes[name], left_out)
        ]
    return names, splits, notes + _summary(root, left_out)


def _used_splits(root: Path, unsplit: bool, left_out: LeftOut) -> tuple[dict[str, Path], list[str]]:
    """The folders of "train" and "test", as far as they are there, and notes for people.

    With test/ and val/, test/ is taken if it has the classes of train/, and val/ otherwise. What
    lies beside these folders is added to `left_out`.
    """
    beside: LeftOut = []
    inner = folders_in(root, beside)
    names = by_kind(inner, root)
    found = {kind: inner[name] for kind, name in names.items()}
    if found:
        others = sorted(inner.keys() - set(names.values()))
        left_out += beside + [("no split", str(inner[name])) for name in others]
    elif unsplit:
        found = {"train": root}
    if not found:
        raise UserError(
            f"{root}: has {listed(inner)} where train/ and test/ are to be; put the images of each"
            f" class into {root}/train/CLASS/ and {root}/test/CLASS/, or give {ADVICE}"
        )
    classes = {kind: folders_in(folder, []) for kind, folder in found.items()}
    first, *tests = found  # "train" is first, unless there are test images alone
    if len(classes[first]) < 2:
        raise UserError(
            f"{found[first]}: has {listed(classes[first])}, and two are needed; put the images of"
            f" each class into a folder {found[first]}/CLASS/"
        )
    tests = tests if first == "train" else list(found)
    names = {kind: f"{found[kind].name}/" for kind in tests}
    taken = next((kind for kind in tests if classes[kind].keys() == classes[first].keys()), None)
    if tests and taken is None:
        train, test = classes["train"].keys(), classes[tests[0]].keys()
        only = {"train/": sorted(train - test), names[tests[0]]: sorted(test - train)}
        text = " and ".join(f"only {k} has {listed(v)}" for k, v in only.items() if v)
        raise UserError(f"{root}: {text}; give both the same class folders")
    used = {"train": found.get("train"), "test": found.get(taken)}
    return {k: v for k, v in used.items() if v}, note_of_test(root, names, taken)


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name in OF_SYSTEMS


def folders_in(folder: Path, left_out: LeftOut) -> dict[str, Path]:
    """The folders in a folder, by name; hidden ones, such as .ipynb_checkpoints, are none.

    A name is in Unicode's composed form, since file systems differ in how they keep accents. What
    else is there is added to `left_out`. Raises UserError where two are of the same name.
    """
    found: dict[str, Path] = {}
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        name = unicodedata.normalize("NFC", os.fsencode(entry.name).decode(errors="replace"))
        if _is_hidden(entry.name) or not entry.is_dir():
            reason = "hidden" if _is_hidden(entry.name) else "outside class folders"
            left_out.append((reason, entry.path))
        elif name in found:
            raise UserError(
                f"{folder}: has the folders {found[name].name!a} and {entry.name!a}, whose name is"
                f" {name} in two forms of Unicode; merge them, or rename one"
            )
        else:
            found[name] = Path(entry.path)
    return found


def images_in(folder: Path, left_out: LeftOut) -> list[Path]:
    """The images of one class, in its folder or in folders within, in ImageFolder's order.

    Links are followed, and each folder is read once. What is not read is added to `left_out`.
    """

    def fail(error: OSError) -> None:
        raise error

    images: list[tuple[str, str]] = []
    seen = {os.path.realpath(folder)}
    for inner, folders, files in os.walk(folder, onerror=fail, followlinks=True):
        here = os.path.realpath(inner)
        entered = []
        for name in sorted(folders + files):
            path = os.path.join(inner, name)
            real = os.path.realpath(path) if name in folders else ""
            if _is_hidden(name):
                left_out.append(("hidden", path))
            elif real in seen or (real and here.startswith(os.path.join(real, ""))):
                left_out.append(("linked again", path))
            elif real:
                seen.add(real)
                entered.append(name)
            elif name.lower().endswith(SUFFIXES):
                images.append((inner, name))
            else:
                left_out.append((Path(name).suffix.lower() or "without an ending", path))
        folders[:] = entered
    if not images:
        kinds = ", ".join(SUFFIXES)
        raise UserError(f"{folder}: has no image ({kinds}); add some, or delete it in all splits")
    return [Path(inner, name) for inner, name in sorted(images)]


def _summary(root: Path, left_out: LeftOut) -> list[str]:
    """One line that says how many files and folders are left out, why, and names one for each."""
    if not left_out:
        return []
    reasons = Counter(reason for reason, _ in left_out).most_common()
    first = {reason: os.path.relpath(path, root) for reason, path in reversed(left_out)}
    shown = [f"{count:,} {reason} ({first[reason]})" for reason, count in reasons[:5]]
    if others := sum(count for _, count in reasons[5:]):
        shown.append(f"{others:,} others")
    return [f"{root}: {len(left_out):,} files or folders left out: {', '.join(shown)}"]
