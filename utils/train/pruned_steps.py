"""Pruned steps: training steps on the pruned network, which then loses less when it is pruned."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn

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
    # The last number tells this stream from those of dropout's seeds.
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
