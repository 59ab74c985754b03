"""Pruning by magnitude, where the zeros then are, and how large the entries of a model are."""

import math
from fractions import Fraction
from pathlib import Path

import torch
from torch import Tensor, nn

from utils.allocation import ALLOCATIONS, prunable
from utils.checkpoint import load_trained

# Fractions of all entries that are removed, and magnitudes above which entries are counted.
RATIOS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9,
          0.91, 0.92, 0.93, 0.94, 0.95, 0.96, 0.97, 0.98, 0.99)  # fmt: skip
THRESHOLDS = (10.0, 1.0, 0.1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8, 1e-9)


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


def load_pruned(path: str | Path) -> nn.Module:
    """The network that test_prune.py --save_pruned wrote to `path`, on the CPU, in evaluation mode.

    Its `state_dict()` is an ordinary dense one. Raises UserError when there is no such file or it
    is damaged.
    """
    return load_trained({}, Path(path)).model.eval()


def zeros_by_parameter(model: nn.Module) -> dict[str, int]:
    """How many entries of each of the model's parameters are exactly 0."""
    names, counts = zip(
        *((name, (p == 0).sum()) for name, p in model.named_parameters()), strict=True
    )
    return dict(zip(names, torch.stack(counts).tolist(), strict=True))


def all_finite(model: nn.Module) -> bool:
    """Whether no entry of `model.parameters()` is infinite or not a number."""
    return bool(torch.stack([p.isfinite().all() for p in model.parameters()]).all())


def count_above(model: nn.Module, thresholds: tuple[float, ...] = THRESHOLDS) -> list[int]:
    """For each threshold, how many entries of `model.parameters()` are greater in magnitude."""
    counts = torch.stack([_count_above(p.detach(), thresholds) for p in model.parameters()])
    return counts.sum(0).tolist()


def _count_above(values: Tensor, thresholds: tuple[float, ...]) -> Tensor:
    magnitude = values.abs()
    return torch.stack([(magnitude > threshold).sum() for threshold in thresholds])
