"""Magnitude pruning: the order in which the entries of a model are removed."""

import math
from fractions import Fraction

import torch
from torch import nn

from constraints.sharding import assign, refuse_unknown, whole
from utils.prune.weights.allocation import ALLOCATIONS, prunable

# The fractions of all entries that test_prune.py removes unless --ratios gives others.
RATIOS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9,
          0.91, 0.92, 0.93, 0.94, 0.95, 0.96, 0.97, 0.98, 0.99)  # fmt: skip


class MagnitudeRanking:
    """The entries of a model's parameters in the order in which pruning removes them.

    `allocation`, a key of ALLOCATIONS, decides how many entries each tensor loses; within a tensor
    the smallest magnitudes are removed first. `scope`, a key of SCOPES, decides which parameters
    are pruned. On every device, entries of equal score are removed in the order of their position.
    Parameters may be sharded (DTensors): all processes must then call these methods together, and
    each of them gathers the whole network.
    """

    def __init__(self, model: nn.Module, allocation: str = "global", scope: str = "all") -> None:
        self.parameters = list(prunable(model, scope).values())
        refuse_unknown(self.parameters)
        weights = [whole(p) for p in self.parameters]
        self.weights = torch.cat([w.flatten() for w in weights])
        scores = [ALLOCATIONS[allocation](w) for w in weights]
        self.order = torch.cat(scores).argsort(stable=True)

    def prune(self, ratio: float) -> int:
        """Set the first floor(ratio N) of the N ranked entries to 0, and restore all others.

        The model changes in place: the other entries get the values they had when they were
        ranked. Returns the number of entries removed. `ratio` is taken as the decimal number that
        it prints as, so that 0.29 of 100 entries is 29. Raises ValueError if it is not in [0, 1].
        """
        removed = removed_entries(ratio, len(self.weights))
        pruned = self.weights.clone()
        pruned[self.order[:removed]] = 0
        parts = pruned.split([p.numel() for p in self.parameters])
        for p, values in zip(self.parameters, parts, strict=True):
            assign(p, values.view(p.shape))
        return removed


def removed_entries(ratio: float, count: int) -> int:
    """How many of `count` entries pruning at `ratio` removes; see MagnitudeRanking.prune."""
    if not 0 <= ratio <= 1:
        raise ValueError(f"ratio must be between 0 and 1, not {ratio}")
    return math.floor(Fraction(str(ratio)) * count)


def global_prune(model: nn.Module, ratio: float) -> int:
    """Set the floor(ratio N) smallest in magnitude of all N entries of `model.parameters()` to 0.

    The model changes in place. Returns the number of entries removed; raises ValueError as
    MagnitudeRanking.prune does, and for a model with masks of torch.nn.utils.prune.
    """
    return MagnitudeRanking(model).prune(ratio)
