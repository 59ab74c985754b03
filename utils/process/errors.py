"""Mistakes of the user's, told in one line."""

import contextlib
import sys
from collections.abc import Callable

import torch

from utils.process.signals import Stopped


class UserError(Exception):
    """Something the user can put right; the text names the flag or file and the way out.

    It ends a script with exit status 2 and that one line on standard error.
    """

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))


class RunError(UserError):
    """The same for what goes wrong after work has begun: exit status 1."""


def warn(message: str) -> None:
    """Tell in one line what went wrong without ending the run."""
    print(f"warning: {message}", file=sys.stderr)


def exit_status(main: Callable[[], None]) -> int:
    """Run `main`; report what the user can put right in one line instead of a traceback."""
    try:
        main()
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
        if isinstance(error, BrokenPipeError):  # the reader has gone: nobody is left to be told
            return 1
        return _report(f"cannot write {error.filename or 'the output'} ({error.strerror})", 1)
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "allocate memory" in str(
            error
        ):
            return _report("out of memory; choose a smaller batch size or network", 1)
        raise
    return 0


def _report(message: str, status: int) -> int:
    print(f"error: {message}", file=sys.stderr)
    return status
