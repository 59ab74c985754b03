"""Training steps on the pruned network, which teach it to do without its smallest weights."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from utils.prune.allocation import prunable
from utils.prune.recalibrate import batch_norms


@contextmanager
def pruned(model: nn.Module, sparsity: float) -> Iterator[None]:
    """In the block the model is pruned to this sparsity; its gradients are those of what is left.

    The smallest weights are 0 in the block, by one threshold for all, and come back with a gradient
    of 0. Biases and BatchNorm's parameters stay as they are, and so do its running statistics. With
    a sparsity of 0 nothing changes.
    """
    if not sparsity:
        yield
        return
    weights, norms = list(prunable(model, "weights").values()), batch_norms(model)
    dense = [p.detach().clone() for p in weights]
    magnitudes = torch.cat([p.abs().flatten() for p in dense])
    threshold = magnitudes.kthvalue(max(1, int(sparsity * len(magnitudes)))).values
    masks = [p.abs() > threshold for p in dense]
    with torch.no_grad():
        torch._foreach_mul_(weights, masks)
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True
        with torch.no_grad():
            torch._foreach_copy_(weights, dense)
            for p, mask in zip(weights, masks, strict=True):
                if p.grad is not None:
                    p.grad.mul_(mask)
