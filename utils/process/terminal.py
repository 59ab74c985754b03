"""Lines and progress bars for people; a script goes on when they cannot be written any more."""

import contextlib
import os
import sys
from typing import Any

from tqdm import tqdm

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


class ProgressBar:
    """tqdm's bar on standard error, if that is a terminal; a bar that cannot be drawn is dropped.

    `options` are tqdm's own.
    """

    def __init__(self, title: str, total: int, **options: Any) -> None:
        terminal = sys.stderr is not None and not sys.stderr.closed and sys.stderr.isatty()
        self.bar = None
        if terminal:
            with contextlib.suppress(OSError):
                self.bar = tqdm(desc=title, total=total, leave=False, **options)

    def advance_to(self, done: int, text: str | None = None) -> None:
        """Show that `done` of the total are done and, beside the bar, `text`."""
        if self.bar is None:
            return
        try:
            if text is not None:
                self.bar.set_postfix_str(text, refresh=False)
            self.bar.update(done - self.bar.n)
        except OSError:  # the terminal has gone
            self.bar = None

    def close(self) -> None:
        if self.bar is not None:
            with contextlib.suppress(OSError):
                self.bar.close()
