"""Mini-batches drawn from images that are held whole, as uint8, on the training device."""

from collections.abc import Callable, Iterator

import torch
from torch import Generator, Tensor

Augmentation = Callable[[Tensor, Generator], Tensor]


class Batches:
    """Iterates over (inputs, targets): float32 (batch, channels, side, side), int64 (batch,).

    With a generator the images come in a new order each time and are augmented; without, in their
    own order and unchanged. Inputs are (image / 255 - mean) / std, per channel. The last batch
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
        for chosen in self.order().split(self.batch_size):
            yield self.take(chosen)

    def order(self, start: Tensor | None = None) -> Tensor:
        """The images of a round by their index, int64 (images,), in the order of the batches.

        `start` is the generator's state when a round began: its order is drawn again, and the
        generator then stands where it stood before. Without it a new round begins.
        """
        count, device = len(self.images), self.images.device
        if self.generator is None:
            return torch.arange(count, device=device)
        now = self.generator.get_state()
        if start is not None:
            self.generator.set_state(start)
        order = torch.randperm(count, generator=self.generator, device=device)
        if start is not None:
            self.generator.set_state(now)
        return order

    def take(self, chosen: Tensor) -> tuple[Tensor, Tensor]:
        """The inputs and targets of the images with these indices, augmented and normalised."""
        images = self.images[chosen]
        if self.augment is not None and self.generator is not None:
            with torch.autocast(images.device.type, enabled=False):  # it may resize by matrices
                images = self.augment(images, self.generator)
        return torch.addcmul(self.offset, images.float(), self.scale), self.labels[chosen]
