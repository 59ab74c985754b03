"""SIGINT, SIGTERM and SIGHUP: a training step that has begun is finished first."""

import signal
from contextlib import ExitStack
from types import FrameType

NAMES = ("SIGINT", "SIGTERM", "SIGHUP")  # the last when a terminal closes; Windows has none
SIGNALS = tuple(getattr(signal, name) for name in NAMES if hasattr(signal, name))


class Stopped(BaseException):
    """The run was told to stop by the signal of this number.

    Like KeyboardInterrupt it is no Exception, so that code that catches every Exception lets it
    pass.
    """

    advice = "the same command starts again"

    def __init__(self, number: int) -> None:
        self.number, self.status = number, 128 + number

    def __str__(self) -> str:
        return f"stopped by {signal.Signals(self.number).name}; {self.advice}"


class StopSignals(ExitStack):
    """Raises Stopped when a signal comes or, once `deferring` is True, notes it in `pending`.

    A second signal does not wait, unless `all_wait`: torchrun passes on to its processes what the
    terminal has sent to all. As a context manager it restores the former handlers at its end.
    """

    def __init__(self, all_wait: bool = False) -> None:
        super().__init__()
        self.deferring, self.all_wait = False, all_wait
        self.pending = 0  # the number of a signal that has come

    def __enter__(self) -> "StopSignals":
        for number in SIGNALS:
            if signal.getsignal(number) != signal.SIG_IGN:  # ignored, for instance, under nohup
                self.callback(signal.signal, number, signal.signal(number, self._handle))
        return self

    def _handle(self, number: int, frame: FrameType | None) -> None:
        waits = self.deferring and (self.all_wait or not self.pending)
        self.pending = number
        if not waits:
            raise Stopped(number)
