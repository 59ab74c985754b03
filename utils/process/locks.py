"""One process at a time: a lock that ends with its process, whatever ends it."""

import contextlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from utils.process.errors import UserError


class LockedError(UserError):
    """Another process holds the lock."""


@contextmanager
def run_lock(path: Path) -> Iterator[None]:
    """Hold the lock file at `path`, which is removed at the end.

    Raises LockedError while another process holds it, and UserError if it cannot be made. Machines
    that share the folder keep each other out if its file system shares locks, as NFS does.
    """
    lock, made_folder = FileLock(path, blocking=False), not os.path.exists(path.parent)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        raise LockedError(
            f"{path}: another process is training with these settings; wait for it, stop it, or"
            " choose another --output_dir"
        ) from None
    except OSError as error:
        raise UserError(
            f"--output_dir: cannot write {path} ({error.strerror}); choose another folder"
        ) from None
    try:
        yield
    finally:
        # Removed while the lock is held. A process that has opened the file before sees that it is
        # gone, and makes a new one.
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
        lock.release()
        if made_folder:
            with contextlib.suppress(OSError):  # it is empty only if the run was refused
                path.parent.rmdir()
