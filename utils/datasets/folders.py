"""Images in folders, one for each class, as torchvision's ImageFolder has them."""

import os
import unicodedata
from collections import Counter
from collections.abc import Collection
from pathlib import Path

import numpy as np

from utils.datasets.arrays import Arrays
from utils.datasets.images import Splits, decode_fitted, decoded_once, fingerprint
from utils.datasets.splits import ADVICE, Source, find_splits, listed, note_of_test
from utils.process.errors import UserError

# Those of torchvision.datasets.folder.IMG_EXTENSIONS.
SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
OF_SYSTEMS = ("@eaDir", "__MACOSX")  # folders of thumbnails and the like
FOLDER_SIDE = 32  # to which images are resized unless --image_size says otherwise

Classes = dict[str, Path]  # the class folders by name
LeftOut = list[tuple[str, str]]  # why a file or folder is not read, and its path


def find_folder(root: Path, side: int, unsplit: bool = False) -> Source:
    """The data set in the folder `root`, whose images are brought to `side` as they are read.

    `unsplit` and errors are those of `list_images`.
    """
    names, splits, notes = list_images(root, unsplit)
    mark = fingerprint(root, splits, side)

    def read() -> Arrays:
        cache = root.with_name(f"{root.name}.{side}x{side}.cache.npz")
        arrays = decoded_once(root, cache, splits, mark, side, decode_fitted)
        return arrays | {"classes": np.array(names)}

    advice = f"put them into {root}/test/CLASS/"
    return Source(root, (root, mark), splits.keys(), read, notes, advice, FOLDER_SIDE)


def list_images(root: Path, unsplit: bool = False) -> tuple[list[str], Splits, list[str]]:
    """The names of the classes in the order of their labels, the images, and notes for people.

    There are the images of "train", of "test", or of both; with `unsplit`, class folders without
    these are of "train". Raises UserError where folders are of the wrong form, and OSError where
    one is not readable.
    """
    classes, notes = _class_folders(root, unsplit)
    names = sorted(next(iter(classes.values())))
    left_out: LeftOut = []
    splits: Splits = {}
    for kind, folders in classes.items():
        left_out += _outside(folders.values())
        splits[kind] = [
            (path, label)
            for label, name in enumerate(names)
            for path in _images(folders[name], left_out)
        ]
    return names, splits, notes + _summary(root, left_out)


def _class_folders(root: Path, unsplit: bool) -> tuple[dict[str, Classes], list[str]]:
    """The class folders of "train" and "test", as far as they are there, and notes for people.

    With test/ and val/, test/ is taken if it has the classes of train/, and val/ otherwise.
    """
    inner = _folders(root)
    found = {kind: inner[name] for kind, (name,) in find_splits(inner, root, ("{}",)).items()}
    if not found and unsplit:
        found = {"train": root}
    if not found:
        raise UserError(
            f"{root}: has {listed(inner)} where train/ and test/ are to be; put the training images"
            f" of each class into a folder {root}/train/CLASS/, those for testing into"
            f" {root}/test/CLASS/, or give {ADVICE}"
        )
    classes = {kind: _folders(folder) for kind, folder in found.items()}
    first = next(iter(found))  # "train", unless there are test images alone
    if len(classes[first]) < 2:
        raise UserError(
            f"{found[first]}: has {listed(classes[first])}, and two are needed; put the images of"
            f" each class into a folder {found[first]}/CLASS/"
        )
    used = {kind: classes[kind] for kind in found if kind == "train"}
    tests = [kind for kind in found if kind != "train"]
    taken = next((kind for kind in tests if classes[kind].keys() == classes[first].keys()), None)
    if taken:
        used["test"] = classes[taken]
    elif tests:
        raise UserError(_mismatch(root, classes[first], found[tests[0]], classes[tests[0]]))
    return used, note_of_test(root, {k: f"{found[k].name}/" for k in tests}, taken)


def _mismatch(root: Path, train: Classes, folder: Path, test: Classes) -> str:
    only = {"train": train.keys() - test.keys(), folder.name: test.keys() - train.keys()}
    text = " and ".join(f"only {k}/ has {listed(sorted(v))}" for k, v in only.items() if v)
    return f"{root}: {text}; give both the same class folders"


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name in OF_SYSTEMS


def _folders(folder: Path) -> Classes:
    """The folders in a folder, by name; hidden ones, such as .ipynb_checkpoints, are none.

    A name is in Unicode's composed form, since file systems differ in how they keep accents.
    Raises UserError where two are of the same name.
    """
    found: Classes = {}
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if _is_hidden(entry.name) or not entry.is_dir():
            continue
        name = unicodedata.normalize("NFC", os.fsencode(entry.name).decode(errors="replace"))
        if name in found:
            raise UserError(
                f"{folder}: has the folders {found[name].name!a} and {entry.name!a}, whose name is"
                f" {name} in two forms of Unicode; merge them, or rename one"
            )
        found[name] = Path(entry.path)
    return found


def _outside(classes: Collection[Path]) -> LeftOut:
    """What stands beside these class folders."""
    taken = {path.name for path in classes}
    folder = next(iter(classes)).parent
    return [
        ("hidden" if _is_hidden(name) else "outside class folders", os.path.join(folder, name))
        for name in sorted(os.listdir(folder))
        if name not in taken
    ]


def _images(folder: Path, left_out: LeftOut) -> list[Path]:
    """The images of one class, in its folder or in folders within, in ImageFolder's order.

    Links are followed, and each folder is read once. What is not read is added to `left_out`.
    """
    found: list[tuple[str, str]] = []
    seen = {os.path.realpath(folder)}

    def walk(inner: str) -> None:
        for entry in sorted(os.scandir(inner), key=lambda entry: entry.name):
            reason = None
            if _is_hidden(entry.name):
                reason = "hidden"
            elif entry.is_dir():
                real = os.path.realpath(entry.path)
                if real in seen or os.path.realpath(inner).startswith(os.path.join(real, "")):
                    reason = "linked again"
                else:
                    seen.add(real)
                    walk(entry.path)
            elif entry.name.lower().endswith(SUFFIXES):
                found.append((inner, entry.name))
            else:
                reason = os.path.splitext(entry.name)[1].lower() or "without an ending"
            if reason:
                left_out.append((reason, entry.path))

    walk(str(folder))
    if not found:
        kinds = ", ".join(SUFFIXES)
        raise UserError(f"{folder}: has no image ({kinds}); add some, or delete it in all splits")
    return [Path(inner, name) for inner, name in sorted(found)]


def _summary(root: Path, left_out: LeftOut) -> list[str]:
    """One line that says how many files and folders are left out, why, and names one for each."""
    if not left_out:
        return []
    reasons = Counter(reason for reason, _ in left_out).most_common()
    first = {reason: os.path.relpath(path, root) for reason, path in reversed(left_out)}
    shown = [f"{count:,} {reason} ({first[reason]})" for reason, count in reasons[:5]]
    if others := sum(count for _, count in reasons[5:]):
        shown.append(f"{others:,} others")
    things = "file or folder is" if len(left_out) == 1 else "files or folders are"
    return [f"{root}: {len(left_out):,} {things} left out: {', '.join(shown)}"]
