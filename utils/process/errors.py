"""User errors and failed runs, reported in one line with an exit status."""

import contextlib
import sys
from collections.abc import Callable

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


def warn(message: str) -> None:
    """Report in one line a problem that does not end the run."""
    print(f"warning: {message}", file=sys.stderr)


def exit_status(main: Callable[[], None]) -> int:
    """Run `main` and return the exit status; expected errors are reported without a traceback."""
    try:
        main()
    except ScriptError as error:
        return _report(str(error), error.status)
    except Stopped as stopped:
        return _report(str(stopped), 128 + stopped.number)
    except KeyboardInterrupt:
        return _report("stopped by the keyboard", 130)
    except OSError as error:  # probably of standard output: errors of files are ScriptErrors
        if error.filename is None:
            with contextlib.suppress(OSError):
                sys.stdout.close()
        if isinstance(error, BrokenPipeError):  # the reader of the output has ended
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
