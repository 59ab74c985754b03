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
        if self.generator is None:
            for start in range(0, len(self.images), self.batch_size):
                chosen = slice(start, start + self.batch_size)
                yield self._normalise(self.images[chosen]), self.labels[chosen]
            return
        device = self.images.device
        order = torch.randperm(len(self.images), generator=self.generator, device=device)
        for chosen in order.split(self.batch_size):
            images = self.images[chosen]
            if self.augment is not None:
                images = self.augment(images, self.generator)
            yield self._normalise(images), self.labels[chosen]

    def _normalise(self, images: Tensor) -> Tensor:
        return torch.addcmul(self.offset, images.float(), self.scale)
