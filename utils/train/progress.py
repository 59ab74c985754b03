"""The losses and accuracies of an epoch, read back from the device in blocks."""

import math
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any

from torch import Tensor

from utils.process.errors import RunError
from utils.process.terminal import ProgressBar
from utils.train.distributed import World

READ_BACK_SECONDS = 0.5
# What helps against losses and weights that are not finite.
REMEDY = "lower --lr, --tau or --weight_decay"


class EpochProgress:
    """Follows the steps of an epoch, and shows a bar with loss and accuracy on a terminal.

    `results` (steps, 3) is on the device: each step writes its mean loss, how many of its images it
    got right, and the optimizer's mean alpha; `sizes` are the numbers of images. Reading results
    back waits for the device; it happens twice a second and at the end. A loss that is not finite
    raises RunError then. `earlier` is what `state` gave when the epoch was stopped. Of several
    processes, each has the results of its part of a batch, and reads back the sums. A step whose
    number in `sparsities` is not 0 is of a pruned network: loss and accuracy of the epoch leave it
    out, unless there is no other.
    """

    def __init__(
        self,
        title: str,
        results: Tensor,
        sizes: Sequence[int],
        earlier: dict[str, Any] | None = None,
        world: World | None = None,
        sparsities: Sequence[float] | None = None,
    ) -> None:
        self.title, self._results, self._sizes = title, results, sizes
        self._sparsities = sparsities or [0.0] * len(sizes)
        self._world = world or World()
        self.losses: list[float] = list(earlier["losses"]) if earlier else []
        self.accuracies: list[float] = list(earlier["accuracies"]) if earlier else []  # percent
        # Earlier versions did not keep these.
        self.alphas: list[float] = list(earlier.get("alphas", [])) if earlier else []
        self._earlier_seconds = earlier.get("seconds", 0.0) if earlier else 0.0
        self.steps_done = len(self.losses)
        self.started = self._last_read = time.monotonic()
        self._bar = ProgressBar(title, len(sizes), initial=self.steps_done, unit="step")

    def __enter__(self) -> "EpochProgress":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            if kind is None:
                self._read_back()
        finally:
            self._bar.close()

    @property
    def complete(self) -> bool:
        return self.steps_done == len(self._sizes)

    @property
    def seconds(self) -> float:
        """Since this object was made, and what the earlier steps took."""
        return time.monotonic() - self.started + self._earlier_seconds

    @property
    def _counted(self) -> list[int]:
        """The steps read back so far in which the network was dense, or all if there is none."""
        done = range(len(self.losses))
        return [i for i in done if not self._sparsities[i]] or list(done)

    @property
    def loss(self) -> float:
        """The mean over the dense network's batches read back so far."""
        return sum(self.losses[i] for i in self._counted) / len(self._counted)

    @property
    def accuracy(self) -> float:
        """In percent, over the dense network's images read back so far."""
        images = sum(self._sizes[i] for i in self._counted)
        return sum(self.accuracies[i] * self._sizes[i] for i in self._counted) / images

    @property
    def effective_weight_decay(self) -> float:
        """The mean of alpha over the steps read back so far; see SFW.mean_alpha."""
        return sum(self.alphas) / max(len(self.alphas), 1)

    def advance(self) -> None:
        """One more step is taken."""
        self.steps_done += 1
        self._bar.advance_to(self.steps_done)
        if self._world.largest(time.monotonic() - self._last_read > READ_BACK_SECONDS):
            self._read_back()

    def state(self) -> dict[str, Any]:
        """The results of all steps so far in plain types, from which another object goes on."""
        self._read_back()
        sizes = list(self._sizes[: self.steps_done])
        return {
            "losses": self.losses,
            "accuracies": self.accuracies,
            "sizes": sizes,
            "alphas": self.alphas,
            "seconds": self.seconds,
        }

    def _read_back(self) -> None:
        first = len(self.losses)
        for step, (loss, correct, alpha) in enumerate(
            self._world.sums(self._results[first : self.steps_done]).tolist(), first
        ):
            if not math.isfinite(loss):
                last = f"{self.losses[-1]:.4g}" if self.losses else "before this epoch"
                pruned = ", or leave out --pruned_steps" if self._sparsities[step] else ""
                raise RunError(
                    f"{self.title}, step {step + 1}: the loss is {loss}, the last finite one was"
                    f" {last}; {REMEDY}{pruned}"
                )
            self.losses.append(loss)
            self.alphas.append(alpha)
            self.accuracies.append(100 * correct / self._sizes[step])
        if self.losses:
            text = f"loss {self.loss:.4f}, accuracy {self.accuracy:.2f} %"
            self._bar.advance_to(self.steps_done, text)
        self._last_read = time.monotonic()
