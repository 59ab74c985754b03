"""Data sets in .npz files, in the forms that are published."""

import os
import re
from pathlib import Path

from utils.datasets.arrays import Arrays, open_npz, read_array
from utils.datasets.splits import Source, by_kind, note_of_test
from utils.process.errors import UserError

# How the arrays of images and of labels are called, with the name of their split: by Keras, by
# MedMNIST and, in files of one array each after the data set's name, by Kuzushiji-MNIST.
FORMS = (("x_{}", "y_{}"), ("{}_images", "{}_labels"), ("{}-imgs.npz", "{}-labels.npz"))


def find_packed(name: str, data_dir: Path) -> Source | None:
    """The data set in `data_dir`/NAME.npz, or in NAME-train-imgs.npz and the like, if there is one.

    Raises UserError for what is no .npz file or has none of these arrays.
    """
    path, start = data_dir / f"{name}.npz", f"{name}-"
    if path.exists():
        with open_npz(path) as file:
            places = {array: (path, array) for array in file.files}
    else:
        path = data_dir / f"{start}*.npz"
        files = os.listdir(data_dir) if data_dir.is_dir() else []
        ours = [file for file in files if file.startswith(start)]
        places = {file.removeprefix(start): (data_dir / file, "arr_0") for file in ours}
    found = {}  # by kind of split, the names of its images and of its labels
    for images, labels in FORMS:
        words = [m[1] for key in places if (m := re.fullmatch(images.format("(.+)"), key))]
        words = [word for word in words if labels.format(word) in places]
        for kind, word in by_kind(words, path).items():
            found.setdefault(kind, (images.format(word), labels.format(word)))
    if not found and path.exists():
        raise UserError(f"{path}: holds no x_train and y_train, nor x_test and y_test; replace it")
    if not found:
        return None
    tests = {kind: found[kind][0] for kind in ("test", "val") if kind in found}
    taken = next(iter(tests), None)
    used = {"train": found.get("train"), "test": found.get(taken)}
    kinds = [kind for kind, parts in used.items() if parts]

    def read() -> Arrays:
        arrays = {"classes": read_array(*places["classes"])} if "classes" in places else {}
        for kind in kinds:
            images, labels = (read_array(*places[part]) for part in used[kind])
            column = labels.ndim == 2 and labels.shape[1] == 1
            arrays |= {f"x_{kind}": images, f"y_{kind}": labels[:, 0] if column else labels}
        return arrays

    states = [places[part][0].stat() for kind in kinds for part in used[kind]]
    mark = tuple((state.st_size, state.st_mtime_ns) for state in states)
    return Source(path, mark, kinds, read, note_of_test(path, tests, taken))
