"""Pruned steps: training steps on the pruned network, which then loses less when it is pruned."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from models import dry_run
from utils.process.errors import UserError
from utils.prune.weights.allocation import prunable
from utils.prune.weights.ranking import removed_entries
from utils.settings.config import Config

# What pruned steps prune to.
SPARSITIES = (0.8, 0.9, 0.95, 0.98)


def step_sparsities(config: Config, epoch: int, steps: int) -> list[float]:
    """To what the network is pruned in each step of an epoch; 0 where it is not.

    It is in every second step of the last `config.pruned_steps` of the training, to one of
    SPARSITIES.
    """
    # The last number tells this stream from those of `step_seeds`.
    stream = np.random.default_rng([config.seed, epoch, 0, 1])
    drawn = stream.choice(SPARSITIES, steps).tolist()
    total = config.epoch_num * steps
    start = total - round(config.pruned_steps * total)
    numbers = range(epoch * steps, (epoch + 1) * steps)
    return [s if i >= start and i % 2 else 0.0 for i, s in zip(numbers, drawn, strict=True)]


@contextmanager
def pruned(model: nn.Module, sparsity: float) -> Iterator[None]:
    """In the block the model is pruned to this sparsity; its gradients are those of what is left.

    The weights smallest in magnitude are 0 in the block, by one threshold for all; those that tie
    at the threshold all go. They come back with a gradient of 0. Biases and BatchNorm's parameters
    stay as they are, and buffers, such as running statistics, are afterwards what they were. With a
    sparsity of 0 nothing changes.
    """
    if not sparsity:
        yield
        return
    weights, buffers = list(prunable(model, "weights").values()), list(model.buffers())
    kept = [values.detach().clone() for values in (*weights, *buffers)]
    magnitudes = torch.cat([p.detach().abs().flatten() for p in weights])
    count = max(1, removed_entries(sparsity, len(magnitudes)))
    threshold = magnitudes.kthvalue(count).values
    removed = [p.detach().abs() <= threshold for p in weights]
    with torch.no_grad():
        for p, mask in zip(weights, removed, strict=True):
            p.masked_fill_(mask, 0)
    try:
        yield
    finally:
        with torch.no_grad():
            for values, former in zip((*weights, *buffers), kept, strict=True):
                values.copy_(former)
            for p, mask in zip(weights, removed, strict=True):
                if p.grad is not None:
                    p.grad.masked_fill_(mask, 0)


def check_pruned_steps(config: Config, model: nn.Module, images: Tensor, steps: int) -> None:
    """Raise UserError where the training takes no pruned steps, or the model cannot take them.

    `images` is a batch, (images, channels, height, width), and `steps` how many an epoch has.
    """
    # If there are pruned steps, one is among the last two steps, and so in these epochs.
    epochs = range(max(0, config.epoch_num - 2), config.epoch_num)
    sparsities = [s for epoch in epochs for s in step_sparsities(config, epoch, steps)]
    if not any(sparsities):
        raise UserError(
            "--pruned_steps: no step of this training is a pruned one; give a larger fraction or"
            " more epochs"
        )
    if not prunable(model, "weights"):
        raise UserError("--pruned_steps: the network has no weights to prune; leave it out")
    with torch.no_grad(), pruned(model, max(sparsities)):
        if not dry_run(model, images, training=True).isfinite().all():
            raise UserError(
                "--pruned_steps: the pruned network's outputs are not finite, for example since it"
                " divides by the norms of weights; leave this flag out"
            )
