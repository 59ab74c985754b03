"""Data sets in .npz files, in the forms that are published."""

import os
from pathlib import Path

from utils.datasets.arrays import Arrays, names_in_npz, one_column, read_npz
from utils.datasets.splits import Source, find_splits, note_of_test
from utils.process.errors import UserError

# How the arrays of images and of labels are called, with the name of their split: by Keras, and by
# MedMNIST.
ARRAYS = (("x_{}", "y_{}"), ("{}_images", "{}_labels"))
# How Kuzushiji-MNIST calls its files, which hold one array each, after the data set's name.
FILES = ("{}-imgs.npz", "{}-labels.npz")


def find_packed(name: str, data_dir: Path) -> Source | None:
    """The data set in `data_dir`/NAME.npz, or in NAME-train-imgs.npz and the like, if there is one.

    Raises UserError for what is no .npz file or has none of these arrays.
    """
    path, start = data_dir / f"{name}.npz", f"{name}-"
    if path.exists():
        names = names_in_npz(path)
        found = find_splits(names, path, *ARRAYS)
        if not found:
            raise UserError(
                f"{path}: holds no x_train and y_train; it needs x_test and y_test, too"
            )
        places = {array: (path, array) for array in names}
    else:
        files = os.listdir(data_dir) if data_dir.is_dir() else []
        inner = [file.removeprefix(start) for file in files if file.startswith(start)]
        found = find_splits(inner, data_dir, FILES)
        if not found:
            return None
        path = data_dir / f"{start}*.npz"
        places = {file: (data_dir / f"{start}{file}", "arr_0") for file in inner}

    tests = {kind: images for kind, (images, _) in found.items() if kind != "train"}
    taken = next(iter(tests), None)
    # Where each of our arrays is: in which file, and under which name.
    arrays = {"classes": places["classes"]} if "classes" in places else {}
    for ours, theirs in (("train", "train"), ("test", taken)):
        for key, array in zip("xy", found.get(theirs, ()), strict=False):
            arrays[f"{key}_{ours}"] = places[array]
    files = {file: [a for f, a in arrays.values() if f == file] for file, _ in arrays.values()}

    def read() -> Arrays:
        held = {(file, a): v for file, of in files.items() for a, v in read_npz(file, of).items()}
        return {ours: one_column(held[place]) for ours, place in arrays.items()}

    mark = tuple((file, file.stat().st_size, file.stat().st_mtime_ns) for file in files)
    kinds = {kind for kind in ("train", "test") if f"x_{kind}" in arrays}
    notes = note_of_test(path, tests, taken)
    return Source(path, mark, kinds, read, notes, "add x_test and y_test")
