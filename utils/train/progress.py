"""The losses and accuracies of an epoch, read back from the device in blocks."""

import math
import time
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from utils.process.errors import RunError
from utils.process.terminal import ProgressBar

READ_BACK_SECONDS = 0.5


class EpochProgress:
    """Collects the loss and accuracy of every step of an epoch, and shows a bar on a terminal.

    Reading a number back waits for the device; it happens twice a second and at the end. A loss
    that is not finite raises RunError then. `earlier` is what `state` gave when the epoch was
    stopped.
    """

    def __init__(self, title: str, steps: int, earlier: dict[str, Any] | None = None) -> None:
        self.title = title
        earlier = earlier or {"losses": [], "accuracies": [], "sizes": []}
        self.losses: list[float] = list(earlier["losses"])
        self.accuracies: list[float] = list(earlier["accuracies"])  # percent
        self._sizes: list[int] = list(earlier["sizes"])
        self.started = time.monotonic()
        self._waiting: list[Tensor] = []
        self._last_read = self.started
        self._bar = ProgressBar(title, steps, initial=len(self.losses), unit="step")

    def __enter__(self) -> "EpochProgress":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is None:
            self._read_back()
        self._bar.close()

    @property
    def steps_done(self) -> int:
        return len(self._sizes)

    @property
    def seconds(self) -> float:
        """Since this object was made."""
        return time.monotonic() - self.started

    @property
    def loss(self) -> float:
        """The mean over the batches read back so far."""
        return sum(self.losses) / len(self.losses)

    @property
    def accuracy(self) -> float:
        """In percent, over the images read back so far."""
        weighted = zip(self.accuracies, self._sizes, strict=False)
        return sum(a * n for a, n in weighted) / sum(self._sizes[: len(self.accuracies)])

    def record(self, loss: Tensor, logits: Tensor, targets: Tensor) -> None:
        """Add a step: the batch's mean loss, its logits (batch, classes), its targets (batch,)."""
        correct = (logits.detach().argmax(1) == targets).sum()
        self._waiting.append(torch.stack([loss.detach().float(), correct]))
        self._sizes.append(len(targets))
        self._bar.advance_to(self.steps_done)
        if time.monotonic() - self._last_read > READ_BACK_SECONDS:
            self._read_back()

    def state(self) -> dict[str, Any]:
        """All steps so far, from which another object goes on."""
        self._read_back()
        return {"losses": self.losses, "accuracies": self.accuracies, "sizes": self._sizes}

    def _read_back(self) -> None:
        sizes = self._sizes[len(self.losses) :]
        if sizes:
            values = torch.stack(self._waiting).tolist()
            for (loss, correct), size in zip(values, sizes, strict=True):
                if not math.isfinite(loss):
                    last = f"{self.losses[-1]:.4g}" if self.losses else "before this epoch"
                    raise RunError(
                        f"{self.title}, step {len(self.losses) + 1}: the loss is {loss}, the last"
                        f" finite one was {last}; lower --lr or --tau"
                    )
                self.losses.append(loss)
                self.accuracies.append(100 * correct / size)
            self._waiting.clear()
            text = f"loss {self.loss:.4f}, accuracy {self.accuracy:.2f} %"
            self._bar.advance_to(self.steps_done, text)
        self._last_read = time.monotonic()
