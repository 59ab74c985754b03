"""SIGINT and SIGTERM: a training step that has begun is finished first."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopped(BaseException):
    """The run was told to stop by the signal of this number.

    `between_steps` says that it stopped where all of its state fits together and can be saved. Like
    KeyboardInterrupt it is no Exception, so that code that catches every Exception lets it pass.
    """

    advice = "the same command starts again"

    def __init__(self, number: int, between_steps: bool = False) -> None:
        self.number, self.between_steps = number, between_steps

    def __str__(self) -> str:
        return f"stopped by {signal.Signals(self.number).name}; {self.advice}"


class StopSignals:
    """Raises Stopped when a signal comes or, within `deferred`, at the next `check`.

    A second signal does not wait. As a context manager it restores the former handlers at its end.

    `agree` is for a run of several processes, which must stop together: it returns the largest of
    their numbers. A second signal then waits, too, since torchrun passes on what the terminal has
    sent to all.
    """

    def __init__(self, agree: Callable[[int], int] | None = None) -> None:
        self.pending = 0  # the number of a signal that has come
        self._agree = agree
        self._deferring = False
        self._former: dict[int, object] = {}

    def __enter__(self) -> "StopSignals":
        for number in SIGNALS:
            if signal.getsignal(number) != signal.SIG_IGN:  # ignored, for instance, under nohup
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

    def have_come(self) -> bool:
        """Whether a signal has come, to any process."""
        if self._agree is not None:
            self.pending = self._agree(self.pending)
        return self.pending > 0

    def check(self) -> None:
        """Raise Stopped if a signal has come."""
        if self.have_come():
            raise Stopped(self.pending, between_steps=True)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        waits = self._deferring and (self._agree is not None or not self.pending)
        self.pending = number
        if not waits:
            raise Stopped(number)
