"""Data sets in .npz files, in the forms that are published."""

import os
from itertools import product
from pathlib import Path

import numpy as np

from utils.datasets.arrays import Arrays, read_array, reading
from utils.datasets.splits import KINDS, by_kind, used_splits
from utils.process.errors import UserError

# How the arrays of images and of labels are called, with the name of their split: by Keras, by
# MedMNIST and, in files of one array each after the data set's name, by Kuzushiji-MNIST.
FORMS = (("x_{}", "y_{}"), ("{}_images", "{}_labels"), ("{}-imgs.npz", "{}-labels.npz"))


def read_packed(
    name: str, data_dir: Path, test_fraction: float, alone: bool
) -> tuple[Arrays, Path] | None:
    """The arrays in `data_dir`/NAME.npz, or in NAME-train-imgs.npz and the like, and that path.

    None if there is no such file. Raises UserError as `used_splits`, and for what is no .npz file
    or has none of these arrays.
    """
    path, start = data_dir / f"{name}.npz", f"{name}-"
    if path.exists():
        with reading(path, ".npz"), np.load(path, allow_pickle=False) as file:
            places = {array: (path, array) for array in file.files}
    else:
        path = data_dir / f"{start}*.npz"
        files = os.listdir(data_dir) if data_dir.is_dir() else []
        ours = [file for file in files if file.startswith(start)]
        places = {file.removeprefix(start): (data_dir / file, "arr_0") for file in ours}
    words, labels_of = {}, {}  # by the name of an array of images: its split, and its labels
    own = {key.lower(): key for key in places}
    for forms, word in product(FORMS, KINDS):
        images, labels = (own.get(form.format(word)) for form in forms)
        if images and labels:
            words[images], labels_of[images] = word, labels
    found = by_kind(words, path)
    if not found and path.exists():
        raise UserError(f"{path}: holds no x_train and y_train, nor x_test and y_test; replace it")
    if not found:
        return None
    taken = "test" if "test" in found else "val"
    arrays = {"classes": read_array(*places["classes"])} if "classes" in places else {}
    for kind, images in used_splits(found, taken, path, test_fraction, alone).items():
        labels = read_array(*places[labels_of[images]])
        column = labels.ndim == 2 and labels.shape[1] == 1
        arrays[f"x_{kind}"] = read_array(*places[images])
        arrays[f"y_{kind}"] = labels[:, 0] if column else labels
    return arrays, path
