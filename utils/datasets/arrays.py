"""The four arrays of a data set, as .npz files hold them."""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from utils.process.errors import UserError, reason

# x_train and x_test: uint8 (images, side, side, channels) or, grey, (images, side, side);
# y_train and y_test: integers (images,).
Arrays = dict[str, np.ndarray]
CGROUP = Path("/sys/fs/cgroup")  # of a container, version 2


def available_memory() -> int | None:
    """The bytes that this process can still take, or None where the system does not say."""
    found = []
    with contextlib.suppress(OSError, KeyError, ValueError):
        found.append(1024 * _table(Path("/proc/meminfo"))["MemAvailable:"])
    with contextlib.suppress(OSError, KeyError, ValueError):
        limit = int((CGROUP / "memory.max").read_text())  # "max" without one
        taken = int((CGROUP / "memory.current").read_text())
        # Pages of files count as taken, but give way; those of shared memory do not.
        usage = _table(CGROUP / "memory.stat")
        found.append(limit - taken + usage["file"] - usage["shmem"])
    return min(found, default=None)


def _table(path: Path) -> dict[str, int]:
    """The first two words of each line."""
    return {words[0]: int(words[1]) for words in map(str.split, path.read_text().splitlines())}


def check_memory(size: int, source: Path) -> None:
    """Raise UserError unless memory holds `size` bytes of images, and half as much again."""
    free = available_memory()
    if free is not None and 1.5 * size > free:
        raise UserError(
            f"{source}: its images take {size / 1e9:,.1f} GB, and memory has {free / 1e9:,.1f} GB"
            " left, of which they may take two thirds; give a smaller --image_size or fewer images"
        )


@contextlib.contextmanager
def reading(path: Path, kind: str) -> Iterator[None]:
    """What goes wrong in reading this file, which is to be of this kind, becomes a UserError."""
    try:
        yield
    except (UserError, MemoryError):
        raise
    except Exception as error:  # damaged bytes can raise any error
        problem = f"cannot be read as {kind} ({reason(error)})"
        raise UserError(f"{path}: {problem}; replace or delete it") from None


def read_array(path: Path, key: str) -> np.ndarray:
    """The array `key` of a file; raises UserError without one, or if memory does not hold it."""
    with reading(path, ".npz"), np.load(path, allow_pickle=False) as file:
        if f"{key}.npy" not in file.zip.namelist():
            raise UserError(f"{path}: holds no {key}; replace it")
        check_memory(file.zip.getinfo(f"{key}.npy").file_size, path)
        return file[key]


def check_arrays(arrays: Arrays, shape: tuple, classes: int, source: object) -> None:
    """Put channels last, and raise UserError unless images and labels are right.

    Images are of this shape; one channel may be missing. Labels are 0 ... `classes` - 1. Where
    there are test images alone, the arrays for training become empty ones.
    """
    for split in [split for split in ("train", "test") if f"x_{split}" in arrays]:
        images, labels = arrays[f"x_{split}"], arrays[f"y_{split}"]
        if images.ndim == 3:
            images = arrays[f"x_{split}"] = images[..., None]
        problem = None
        if images.dtype != np.uint8 or images.shape[1:] != shape or len(images) == 0:
            form = f"(1 or more images, {', '.join(map(str, shape))})"
            problem = f"x_{split} must be uint8 {form}, not {images.dtype} {images.shape}"
        elif labels.shape != (len(images),) or labels.dtype.kind not in "iu":
            form = f"one label, an integer, for each of {len(images)} images"
            problem = f"y_{split} must hold {form}, not {labels.dtype} {labels.shape}"
        elif labels.min() < 0 or labels.max() >= classes:
            extent = f"{labels.min()} ... {labels.max()}"
            problem = f"y_{split} must hold labels 0 ... {classes - 1}, not {extent}"
        if problem:
            raise UserError(f"{source}: {problem}; replace the file")
    if "x_train" not in arrays:
        arrays |= {f"{array}_train": arrays[f"{array}_test"][:0] for array in "xy"}


def check_own_arrays(arrays: Arrays, source: Path, known: Sequence[str]) -> list[str]:
    """Check the arrays of a data set of unknown form; returns the names of its classes.

    The array `classes`, removed here, may hold them; test images that stand alone are otherwise of
    the classes `known`. Raises UserError unless all images are alike and the training labels are
    0, 1, 2 ...
    """
    first = "train" if "x_train" in arrays else "test"
    images, labels = arrays[f"x_{first}"], arrays[f"y_{first}"]
    shape = images.shape[1:] + (1,) * (images.ndim == 3)
    if len(shape) != 3 or shape[2] not in (1, 3) or 0 in shape:
        shape = ("height", "width", "1 or 3")  # for the message: no array has this shape
    names = arrays.pop("classes", np.array(known) if first == "test" else None)
    count = int(labels.max()) + 1 if labels.dtype.kind in "iu" and labels.size else 1
    count = names.size if first == "test" else count
    check_arrays(arrays, shape, count, source)
    if first == "train" and not 1 < count == len(np.unique(labels)):
        raise UserError(
            f"{source}: y_train has {len(np.unique(labels))} different labels up to {count - 1};"
            " number the classes 0, 1, 2 ...; two are needed"
        )
    names = np.arange(count).astype(str) if names is None else names
    if names.dtype.kind != "U" or names.shape != (count,):
        raise UserError(
            f"{source}: classes must hold the name of each of {count} classes, not {names.dtype}"
            f" {names.shape}; replace or remove it"
        )
    return names.tolist()
