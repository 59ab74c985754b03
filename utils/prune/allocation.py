"""How a pruning budget is spread over the tensors of a network.

An allocation gives every entry a score. Pruning at any ratio removes the entries whose scores are
the smallest in the network, so that one ranking serves all ratios. Within a tensor the scores
grow with magnitude: allocations differ only in how many entries each tensor loses.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

# Which of a model's parameters are pruned; weights are tensors of two dimensions or more.
SCOPES: dict[str, Callable[[Tensor], bool]] = {
    "all": lambda parameter: True,
    "weights": lambda parameter: parameter.dim() >= 2,
}


def prunable(model: nn.Module, scope: str = "all") -> dict[str, nn.Parameter]:
    """The parameters, by name, that a scope of SCOPES prunes."""
    return {name: p for name, p in model.named_parameters() if SCOPES[scope](p)}


def global_scores(parameter: Tensor) -> Tensor:
    """Magnitudes as they are: one threshold for the whole network (Miao et al., ICLR 2022)."""
    return parameter.abs().flatten()


def uniform_scores(parameter: Tensor) -> Tensor:
    """The same fraction of every tensor."""
    return _scores_by_rank(parameter, lambda m: len(m) / _left(m))


def erk_scores(parameter: Tensor) -> Tensor:
    """Erdos-Renyi-Kernel (Evci et al., ICML 2020): densities in proportion to the sum of a tensor's
    dimensions over their product, none above 1.

    A tensor keeps the largest share d of its entries where d = min(c factor, 1), c set by the
    ratio; so an entry outside a larger share d goes from c = d / factor down.
    """
    factor = max(sum(parameter.shape), 1) / parameter.numel()
    return _scores_by_rank(parameter, lambda m: factor * len(m) / _left(m))


def lamp_scores(parameter: Tensor) -> Tensor:
    """LAMP (Lee et al., ICLR 2021): an entry's square over the sum of the squares of itself and of
    all larger ones in its tensor. The largest entry of a tensor scores 1 and is the last to go."""

    def scores(magnitudes: Tensor) -> Tensor:
        squares = magnitudes.double() ** 2
        sums = squares.flip(0).cumsum(0).flip(0)
        # A sum in parallel may round a score to below that of a smaller entry.
        return (squares / sums.clamp(min=torch.finfo(torch.float64).tiny)).cummax(0).values

    return _scores_by_rank(parameter, scores)


ALLOCATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "global": global_scores,
    "uniform": uniform_scores,
    "erk": erk_scores,
    "lamp": lamp_scores,
}


def _scores_by_rank(parameter: Tensor, scores: Callable[[Tensor], Tensor]) -> Tensor:
    """`scores` of the sorted magnitudes, each put back to its entry's place; equal magnitudes are
    sorted by position."""
    magnitudes, places = parameter.abs().flatten().sort(stable=True)
    sorted_scores = scores(magnitudes)
    return torch.empty_like(sorted_scores).scatter_(0, places, sorted_scores)


def _left(magnitudes: Tensor) -> Tensor:
    """For each entry of a sorted tensor, how many are left once all before it and half of itself
    are removed: so that a tensor loses its share rounded to the nearest number of entries."""
    count = len(magnitudes)
    return torch.arange(count, 0, -1, dtype=torch.float64, device=magnitudes.device) - 0.5
