"""Writing files: each is written completely or not at all."""

import glob
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from utils.process.errors import RunError, UserError


def check_writable(paths: list[Path]) -> None:
    """Raise UserError unless each of these files in --output_dir can be written; creates none."""
    for path in paths:
        folder = path.parent
        try:
            if path.is_dir():
                raise UserError(f"--output_dir: {path} is a folder, not a file; move it")
            folder = next(parent for parent in path.parents if parent.exists())
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            raise UserError(
                f"--output_dir: cannot write in {folder} ({error.strerror}); choose another folder"
            ) from None


def remove_leftovers(paths: list[Path]) -> None:
    """Remove temporary files of these paths, which a killed process left in `atomic_write`."""
    for path in paths:
        for leftover in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
            with suppress(OSError):
                leftover.unlink()


@contextmanager
def atomic_write(path: Path, mode: str = "w", keep_former: Path | None = None) -> Iterator[IO]:
    """Open a temporary file that is renamed to `path` when the block ends without an error.

    The file that was at `path` is replaced, or renamed to `keep_former` if that is not None.
    Missing folders are made. Raises RunError when writing fails; the file that was at `path` is
    then still there or at `keep_former`.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(temporary, mode) as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            if keep_former is not None and path.is_file():
                os.replace(path, keep_former)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise RunError(f"cannot write {path} ({error.strerror or error})") from error


def append(path: Path, content: bytes, size: int) -> None:
    """Append to the first `size` bytes of a file, and wait until it is on the disk.

    Raises RunError when writing fails, after which the file may end in a part of the content.
    """
    try:
        with open(path, "r+b") as file:
            file.truncate(size)
            file.seek(size)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise RunError(f"cannot write {path} ({error.strerror or error})") from error
