"""What a script does before its imports, which take seconds."""

import contextlib
import os
import signal
import sys
from types import FrameType


def start_script() -> None:
    """Prepare the process for imports that take seconds; scripts call this before those.

    Until `exit_status` runs the script, Ctrl-C ends the process with one line: an exception would
    come out of some import as a long traceback, or as another exception. A standard stream that the
    parent process closed becomes the null device: otherwise the next file that is opened would take
    its number, and messages of libraries would be written to that file. Characters that standard
    output cannot show are written as escapes. Several processes leave out PyTorch's warnings, which
    each would print; PyTorch reads this setting when it is imported.
    """
    if os.environ.get("WORLD_SIZE", "1") != "1":
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115 - open until the end
    sys.stdout.reconfigure(errors="backslashreplace")  # as standard error does
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not so in a background job
        signal.signal(signal.SIGINT, _end_process)


def end_start() -> None:
    """Make Ctrl-C raise KeyboardInterrupt again, so that the work that it stops can clean up."""
    if signal.getsignal(signal.SIGINT) is _end_process:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _end_process(number: int, frame: FrameType | None) -> None:
    with contextlib.suppress(OSError):
        os.write(2, b"error: stopped by the keyboard\n")
    os._exit(128 + number)
