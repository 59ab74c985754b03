"""Errors that end a script with one line and an exit status, and lines for people."""

import contextlib
import functools
import gc
import io
import os
import sys
import textwrap
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from traceback import extract_tb

import torch

from utils.process.signals import Stopped


class ScriptError(Exception):
    """Ends a script with one line on standard error and the exit status `status`.

    The message names the flag or file, says what is wrong and what to do.
    """

    status: int

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))


class UserError(ScriptError):
    """Bad input that is found before any work starts."""

    status = 2


class RunError(ScriptError):
    """A failure after work has started, such as a full disk."""

    status = 1


def say(text: str) -> None:
    """Print a line to standard output at once.

    When its reader has gone, as `head` does, one warning says so and further lines are dropped.
    """
    try:
        print(text, flush=True)
    except (OSError, ValueError) as error:  # ValueError: it was closed by this process
        reason = getattr(error, "strerror", None) or str(error)
        warn(f"standard output cannot be written ({reason}); the work goes on, and its log")
        # From here on standard output is the null device, which also takes the rest of the buffer.
        with contextlib.suppress(OSError, ValueError, AttributeError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def warn(message: str) -> None:
    """Report in one line a problem that does not end the run."""
    _print_error(f"warning: {message}")


@functools.cache
def notify(message: str) -> None:
    """Tell people in one line, once, what takes time or room; results go to standard output."""
    _print_error(f"note: {message}")


def reason(error: BaseException) -> str:
    """The type of an error and the first line of its message or, without one, its place."""
    text = str(error).strip().partition("\n")[0]
    if not text and error.__traceback__ is not None:
        place = extract_tb(error.__traceback__)[-1]
        text = f"{Path(place.filename).name}, line {place.lineno}"
    return f"{type(error).__name__}: {textwrap.shorten(text, 200, placeholder='...')}"


def exit_status(main: Callable[[], None]) -> int:
    """Run `main` and return the exit status; expected errors are reported without a traceback."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        # The parent process closed it, and the next file would get its number, and with it the
        # messages of libraries.
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115 - open until the end
    if isinstance(sys.stdout, io.TextIOWrapper):  # it escapes what it has no code for
        sys.stdout.reconfigure(errors="backslashreplace")
    if not gc.get_freeze_count():  # modules stay: to search them for garbage takes 0.5 s in all
        gc.freeze()
    try:
        main()
        print(end="", flush=True)  # what fails at the end of the process cannot be reported
        return 0
    except (ScriptError, Stopped) as error:
        message, status = str(error), error.status
    except KeyboardInterrupt:
        message, status = "stopped by the keyboard", 130
    except OSError as error:  # probably of standard output: errors of files are ScriptErrors
        if error.filename is None:
            with contextlib.suppress(OSError):
                sys.stdout.close()
        message, status = f"cannot write {error.filename or 'the output'} ({error.strerror})", 1
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        message, status = "out of memory; choose a smaller batch size or network", 1
    _print_error(f"error: {message}")
    return status


def require(flag: str, *modules: str) -> None:
    """Raise UserError, which names `flag`, unless these modules are installed; imports none."""
    if missing := [name for name in modules if find_spec(name) is None]:
        raise UserError(
            f"{flag}: needs {', '.join(missing)}; pip install -r requirements-optional.txt"
        )


def is_out_of_memory(error: Exception) -> bool:
    """Whether memory ran out on any device: only PyTorch's own allocators have a type for it."""
    kinds = MemoryError, torch.OutOfMemoryError
    signs = "allocate memory", "CUDA error: out of memory", "STATUS_ALLOC_FAILED"
    return isinstance(error, kinds) or any(sign in str(error) for sign in signs)


def _print_error(line: str) -> None:
    """Write a line to standard error, or to nowhere when its reader has gone."""
    try:
        print(line, file=sys.stderr, flush=True)
    except (OSError, ValueError):  # ValueError: this process closed it
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - open until the end
