"""The four arrays of a data set, as .npz files hold them."""

import zipfile
from pathlib import Path

import numpy as np

from utils.process.errors import UserError
from utils.process.memory import available_memory

# x_train and x_test: uint8 (images, side, side, channels) or, grey, (images, side, side);
# y_train and y_test: integers (images,).
Arrays = dict[str, np.ndarray]

KEYS = ("x_train", "y_train", "x_test", "y_test")


def check_memory(size: int, source: Path) -> None:
    """Raise UserError unless memory holds `size` bytes of images, and a half more to convert them.

    `source` is named as what holds them.
    """
    free = available_memory()
    if free is not None and 1.5 * size > free:
        raise UserError(
            f"{source}: its images take {size / 1e9:,.1f} GB, and memory has {free / 1e9:,.1f} GB"
            " left, of which they may take two thirds; give a smaller --image_size or fewer images"
        )


def read_npz(path: Path, keys: tuple[str, ...] = KEYS, optional: tuple[str, ...] = ()) -> Arrays:
    """Read the arrays called `keys`, and those of `optional` that there are.

    Raises UserError if the file is not such an .npz file, or holds more than memory does.
    """
    if path.is_dir():
        raise UserError(f"{path}: is a folder where a file is to be; move it away")
    try:
        with zipfile.ZipFile(path) as archive:
            declared = sum(member.file_size for member in archive.infolist())
        check_memory(declared, path)
        with np.load(path, allow_pickle=False) as file:
            arrays = {key: file[key] for key in (*keys, *optional) if key in file}
    except UserError:
        raise
    except MemoryError:
        raise UserError(f"{path}: holds more than memory does; replace it") from None
    except Exception as error:  # a damaged file fails in whatever way its bytes lead to
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(
            f"{path}: cannot be read as .npz, it may be truncated ({reason}); replace it"
        ) from None
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
    if labels.shape != (len(images),) or labels.dtype.kind not in "iu":
        form = f"{labels.dtype} {labels.shape}"
        raise refuse("y", f"must hold one integer for each of {len(images)} images, not {form}")
    if labels.min() < 0 or labels.max() >= classes:
        extent = f"{labels.min()} ... {labels.max()}"
        raise refuse("y", f"must hold labels 0 ... {classes - 1}, not {extent}")
    return images


def check_own_arrays(arrays: Arrays, source: Path) -> list[str]:
    """Check the arrays of a data set of unknown form, and give the images channels last in place.

    Returns the names of the classes, which the array `classes`, removed here, may hold. Raises
    UserError unless the images of both splits are alike and the training labels are 0, 1, 2 ...
    """
    train, labels = arrays["x_train"], arrays["y_train"]
    shape = train.shape[1:] if train.ndim == 4 else (*train.shape[1:], 1)
    if train.ndim not in (3, 4) or shape[2] not in (1, 3) or 0 in shape:
        raise UserError(
            f"{source}: x_train must be uint8 (images, height, width, 1 or 3) or (images, height,"
            f" width), not {train.dtype} {train.shape}; replace the file"
        )
    present = np.unique(labels) if labels.dtype.kind in "iu" and labels.size else np.arange(1)
    classes = max(int(present.max()) + 1, 1)
    for split in ("train", "test"):
        keys = f"x_{split}", f"y_{split}"
        arrays[keys[0]] = check_array(*(arrays[key] for key in keys), split, shape, classes, source)
    if len(present) != classes:
        missing = next(label for label in range(classes) if label not in present)
        raise UserError(
            f"{source}: y_train has no image of label {missing}, and some of {classes - 1}; number"
            " the classes 0, 1, 2 ..."
        )
    if classes == 1:
        raise UserError(f"{source}: y_train has one class; two are needed; replace the file")
    names = arrays.pop("classes", np.arange(classes).astype(str))
    if names.dtype.kind != "U" or names.shape != (classes,):
        raise UserError(
            f"{source}: classes must hold the name of each of {classes} classes, not {names.dtype}"
            f" {names.shape}; replace or remove it"
        )
    return names.tolist()
