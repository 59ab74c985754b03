"""Mini-batches drawn from images that are held whole, as uint8, on the training device."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Generator, Tensor

Augmentation = Callable[[Tensor, Generator], Tensor]


class Batches:
    """Iterates over (inputs, targets): float32 (batch, channels, side, side), int64 (batch,).

    With a generator the images come in a new order each time and are augmented; without, in their
    own order and unchanged. Inputs are (image / 255 - mean) / std, per channel. The last batch
    of a round may be smaller. `taken` is how many batches of the present round are taken; after
    `load_state_dict` the next iteration goes on with the round that `state_dict` was called in.
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
        self.taken, self._goes_on = 0, False

    def __len__(self) -> int:
        return -(-len(self.images) // self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        if not self._goes_on:
            self.taken, self._order = 0, self._new_order()
        self._goes_on = False
        for chosen in self._order.split(self.batch_size)[self.taken :]:
            batch = self.take(chosen)
            self.taken += 1
            yield batch
        self.taken = 0

    def state_dict(self) -> dict[str, Any]:
        """Where the round is, and its order; between two rounds there is none."""
        return {
            "taken": self.taken,
            "order": self._order.cpu() if self.taken else None,
            "generator": self.generator.get_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raises ValueError for a round of another number of images."""
        self.taken, order = state["taken"], state["order"]
        self._goes_on = self.taken > 0
        if self._goes_on:
            if order.shape != (len(self.images),):
                raise ValueError(f"a round has {len(self.images)} images, not {order.numel()}")
            self._order = order.to(self.images.device)
        self.generator.set_state(state["generator"])

    def _new_order(self) -> Tensor:
        """The images of a round by their index, int64 (images,)."""
        count, device = len(self.images), self.images.device
        if self.generator is None:
            return torch.arange(count, device=device)
        return torch.randperm(count, generator=self.generator, device=device)

    def take(self, chosen: Tensor) -> tuple[Tensor, Tensor]:
        """The inputs and targets of the images with these indices, augmented and normalised."""
        images = self.images.index_select(0, chosen)  # many times faster than by indexing
        if self.augment is not None and self.generator is not None:
            with torch.autocast(images.device.type, enabled=False):  # it may resize by matrices
                images = self.augment(images, self.generator)
        inputs = torch.addcmul(self.offset, images.float(), self.scale)
        return inputs, self.labels.index_select(0, chosen)
