"""SIGINT and SIGTERM: the run ends after the current training step."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopped(BaseException):
    """Raised to end the run after a signal; `number` is the signal's number.

    It is no Exception, as KeyboardInterrupt is none, so that `except Exception` does not catch it.
    """

    advice = "the same command starts again"

    def __init__(self, number: int) -> None:
        self.number = number

    def __str__(self) -> str:
        return f"stopped by {signal.Signals(self.number).name}; {self.advice}"


class StopSignals:
    """While this context is entered, SIGINT and SIGTERM raise Stopped.

    They raise it at once, or, within `deferred`, at its end or the next `check`. A second signal
    always raises it at once. On exit the former handlers are restored.
    """

    def __init__(self) -> None:
        self.pending = 0  # the number of the last signal received
        self._deferring = False
        self._former: dict[int, object] = {}

    def __enter__(self) -> "StopSignals":
        for number in SIGNALS:
            if signal.getsignal(number) != signal.SIG_IGN:  # ignored in a job started by nohup
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
        """Raise Stopped if a signal was received."""
        if self.pending:
            raise Stopped(self.pending)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        waits = self._deferring and not self.pending
        self.pending = number
        if not waits:
            raise Stopped(number)
