"""Pruning by magnitude: the order in which the entries of a model are removed."""

import math
from fractions import Fraction

import torch
from torch import nn

from utils.prune.allocation import ALLOCATIONS, prunable

# Fractions of all entries that are removed.
RATIOS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9,
          0.91, 0.92, 0.93, 0.94, 0.95, 0.96, 0.97, 0.98, 0.99)  # fmt: skip


class MagnitudeRanking:
    """The entries of a model's parameters in the order in which pruning removes them, ranked once.

    `allocation`, of ALLOCATIONS, spreads what is removed over the tensors; within each, entries go
    in the order of their magnitude. `scope`, of SCOPES, says which parameters are pruned. Ties
    keep the order of the parameters and of the entries within them, on every device.
    """

    def __init__(self, model: nn.Module, allocation: str = "global", scope: str = "all") -> None:
        self.parameters = list(prunable(model, scope).values())
        self.weights = torch.cat([p.detach().flatten() for p in self.parameters])
        scores = [ALLOCATIONS[allocation](p.detach()) for p in self.parameters]
        self.order = torch.cat(scores).argsort(stable=True)

    def prune(self, ratio: float) -> int:
        """Set the first floor(ratio N) of the N ranked entries to 0, the others as ranked.

        Changes the model in place and returns the number of entries removed. `ratio` is read in
        decimal, so that 0.29 of 100 is 29. Raises ValueError when it is not in 0 ... 1.
        """
        if not 0 <= ratio <= 1:
            raise ValueError(f"ratio must be between 0 and 1, not {ratio}")
        removed = math.floor(Fraction(str(ratio)) * len(self.weights))
        pruned = self.weights.clone()
        pruned[self.order[:removed]] = 0
        with torch.no_grad():
            parts = pruned.split([p.numel() for p in self.parameters])
            for p, values in zip(self.parameters, parts, strict=True):
                p.copy_(values.view(p.shape))
        return removed


def global_prune(model: nn.Module, ratio: float) -> int:
    """Set the floor(ratio N) smallest in magnitude of all N entries of `model.parameters()` to 0.

    In place; returns the number of entries removed. See MagnitudeRanking.prune.
    """
    return MagnitudeRanking(model).prune(ratio)
