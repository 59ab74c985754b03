"""One process at a time, on one machine or on several that share a folder."""

import contextlib
import os
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from utils.process.errors import UserError

try:
    import fcntl
except ImportError:  # not a POSIX system: there runs are not kept apart
    fcntl = None

# The owner of a lock touches its file every BEAT seconds. After SILENCE seconds without a touch it
# is taken to be dead by other machines, which cannot see its process.
BEAT, SILENCE = 30.0, 300.0
# After so many seconds another machine that takes the same dead owner's lock has been heard of.
SETTLING = 2.0


class LockedError(UserError):
    """Another process holds the lock."""


@contextmanager
def run_lock(path: Path) -> Iterator[None]:
    """Hold the file at `path`, which names this process and its machine.

    On the owner's machine the system lets go of it when the process ends. Another machine, which
    may share the folder without sharing such locks, waits until the owner has been silent for some
    minutes. Raises LockedError, with the other's process, while another one holds it.
    """
    if fcntl is None:
        yield
        return
    made_folder = not path.parent.exists()
    descriptor = _open_locked(path)
    try:
        with _beating(descriptor):
            yield
    finally:
        with contextlib.suppress(OSError):
            if _owner(path) in (_name(), "") and _is_at(descriptor, path):
                path.unlink()
        os.close(descriptor)
        if made_folder:
            with contextlib.suppress(OSError):  # it is empty only if the run was refused
                path.parent.rmdir()


def _open_locked(path: Path) -> int:
    """A descriptor of the locked file at `path`.

    Another process may remove the file before it is locked here; then a new one is opened.
    """
    while True:
        descriptor, is_new = _open(path)
        try:
            locks = _lock(descriptor, path)
            if _is_at(descriptor, path):
                _take(descriptor, path, is_new, locks)
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _open(path: Path) -> tuple[int, bool]:
    """A descriptor of the file, and whether this process has made it: of all machines only one."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644), True
        except FileExistsError:
            return os.open(path, os.O_RDWR | os.O_CREAT, 0o644), False
    except OSError as error:
        raise UserError(
            f"--output_dir: cannot write {path} ({error.strerror}); choose another folder"
        ) from None


def _lock(descriptor: int, path: Path) -> bool:
    """Take the system's lock; False on a file system that has none."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise _locked(path) from None
    except OSError:
        return False
    return True


def _take(descriptor: int, path: Path, is_new: bool, locks: bool) -> None:
    """Write our name, unless a process that the system's lock does not show may hold the file."""
    owner = _owner(path)
    if not is_new and not owner:  # it has just been made, or was left by one that died at once
        time.sleep(SETTLING)
        owner = _owner(path)
    elsewhere = not is_new and (not locks or _machine(owner) != socket.gethostname())
    if elsewhere and owner and _silence(descriptor, path) < SILENCE:
        raise _locked(path)
    with contextlib.suppress(OSError):  # a full disk: the lock holds, but does not name us
        os.truncate(descriptor, 0)
        os.pwrite(descriptor, _name().encode(), 0)
        os.fsync(descriptor)
    if elsewhere:
        time.sleep(SETTLING)
        if _owner(path) != _name():
            raise _locked(path)


@contextmanager
def _beating(descriptor: int) -> Iterator[None]:
    """Within the block, the file is touched every BEAT seconds."""
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(BEAT):
            with contextlib.suppress(OSError):
                os.utime(descriptor)

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _name() -> str:
    return f"{os.getpid()} on {socket.gethostname()}"


def _owner(path: Path) -> str:
    """What the file says of its owner: the process and " on " its machine, if a full disk did not
    prevent it, and in files of older versions the process alone."""
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""


def _machine(owner: str) -> str:
    process, _, machine = owner.partition(" on ")
    return machine or (socket.gethostname() if process else "")


def _silence(descriptor: int, path: Path) -> float:
    """The seconds since the file was touched, by the clock of the file system."""
    with tempfile.TemporaryFile(dir=path.parent) as file:
        return os.fstat(file.fileno()).st_mtime - os.fstat(descriptor).st_mtime


def _is_at(descriptor: int, path: Path) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    return False


def _locked(path: Path) -> LockedError:
    owner = (_owner(path) or "unknown").removesuffix(f" on {socket.gethostname()}")
    return LockedError(
        f"{path}: process {owner} is training with these settings; wait for it, stop it, or choose"
        " another --output_dir"
    )
