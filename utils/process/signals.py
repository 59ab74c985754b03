"""SIGINT and SIGTERM: a training step that has begun is finished first."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopped(BaseException):
    """The run was told to stop; `number` is the signal's.

    Like KeyboardInterrupt it passes by those who catch every Exception.
    """

    advice = "the same command starts again"

    def __init__(self, number: int) -> None:
        self.number = number

    def __str__(self) -> str:
        return f"stopped by {signal.Signals(self.number).name}; {self.advice}"


class StopSignals:
    """Raises Stopped where a signal finds the run, or, within `deferred`, at the next `check`.

    A second signal does not wait. As a context manager it brings back the former handlers.
    """

    def __init__(self) -> None:
        self.pending = 0  # the number of a signal that has come
        self._deferring = False
        self._former: dict[int, object] = {}

    def __enter__(self) -> "StopSignals":
        for number in SIGNALS:
            if signal.getsignal(number) != signal.SIG_IGN:  # as of a job that nohup started
                self._former[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        self._deferring = True
        try:
            yield
        finally:
            self._deferring = False
        self.check()

    def check(self) -> None:
        """Raise Stopped if a signal has come."""
        if self.pending:
            raise Stopped(self.pending)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        waits = self._deferring and not self.pending
        self.pending = number
        if not waits:
            raise Stopped(number)
