"""Where the built-in data sets are read from: torchvision's folders, and scikit-learn."""

import contextlib
import sys
from pathlib import Path

import numpy as np

from utils.datasets.arrays import Arrays
from utils.datasets.images import decode_exact, decoded_once, fingerprint
from utils.process.errors import UserError

# The files or folders that torchvision stores a data set in.
LAYOUTS = {
    "cifar10": ("cifar-10-batches-py",),
    "cifar100": ("cifar-100-python",),
    "mnist": ("MNIST",),
    "svhn": ("train_32x32.mat", "test_32x32.mat"),
}
TINY_FOLDERS = ("tiny_imagenet_200", "tiny-imagenet-200")
TINY_SIDE, TINY_CLASSES = 64, 200
DIGITS_TEST = 360


def read_torchvision(name: str, data_dir: Path) -> Arrays:
    """Read the data set from torchvision's own layout, which torchvision downloads if absent."""
    layout = [data_dir / part for part in LAYOUTS[name]]
    absent = [path.name for path in layout if not path.exists()]
    if len(absent) == len(layout):
        _refuse_class_folders(name, data_dir)
    from torchvision import datasets  # seconds to import, and .npz files do without it

    build = {
        "cifar10": lambda train: datasets.CIFAR10(data_dir, train, download=True),
        "cifar100": lambda train: datasets.CIFAR100(data_dir, train, download=True),
        "mnist": lambda train: datasets.MNIST(data_dir, train, download=True),
        "svhn": lambda train: datasets.SVHN(data_dir, "train" if train else "test", download=True),
    }[name]
    new = _missing_folders(data_dir / "MNIST" / "raw")
    try:
        # torchvision reports its progress on standard output, which is for results.
        with contextlib.redirect_stdout(sys.stderr):
            train, test = build(True), build(False)
    except Exception as error:  # its readers raise whatever the damage leads to
        for folder in new:
            with contextlib.suppress(OSError):
                folder.rmdir()
        if absent:
            part = "" if len(absent) == len(layout) else f"{absent[0]} is "
            state, way = f"{part}absent from --data_dir {data_dir}", f"put {name}.npz there"
        else:
            files = " or ".join(map(str, layout))
            state, way = f"{files} is damaged or incomplete", f"delete {files}"
        raise UserError(
            f"--data {name}: {state} and could not be downloaded ({error}); {way} or connect to"
            " the internet"
        ) from None
    arrays = {}
    for split, dataset in (("train", train), ("test", test)):
        images = np.asarray(dataset.data)
        arrays[f"x_{split}"] = images.transpose(0, 2, 3, 1) if name == "svhn" else images
        arrays[f"y_{split}"] = np.asarray(
            dataset.labels if name == "svhn" else dataset.targets, dtype=np.int64
        )
    return arrays


def _refuse_class_folders(name: str, data_dir: Path) -> None:
    """Raise UserError for images in DATA_DIR/NAME/train/CLASS/, which would not be read."""
    folder = data_dir / name
    if any(path.is_dir() for path in folder.glob("train/*")):
        raise UserError(
            f"--data {name}: {folder} holds class folders, and {name} is another data set; give the"
            f" folder a name of your own, and that as --data"
        )


def _missing_folders(folder: Path) -> list[Path]:
    """`folder` and its parents as far as they do not exist, innermost first."""
    return [f for f in (folder, *folder.parents) if not f.exists()]


def read_digits(name: str, data_dir: Path) -> Arrays:
    """The UCI handwritten digits, embedded in scikit-learn: 1437 for training and 360 for test."""
    _refuse_class_folders(name, data_dir)
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    images = np.round(digits.images * (255 / 16)).astype(np.uint8)
    x_train, x_test, y_train, y_test = train_test_split(
        images, digits.target, test_size=DIGITS_TEST, random_state=0, stratify=digits.target
    )
    return {"x_train": x_train, "y_train": y_train, "x_test": x_test, "y_test": y_test}


def read_tiny_imagenet(name: str, data_dir: Path) -> Arrays:
    """Tiny-ImageNet from its authors' folder, decoded once into a cache beside that folder.

    Classes are numbered in the order of their WordNet names. The validation images are the test
    set; their labels come from val/val_annotations.txt or from folders val/WNID.
    """
    root = _tiny_root(data_dir)
    wnids = sorted(path.name for path in _listing(root / "train") if path.is_dir())
    if not 1 <= len(wnids) <= TINY_CLASSES:
        raise UserError(f"{root / 'train'}: has {len(wnids)} classes; 1 to {TINY_CLASSES} are due")
    labels = {wnid: label for label, wnid in enumerate(wnids)}
    splits = {
        "train": [(p, labels[w]) for w in wnids for p in _images(root / "train" / w)],
        "test": _tiny_validation(root / "val", labels),
    }
    cache, mark = data_dir / f"{root.name}.cache.npz", fingerprint(root, splits, TINY_SIDE)
    return decoded_once(root, cache, splits, mark, TINY_SIDE, decode_exact)


def _tiny_root(data_dir: Path) -> Path:
    """The data set's own folder in `data_dir`; raises UserError, with the way out, without one."""
    for name in TINY_FOLDERS:
        if (data_dir / name).is_dir():
            return data_dir / name
    way = "unpack the data set's own archive there"
    alike = [f.parent for f in sorted(data_dir.glob("*/train")) if (f.parent / "val").is_dir()]
    if (data_dir / "train").is_dir():
        way = f"if it is the data set itself, give the folder that it is in: {data_dir.parent}"
    elif alike:
        way = f"if {alike[0].name}/ is the data set, rename it to {TINY_FOLDERS[0]}"
    raise UserError(
        f"--data tiny: --data_dir {data_dir} has neither tiny.npz nor {TINY_FOLDERS[0]}/; {way}"
    )


def _listing(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; unpack the data set's own archive again")
    return sorted(folder.iterdir())


def _images(folder: Path) -> list[Path]:
    """The images of one class, in `folder` or, as shipped, in folder/images."""
    inner = folder / "images"
    images = [p for p in _listing(inner if inner.is_dir() else folder) if p.suffix == ".JPEG"]
    if not images:
        raise UserError(f"{folder}: holds no .JPEG images; unpack the data set's own archive again")
    return images


def _tiny_validation(folder: Path, labels: dict[str, int]) -> list[tuple[Path, int]]:
    annotations = folder / "val_annotations.txt"
    if not annotations.is_file():
        return [(p, y) for w, y in labels.items() for p in _images(folder / w)]
    items = []
    for number, line in enumerate(annotations.read_text(errors="replace").splitlines(), 1):
        image, _, rest = line.partition("\t")
        wnid = rest.partition("\t")[0]
        if not line.strip():
            continue
        if wnid not in labels:
            raise UserError(f"{annotations}, line {number}: no class {wnid!r} in train/; mend it")
        # As shipped, or already sorted into folders.
        places = [
            folder / "images" / image,
            folder / wnid / "images" / image,
            folder / wnid / image,
        ]
        existing = [place for place in places if place.is_file()]
        if not existing:
            raise UserError(
                f"{annotations}, line {number}: {places[0]} is missing; unpack it again"
            )
        items.append((existing[0], labels[wnid]))
    if not items:
        raise UserError(f"{annotations}: names no image; unpack the data set's own archive again")
    return items
