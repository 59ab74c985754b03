"""User errors, reported in one line."""

import contextlib
import os
import sys
from collections.abc import Callable

import torch

from utils.process.signals import Stopped
from utils.process.startup import end_start


class UserError(Exception):
    """Something the user can put right; the text names the flag or file and the way out.

    It ends a script with exit status 2 and that one line on standard error.
    """

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))


class RunError(UserError):
    """The same for what goes wrong after work has begun: exit status 1."""


def warn(message: str) -> None:
    """Report in one line what went wrong without ending the run."""
    _print_error(f"warning: {message}")


def notify(message: str) -> None:
    """Report in one line, to people, what takes time or room; results go to standard output."""
    _print_error(f"note: {message}")


def exit_status(main: Callable[[], None]) -> int:
    """Run `main`; report what the user can put right in one line instead of a traceback."""
    end_start()
    try:
        main()
        print(end="", flush=True)  # what fails at the end of the process cannot be reported
    except RunError as error:
        return _report(str(error), 1)
    except UserError as error:
        return _report(str(error), 2)
    except Stopped as stopped:
        return _report(str(stopped), 128 + stopped.number)
    except KeyboardInterrupt:
        return _report("stopped by the keyboard", 130)
    except OSError as error:  # most likely of standard output: files have errors of their own
        if error.filename is None:
            with contextlib.suppress(OSError):
                sys.stdout.close()
        return _report(f"cannot write {error.filename or 'the output'} ({error.strerror})", 1)
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "allocate memory" in str(
            error
        ):
            return _report("out of memory; choose a smaller batch size or network", 1)
        raise
    return 0


def _report(message: str, status: int) -> int:
    _print_error(f"error: {message}")
    return status


def _print_error(line: str) -> None:
    """Write a line to standard error, or to nowhere when its reader has gone."""
    try:
        print(line, file=sys.stderr, flush=True)
    except (OSError, ValueError):  # ValueError: this process closed it
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - open until the end
