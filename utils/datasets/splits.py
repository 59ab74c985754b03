"""Which images of a data set are for training and which for testing, by the names people give."""

from collections.abc import Callable, Collection, Hashable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from utils.datasets.arrays import Arrays, check_memory
from utils.process.errors import UserError, notify

ADVICE = "--test_fraction 0.2, which makes a fifth of the images of each class test images"
# How splits are called, in any case, and which kind of split that is.
KINDS = {"train": "train", "training": "train", "test": "test", "testing": "test"}
KINDS |= dict.fromkeys(("val", "valid", "validation"), "val")


@dataclass(frozen=True)
class Source:
    """A data set that was found and not yet read.

    `place` is named in messages, and `mark` changes with the data. `kinds` has "train" and "test"
    as far as they are there; `read` gives their arrays and, where classes have names, the array
    `classes`. `notes` are lines for people.
    """

    place: Path
    mark: Hashable
    kinds: Collection[str]
    read: Callable[[], Arrays]
    notes: Collection[str]


def by_kind(names: Iterable[str], place: Path) -> dict[str, str]:
    """Those of `names` that are of "train", "test" and "val", in this order, by that kind.

    Raises UserError, which names `place`, where a kind of split is there twice.
    """
    found: dict[str, str] = {}
    for name in sorted(names):
        kind = KINDS.get(name.lower())
        if kind in found:
            raise UserError(f"{place}: has both {found[kind]} and {name}; keep one of them")
        if kind:
            found[kind] = name
    return {kind: found[kind] for kind in ("train", "test", "val") if kind in found}


def note_of_test(place: Path, tests: Mapping[str, str], taken: str | None) -> list[str]:
    """A note that says which split is taken for testing, where it is not simply the test split.

    `tests` has the names of "test" and "val" as far as they are there; `taken` is one of them.
    """
    if taken is None or list(tests) == ["test"]:
        return []
    rest = "".join(f"; {name} is left out" for kind, name in tests.items() if kind != taken)
    return [f"{place}: the test images are those of {tests[taken]}{rest}"]


def read_source(source: Source, test_fraction: float, test_alone: bool) -> Arrays:
    """The arrays of a data set, after its notes.

    Raises UserError unless there are images for training and for testing. Those for testing are a
    split, or will be `test_fraction` of those for training; with `test_alone` they are enough.
    """
    if "test" not in source.kinds and not test_fraction:
        way = "" if test_alone else f", or give {ADVICE}"
        files = "add x_test and y_test or, in folders, test/CLASS/"
        raise UserError(f"{source.place}: has no test images; {files}{way}")
    if "train" not in source.kinds and not test_alone:
        raise UserError(
            f"{source.place}: has no training images; add some, or test a model that was trained on"
            " the same classes, with test_prune.py --model_path"
        )
    if "test" in source.kinds and test_fraction and not test_alone:
        raise UserError(
            f"--test_fraction {test_fraction:g}: {source.place} has test images; leave it out"
        )
    for note in source.notes:
        notify(note)
    if "train" not in source.kinds:
        notify(f"{source.place}: has test images and none for training")
    return source.read()


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
