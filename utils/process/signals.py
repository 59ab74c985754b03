"""SIGINT and SIGTERM: a training step that has begun is finished first."""

import signal
from collections.abc import Callable
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopped(BaseException):
    """The run was told to stop by the signal of this number.

    Like KeyboardInterrupt it is no Exception, so that code that catches every Exception lets it
    pass.
    """

    advice = "the same command starts again"

    def __init__(self, number: int) -> None:
        self.number = number

    def __str__(self) -> str:
        return f"stopped by {signal.Signals(self.number).name}; {self.advice}"


class StopSignals:
    """Raises Stopped when a signal comes or, once `deferring` is True, notes it for `received`.

    A second signal does not wait. As a context manager it restores the former handlers at its end.

    `agree` is for a run of several processes, which must stop together: it returns the largest of
    their numbers. A second signal then waits, too, since torchrun passes on what the terminal has
    sent to all.
    """

    def __init__(self, agree: Callable[[int], int] | None = None) -> None:
        self.deferring = False
        self._pending = 0  # the number of a signal that has come
        self._agree = agree
        self._former: dict[int, object] = {}

    def __enter__(self) -> "StopSignals":
        for number in SIGNALS:
            if signal.getsignal(number) != signal.SIG_IGN:  # ignored, for instance, under nohup
                self._former[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)

    def received(self) -> int:
        """The number of a signal that has come, to any process; 0 if none has."""
        if self._agree is not None:
            self._pending = self._agree(self._pending)
        return self._pending

    def _handle(self, number: int, frame: FrameType | None) -> None:
        waits = self.deferring and (self._agree is not None or not self._pending)
        self._pending = number
        if not waits:
            raise Stopped(number)
