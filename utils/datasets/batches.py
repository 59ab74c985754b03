"""Mini-batches drawn from images that are held whole, as uint8, on the training device."""

from collections.abc import Callable, Iterator

import torch
from torch import Generator, Tensor

Augmentation = Callable[[Tensor, Generator], Tensor]


class Batches:
    """Iterates over (inputs, targets): float32 (batch, channels, side, side), int64 (batch,).

    With a generator the images come in a new order each time and are augmented; without, in their
    own order and as they are. Inputs are (image / 255 - mean) / std, per channel. The last batch
    of a round may be smaller.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        batch_size: int,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        augment: Augmentation | None = None,
        generator: Generator | None = None,
    ) -> None:
        self.images, self.labels, self.batch_size = images, labels, batch_size
        self.augment, self.generator = augment, generator
        mean_, std_ = (torch.tensor(v, device=images.device).view(-1, 1, 1) for v in (mean, std))
        self.scale, self.offset = 1 / (255 * std_), -mean_ / std_

    def __len__(self) -> int:
        return -(-len(self.images) // self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return self.rest_of_round(0, None)

    def rest_of_round(self, done: int, start: Tensor | None) -> Iterator[tuple[Tensor, Tensor]]:
        """The round without its first `done` batches.

        `start` is the generator's state when the round began; None is for a new round.
        """
        if self.generator is None:
            for first in range(done * self.batch_size, len(self.images), self.batch_size):
                chosen = slice(first, first + self.batch_size)
                yield self._normalise(self.images[chosen]), self.labels[chosen]
            return
        now = self.generator.get_state()
        if start is not None:
            self.generator.set_state(start)
        device = self.images.device
        order = torch.randperm(len(self.images), generator=self.generator, device=device)
        if start is not None:
            self.generator.set_state(now)
        for chosen in order.split(self.batch_size)[done:]:
            images = self.images[chosen]
            if self.augment is not None:
                images = self.augment(images, self.generator)
            yield self._normalise(images), self.labels[chosen]

    def _normalise(self, images: Tensor) -> Tensor:
        return torch.addcmul(self.offset, images.float(), self.scale)
