"""Watching an epoch: losses and accuracies are read back from the device in blocks."""

import math
import time
from types import TracebackType

import torch
from torch import Tensor
from tqdm import tqdm

from utils.process.errors import RunError

READ_BACK_SECONDS = 0.5


class EpochProgress:
    """Collects each step's loss and accuracy, and shows a bar when standard error is a terminal.

    Reading a number back waits for the device; it happens twice a second and at the end. That is
    when a loss that is not finite raises RunError. `done` is what another object's `done` gave.
    """

    def __init__(self, title: str, steps: int, done: dict[str, list] | None = None) -> None:
        self._title = title
        done = done or {"losses": [], "accuracies": [], "sizes": []}
        self.losses: list[float] = list(done["losses"])
        self.accuracies: list[float] = list(done["accuracies"])  # percent
        self._sizes: list[int] = list(done["sizes"])
        self._waiting: list[Tensor] = []
        self._last_read = time.monotonic()
        self._bar = tqdm(
            desc=title, total=steps, initial=len(self.losses), unit="step", leave=False,
            disable=None,
        )  # fmt: skip

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

    def record(self, loss: Tensor, logits: Tensor, targets: Tensor) -> None:
        """Note one step: `loss` is the batch's mean, `logits` (batch, classes)."""
        correct = (logits.detach().argmax(1) == targets).sum()
        self._waiting.append(torch.stack([loss.detach().float(), correct]))
        self._sizes.append(len(targets))
        self._bar.update()
        if time.monotonic() - self._last_read > READ_BACK_SECONDS:
            self._read_back()

    def done(self) -> dict[str, list]:
        """All steps so far, for another object to go on from."""
        self._read_back()
        return {"losses": self.losses, "accuracies": self.accuracies, "sizes": self._sizes}

    @property
    def loss(self) -> float:
        """The mean over the batches read back so far."""
        return sum(self.losses) / len(self.losses)

    @property
    def accuracy(self) -> float:
        """In percent, over the images read back so far."""
        weighted = zip(self.accuracies, self._sizes, strict=False)
        return sum(a * n for a, n in weighted) / sum(self._sizes[: len(self.accuracies)])

    def _read_back(self) -> None:
        sizes = self._sizes[len(self.losses) :]
        if sizes:
            for (loss, correct), size in zip(
                torch.stack(self._waiting).tolist(), sizes, strict=True
            ):
                if not math.isfinite(loss):
                    last = f"{self.losses[-1]:.4g}" if self.losses else "before this epoch"
                    raise RunError(
                        f"{self._title}, step {len(self.losses) + 1}: the loss is {loss}, the last"
                        f" finite one was {last}; lower --lr or --tau"
                    )
                self.losses.append(loss)
                self.accuracies.append(100 * correct / size)
            self._waiting.clear()
            if not self._bar.disable:
                self._bar.set_postfix_str(f"loss {self.loss:.4f}, accuracy {self.accuracy:.2f} %")
        self._last_read = time.monotonic()
