"""The four arrays of a data set, as .npz files hold them."""

import contextlib
import zipfile
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

import numpy as np

from utils.process.errors import UserError

# x_train and x_test: uint8 (images, side, side, channels) or, grey, (images, side, side);
# y_train and y_test: integers (images,).
Arrays = dict[str, np.ndarray]

KEYS = ("x_train", "y_train", "x_test", "y_test")


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[zipfile.ZipFile]:
    """The file, whose damage becomes a UserError."""
    if path.is_dir():
        raise UserError(f"{path}: is a folder where a file is to be; move it away")
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except UserError:
        raise
    except MemoryError:
        raise UserError(f"{path}: holds more than memory does; replace it") from None
    except Exception as error:  # a damaged file fails in whatever way its bytes lead to
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(
            f"{path}: cannot be read as .npz, it may be truncated ({reason}); replace it"
        ) from None


def names_in_npz(path: Path) -> list[str]:
    """The names of the arrays in a file; raises UserError if it is no .npz file."""
    with _opened(path) as archive:
        return [name.removesuffix(".npy") for name in archive.namelist()]


def read_npz(path: Path, keys: Collection[str] = KEYS) -> Arrays:
    """Read the arrays called `keys`.

    Raises UserError if the file is not such an .npz file, or if they are more than memory holds.
    """
    with _opened(path), np.load(path, allow_pickle=False) as file:
        arrays = {key: file[key] for key in keys if key in file}
    for key in keys:
        if not isinstance(arrays.get(key), np.ndarray):
            raise UserError(f"{path}: holds no {key}; it needs {', '.join(keys)}")
    return arrays


def check_array(
    images: np.ndarray, labels: np.ndarray, split: str, shape: tuple, classes: int, source: object
) -> np.ndarray:
    """The images with channels last, (images, *shape); raises UserError unless both are right.

    Images of one channel may lack this dimension. Labels must be 0 ... `classes` - 1.
    """

    def refuse(array: str, problem: str) -> UserError:
        return UserError(f"{source}: {array}_{split} {problem}; replace the file")

    if images.ndim == 3:
        images = images[..., None]
    if images.ndim == 4 and len(images) == 0:
        raise refuse("x", "holds no image")
    if images.dtype != np.uint8 or images.shape[1:] != shape:
        form = f"{images.dtype} {images.shape}"
        raise refuse("x", f"must be uint8 (images, {', '.join(map(str, shape))}), not {form}")
    if labels.ndim == 2 and len(labels) == len(images):
        raise refuse("y", f"has {labels.shape[1]} labels for each image, and one is needed")
    if labels.shape != (len(images),) or labels.dtype.kind not in "iu":
        form = f"{labels.dtype} {labels.shape}"
        raise refuse("y", f"must hold one integer for each of {len(images)} images, not {form}")
    if labels.min() < 0 or labels.max() >= classes:
        extent = f"{labels.min()} ... {labels.max()}"
        raise refuse("y", f"must hold labels 0 ... {classes - 1}, not {extent}")
    return images


def one_column(labels: np.ndarray) -> np.ndarray:
    """Labels of shape (images, 1) as (images,), others as they are."""
    return labels[:, 0] if labels.ndim == 2 and labels.shape[1] == 1 else labels


def check_own_arrays(arrays: Arrays, source: Path, known: Sequence[str] = ()) -> list[str]:
    """Check the arrays of a data set of unknown form, and give the images channels last in place.

    Returns the names of the classes, which the array `classes`, removed here, may hold. Test images
    may stand alone; labels without names are then those of the classes `known`. Raises UserError
    unless all images are alike and the training labels are 0, 1, 2 ...
    """
    splits = [split for split in ("train", "test") if f"x_{split}" in arrays]
    first, labels = arrays[f"x_{splits[0]}"], arrays[f"y_{splits[0]}"]
    shape = first.shape[1:] if first.ndim == 4 else (*first.shape[1:], 1)
    if first.ndim not in (3, 4) or shape[2] not in (1, 3) or 0 in shape:
        raise UserError(
            f"{source}: x_{splits[0]} must be uint8 (images, height, width, 1 or 3) or (images,"
            f" height, width), not {first.dtype} {first.shape}; replace the file"
        )
    names, count = arrays.pop("classes", None), _number_of_classes(labels)
    if "x_train" not in arrays:
        names = np.array(known) if names is None else names
        count = names.size
    for split in splits:
        keys = f"x_{split}", f"y_{split}"
        arrays[keys[0]] = check_array(*(arrays[key] for key in keys), split, shape, count, source)
    present = np.unique(labels)
    if "x_train" in arrays and len(present) != count:
        missing = next(label for label in range(count) if label not in present)
        raise UserError(
            f"{source}: y_train has no image of label {missing}, and some of {count - 1}; number"
            " the classes 0, 1, 2 ..."
        )
    if count == 1:
        raise UserError(f"{source}: y_train has one class; two are needed; replace the file")
    names = np.arange(count).astype(str) if names is None else names
    if names.dtype.kind != "U" or names.shape != (count,):
        raise UserError(
            f"{source}: classes must hold the name of each of {count} classes, not {names.dtype}"
            f" {names.shape}; replace or remove it"
        )
    return names.tolist()


def _number_of_classes(labels: np.ndarray) -> int:
    """One more than the greatest label; of what holds no labels, 1."""
    return max(int(labels.max()) + 1, 1) if labels.dtype.kind in "iu" and labels.size else 1
