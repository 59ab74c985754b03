"""One run of the same settings at a time."""

import contextlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from utils.process.errors import UserError

try:
    import fcntl
except ImportError:  # not a POSIX system: there runs are not kept apart
    fcntl = None


@contextmanager
def run_lock(path: Path) -> Iterator[None]:
    """Hold the file at `path`, which names this process; the system lets go when the process ends.

    Raises UserError, with the other's process, while another one holds it.
    """
    if fcntl is None:
        yield
        return
    made_folder = not path.parent.exists()
    descriptor = _open_locked(path)
    try:
        with contextlib.suppress(OSError):  # a full disk: the lock holds, but does not name us
            os.truncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        with contextlib.suppress(OSError):
            if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                path.unlink()
        os.close(descriptor)
        if made_folder:
            with contextlib.suppress(OSError):  # of a run that was refused, it is empty
                path.parent.rmdir()


def _open_locked(path: Path) -> int:
    """A descriptor of the file that is at `path` while the lock is held, not of one removed."""
    while True:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise UserError(
                f"--output_dir: cannot write {path} ({error.strerror}); choose another folder"
            ) from None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.pread(descriptor, 20, 0).decode(errors="replace").strip() or "unknown"
            os.close(descriptor)
            raise UserError(
                f"{path}: process {owner} is training with these settings; wait for it, stop it, or"
                " choose another --output_dir"
            ) from None
        except OSError:  # a file system without locks: runs there are not kept apart
            return descriptor
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                return descriptor
        os.close(descriptor)
