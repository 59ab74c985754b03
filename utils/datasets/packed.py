"""Data sets in .npz files, by the names that people give to the arrays."""

from pathlib import Path

from utils.datasets.arrays import Arrays, names_in_npz, one_column, read_npz
from utils.datasets.splits import Source, find_splits, note_of_test
from utils.process.errors import UserError

# How the arrays of images and of labels are called, with the name of the split.
FORMS = (("x_{}", "y_{}"),)


def find_packed(name: str, data_dir: Path) -> Source | None:
    """The data set in `data_dir`/NAME.npz, if there is one.

    Raises UserError for what is no .npz file or has none of these arrays.
    """
    path = data_dir / f"{name}.npz"
    if not path.exists():
        return None
    names = names_in_npz(path)
    found = find_splits(names, path, *FORMS)
    if not found:
        raise UserError(f"{path}: holds no x_train and y_train; it needs x_test and y_test, too")
    tests = {kind: images for kind, (images, _) in found.items() if kind != "train"}
    taken = next(iter(tests), None)
    # By our names of arrays, those in the file.
    arrays = {"classes": "classes"} if "classes" in names else {}
    for ours, theirs in (("train", "train"), ("test", taken)):
        if theirs in found:
            arrays |= zip((f"x_{ours}", f"y_{ours}"), found[theirs], strict=True)

    def read() -> Arrays:
        held = read_npz(path, arrays.values())
        return {ours: one_column(held[theirs]) for ours, theirs in arrays.items()}

    status = path.stat()
    mark = path, status.st_size, status.st_mtime_ns
    kinds = {"train", "test"} & {key.removeprefix("x_") for key in arrays}
    return Source(
        path, mark, kinds, read, note_of_test(path, tests, taken), "add x_test and y_test"
    )
