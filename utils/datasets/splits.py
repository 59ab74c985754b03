"""Which images of a data set are for training and which for testing, by the names people give."""

from collections.abc import Callable, Collection, Hashable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from utils.datasets.arrays import Arrays
from utils.process.errors import UserError, notify

ADVICE = "--test_fraction 0.2, which makes a fifth of the images of each class test images"

# By kind, how splits are called, in any case.
SPELLINGS = {
    "train": ("train", "training"),
    "test": ("test", "testing"),
    "val": ("val", "valid", "validation"),
}


@dataclass(frozen=True)
class Source:
    """A data set that was found and not yet read.

    `place` is named in messages, and `mark` changes with the data. `kinds` has "train" and "test"
    as far as they are there; `read` gives their arrays and, where classes have names, the array
    `classes`. `notes` are lines for people; `advice` says how to give test images. `side` is the
    default of images that are resized as they are read.
    """

    place: Path
    mark: Hashable
    kinds: Collection[str]
    read: Callable[[], Arrays]
    notes: Collection[str]
    advice: str
    side: int | None = None


def find_splits(
    names: Iterable[str], place: Path, *forms: tuple[str, ...]
) -> dict[str, tuple[str, ...]]:
    """By kind of split, in the order of SPELLINGS, those of `names` that make it up.

    A form, such as `("x_{}", "y_{}")`, says how they are written; all of them must be there. Raises
    UserError, which names `place`, where a kind of split is there twice.
    """
    written: dict[str, list[str]] = {}
    for name in sorted(names):
        written.setdefault(name.lower(), []).append(name)
    found: dict[str, tuple[str, ...]] = {}
    for kind, spellings in SPELLINGS.items():
        candidates = [tuple(part.format(s) for part in form) for s in spellings for form in forms]
        there = [parts for parts in candidates if written.keys() >= set(parts)]
        alike = [name for parts in there for name in written[parts[0]]]
        if len(alike) > 1:
            raise UserError(f"{place}: has both {alike[0]} and {alike[1]}; keep one of them")
        if there:
            found[kind] = tuple(written[part][0] for part in there[0])
    return found


def note_of_test(place: Path, tests: Mapping[str, str], taken: str | None) -> list[str]:
    """A note that says which split is taken for testing, where it is not simply the test split.

    `tests` has the names of "test" and "val" as far as they are there; `taken` is one of them.
    """
    if taken is None or list(tests) == ["test"]:
        return []
    rest = "".join(f"; {name} is left out" for kind, name in tests.items() if kind != taken)
    return [f"{place}: the test images are those of {tests[taken]}{rest}"]


def check_splits(source: Source, test_fraction: float, test_alone: bool) -> None:
    """Raise UserError unless there are images for training and for testing.

    Those for testing are a split, or `test_fraction` of those for training. With `test_alone` they
    are enough.
    """
    if "test" not in source.kinds and not test_fraction:
        way = "" if test_alone else f", or give {ADVICE}"
        raise UserError(f"{source.place}: has no test images; {source.advice}{way}")
    if "train" not in source.kinds and not test_alone:
        raise UserError(
            f"{source.place}: has no training images; add some, or test a model that was trained on"
            " the same classes, with test_prune.py --model_path"
        )
    if "test" in source.kinds and test_fraction and not test_alone:
        raise UserError(
            f"--test_fraction {test_fraction:g}: {source.place} has test images; leave it out"
        )


def split_off(arrays: Arrays, fraction: float, classes: Collection[str], place: Path) -> None:
    """Make this fraction of the training images of each class, at least one, the test images.

    The choice depends on the labels and their order alone, and NumPy keeps it the same in every
    version. Raises UserError for a class of one image.
    """
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
