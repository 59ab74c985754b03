"""Lines for people; a script goes on when they cannot be written any more."""

import contextlib
import os
import sys

from utils.process.errors import warn


def say(text: str) -> None:
    """Print a line to standard output at once.

    When its reader has gone, as `head` does, one warning says so and further lines are dropped.
    """
    try:
        print(text, flush=True)
    except (OSError, ValueError) as error:  # ValueError: it was closed by this process
        reason = getattr(error, "strerror", None) or str(error)
        with contextlib.suppress(OSError):
            warn(f"standard output cannot be written ({reason}); the work goes on, and its log")
        # From here on standard output is the null device, which also takes the rest of the buffer.
        with contextlib.suppress(OSError, ValueError, AttributeError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
