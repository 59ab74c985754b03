"""Which images of a data set are for training and which for testing, by the names people give."""

from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np

from utils.datasets.arrays import Arrays, check_memory
from utils.process.errors import UserError, notify

ADVICE = "--test_fraction 0.2, which makes a fifth of the images of each class test images"
# How splits are called, in any case, and which kind of split that is.
KINDS = {"train": "train", "training": "train", "test": "test", "testing": "test"}
KINDS |= dict.fromkeys(("val", "valid", "validation"), "val")


def by_kind(words: Mapping[str, str], place: Path) -> dict[str, str]:
    """By "train", "test" and "val", in this order, the name of that split if there is one.

    `words` has, by name, the word for its kind. Raises UserError where a kind is there twice.
    """
    found: dict[str, str] = {}
    for kind in ("train", "test", "val"):
        names = sorted(name for name, word in words.items() if KINDS.get(word.lower()) == kind)
        if len(names) > 1:
            raise UserError(f"{place}: has both {names[0]} and {names[1]}; keep one of them")
        if names:
            found[kind] = names[0]
    return found


def used_splits(
    found: Mapping[str, str], taken: str | None, place: Path, test_fraction: float, alone: bool
) -> dict[str, str]:
    """The names of the splits for "train" and "test", as far as they are there.

    `found` is what `by_kind` found, and `taken` the kind of split that is for testing. Raises
    UserError unless there are images for training and for testing. Those for testing are a split,
    or will be `test_fraction` of those for training; if they may stand `alone`, they are enough.
    """
    tests = [kind for kind in found if kind != "train"]
    if not tests and not test_fraction:
        way = "" if alone else f", or give {ADVICE}"
        files = "add x_test and y_test or, in folders, test/CLASS/"
        raise UserError(f"{place}: has no test images; {files}{way}")
    if "train" not in found and not alone:
        raise UserError(
            f"{place}: has no training images; add some, or test a model that was trained on the"
            " same classes, with test_prune.py --model_path"
        )
    if tests and test_fraction and not alone:
        raise UserError(f"--test_fraction {test_fraction:g}: {place} has test images; leave it out")
    if tests and tests != ["test"]:
        rest = "".join(f"; {found[kind]} is left out" for kind in tests if kind != taken)
        notify(f"{place}: the test images are those of {found[taken]}{rest}")
    used = {"train": found.get("train"), "test": found.get(taken)}
    return {kind: name for kind, name in used.items() if name is not None}


def split_off(arrays: Arrays, fraction: float, classes: Collection[str], place: Path) -> None:
    """Make this fraction of the training images of each class, at least one, the test images.

    The choice depends on the labels and their order alone, and NumPy keeps it the same in every
    version. Raises UserError for a class of one image, and where memory does not hold a copy.
    """
    check_memory(arrays["x_train"].nbytes, place)
    labels, draws = arrays["y_train"], np.random.RandomState(0)
    chosen = np.zeros(len(labels), bool)
    for label, name in enumerate(classes):
        (members,) = np.nonzero(labels == label)
        if len(members) < 2:
            raise UserError(f"{place}: class {name} has one image; two are needed for a split")
        count = min(max(round(fraction * len(members)), 1), len(members) - 1)
        chosen[draws.permutation(members)[:count]] = True
    for key in "xy":
        whole = arrays[f"{key}_train"]
        arrays[f"{key}_train"], arrays[f"{key}_test"] = whole[~chosen], whole[chosen]
    notify(
        f"{place}: {chosen.sum():,} of {len(labels):,} images, {fraction:g} of each class, are test"
        " images, which are the same for every --seed"
    )


def listed(classes: Collection[str]) -> str:
    """The first few of these names of classes."""
    if not classes:
        return "no class folder"
    more = f" and {len(classes) - 3:,} more" if len(classes) > 3 else ""
    return f"class{'es' * (len(classes) > 1)} {', '.join(list(classes)[:3])}{more}"
