"""The built-in data sets: what is known of them, and where they are read from."""

import contextlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from utils.datasets.arrays import Arrays
from utils.datasets.folders import folders_in, labelled
from utils.datasets.images import decoded_once
from utils.process.errors import UserError

# torchvision's classes, and the files or folders that they store a data set in.
LAYOUTS = {
    "cifar10": ("CIFAR10", "cifar-10-batches-py"),
    "cifar100": ("CIFAR100", "cifar-100-python"),
    "mnist": ("MNIST", "MNIST/raw"),
    "svhn": ("SVHN", "train_32x32.mat and test_32x32.mat"),
}
TINY_FOLDERS = ("tiny_imagenet_200", "tiny-imagenet-200")
TINY_SIDE = 64
DIGITS_TEST = 360


def read_torchvision(name: str, data_dir: Path) -> Arrays:
    """Read the data set from torchvision's own layout, which torchvision downloads if absent."""
    from torchvision import datasets  # seconds to import, and .npz files do without it

    kind, layout = LAYOUTS[name]
    splits = ("train", "test") if name == "svhn" else (True, False)
    try:
        # torchvision reports its progress on standard output, which is for results.
        with contextlib.redirect_stdout(sys.stderr):
            held = [getattr(datasets, kind)(data_dir, split, download=True) for split in splits]
    except Exception as error:  # its readers raise whatever the damage leads to
        raise UserError(
            f"--data {name}: {layout} in --data_dir {data_dir} is absent, incomplete or damaged,"
            f" and could not be downloaded ({error}); put {name}.npz there, or delete what is"
            " damaged and connect to the internet"
        ) from None
    arrays = {}
    for split, dataset in zip(("train", "test"), held, strict=True):
        images = np.asarray(dataset.data)
        labels = dataset.labels if name == "svhn" else dataset.targets
        arrays[f"x_{split}"] = images.transpose(0, 2, 3, 1) if name == "svhn" else images
        arrays[f"y_{split}"] = np.asarray(labels, dtype=np.int64)
    return arrays


def read_digits(name: str, data_dir: Path) -> Arrays:
    """The UCI handwritten digits, embedded in scikit-learn: 1437 for training and 360 for test."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    images = np.round(digits.images * (255 / 16)).astype(np.uint8)
    parts = train_test_split(
        images, digits.target, test_size=DIGITS_TEST, random_state=0, stratify=digits.target
    )
    return dict(zip(("x_train", "x_test", "y_train", "y_test"), parts, strict=True))


def read_tiny_imagenet(name: str, data_dir: Path) -> Arrays:
    """Tiny-ImageNet from its authors' folder, decoded once into a cache beside that folder.

    Classes are numbered in the order of their WordNet names. The validation images are the test
    set; their labels come from val/val_annotations.txt or from folders val/WNID.
    """
    root = next((data_dir / n for n in TINY_FOLDERS if (data_dir / n).is_dir()), None)
    if root is None:
        raise UserError(
            f"--data tiny: --data_dir {data_dir} has neither tiny.npz nor {TINY_FOLDERS[0]}/;"
            " unpack the data set's own archive there, or give the folder that it is in"
        )
    try:
        classes = folders_in(root / "train", [])
        train, test = labelled(classes.values(), []), _tiny_validation(root / "val", list(classes))
        return decoded_once(root, {"train": train, "test": test}, TINY_SIDE, exact=True)
    except OSError as error:
        way = "unpack the data set's own archive again"
        raise UserError(f"{error.filename}: {error.strerror}; {way}") from None


def _tiny_validation(folder: Path, classes: list[str]) -> list[tuple[Path, int]]:
    """The images and labels of val/images/ or, where they are sorted, of val/WNID/."""
    if not (folder / "images").is_dir():
        return labelled([folder / wnid for wnid in classes], [])
    annotations, items = folder / "val_annotations.txt", []
    for line in filter(str.strip, annotations.read_text(errors="replace").splitlines()):
        image, wnid = (*line.split(), "")[:2]
        if wnid not in classes:
            raise UserError(f"{annotations}: {image} is of no class in train/; mend it")
        items.append((folder / "images" / image, classes.index(wnid)))
    return items


@dataclass(frozen=True)
class DatasetInfo:
    """What is known of a data set before it is read. `mean` and `std` are of pixels in 0 ... 1."""

    read: Callable[[str, Path], Arrays] | None  # None for one's own
    classes: int
    channels: int
    side: int | None  # None for images of one's own that are not square
    mean: tuple[float, ...]
    std: tuple[float, ...]
    augment: str = "none"  # of the training images: a key of AUGMENTATIONS
    input_side: int | None = None  # of what a network sees, where that is not `side`


# read, classes, channels, side, mean, std, augment, input_side
DATASETS = {
    "cifar10": DatasetInfo(read_torchvision, 10, 3, 32,
        (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010), "crop_flip"),
    "cifar100": DatasetInfo(read_torchvision, 100, 3, 32,
        (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762), "crop_flip"),
    "mnist": DatasetInfo(read_torchvision, 10, 1, 28, (0.1307,), (0.3081,)),
    "svhn": DatasetInfo(read_torchvision, 10, 3, 32, (0.5,) * 3, (0.5,) * 3),
    "tiny": DatasetInfo(read_tiny_imagenet, 200, 3, 64,
        (0.4802, 0.4481, 0.3975), (0.2770, 0.2691, 0.2821), "resized_crop_flip", input_side=32),
    "digits": DatasetInfo(read_digits, 10, 1, 8, (0.3054,), (0.3760,)),
}  # fmt: skip
