"""What the training loop asks for before and between its steps."""

import numpy as np
import torch
from torch import nn

from models import dry_run
from utils.datasets.batches import Batches
from utils.process.errors import UserError


def check_last_batch(
    model: nn.Module, batches: Batches, image_shape: tuple[int, ...], parts: int = 1
) -> None:
    """Raise UserError where the model cannot train on one image, and there are batches of one.

    BatchNorm refuses it where only one pixel is left. `image_shape` is (channels, height, width),
    and each batch is shared in `parts`.
    """
    count, size = len(batches.images), batches.batch_size
    sizes = [min(size, count), count % size or size]
    if all(n // parts > 1 for n in sizes):
        return
    try:
        dry_run(model, torch.zeros(1, *image_shape, device=batches.images.device), training=True)
    except Exception as error:
        raise UserError(
            f"--train_batchsize {size}: an epoch of {count} images has a batch, or a process's"
            f" part of one, of a single image, on which this network cannot be trained ({error});"
            " choose another size"
        ) from None


def step_seeds(seed: int, epoch: int, rank: int, steps: int) -> list[int]:
    """A seed for each step of an epoch, from which dropout draws, in the process `rank`."""
    return np.random.SeedSequence([seed, epoch, rank]).generate_state(steps).tolist()
