"""Allocations: how many entries each tensor of a network loses when it is pruned.

An allocation gives every entry a score, and pruning at any ratio removes the entries with the
smallest scores, so that one ranking serves all ratios. Within a tensor scores increase with
magnitude: allocations differ only in how many entries each tensor loses.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from models.check import refuse_masks

# Which parameters of a model are pruned: those of at least so many dimensions.
SCOPES = {"all": 0, "weights": 2}


def prunable(model: nn.Module, scope: str = "all") -> dict[str, nn.Parameter]:
    """The parameters, by name, that are pruned in `scope`, a key of SCOPES.

    Raises ValueError for a model with masks of torch.nn.utils.prune.
    """
    refuse_masks(model)
    return {name: p for name, p in model.named_parameters() if p.dim() >= SCOPES[scope]}


def global_scores(parameter: Tensor) -> Tensor:
    """Magnitudes: one threshold for the whole network (Miao et al., ICLR 2022)."""
    return parameter.abs().flatten()


def uniform_scores(parameter: Tensor, factor: float = 1.0) -> Tensor:
    """Scores that remove the same fraction of every tensor.

    An entry's score is `factor` over the share of the tensor that is left when it is removed. Half
    an entry more counts as left, so that a tensor loses its share rounded to the nearest number.
    """
    _, ranks = _ranked(parameter)
    return factor * len(ranks) / (len(ranks) - 0.5 - ranks.double())


def erk_scores(parameter: Tensor) -> Tensor:
    """Erdos-Renyi-Kernel (Evci et al., ICML 2020).

    The density of a tensor is d = min(c factor, 1), where factor is the sum of its dimensions over
    their product, and the ratio determines c, which is the same for all tensors. So an entry is
    removed once c is below d / factor, for the least density d at which the tensor keeps it.
    """
    return uniform_scores(parameter, max(sum(parameter.shape), 1) / parameter.numel())


def lamp_scores(parameter: Tensor) -> Tensor:
    """LAMP (Lee et al., ICLR 2021).

    The score is an entry's square over the sum of the squares of itself and of all larger entries
    in its tensor. The largest entry of a tensor scores 1, so that it is removed last.
    """
    magnitudes, ranks = _ranked(parameter)
    squares = magnitudes.double() ** 2
    sums = squares.flip(0).cumsum(0).flip(0)
    return (squares / sums.clamp(min=torch.finfo(torch.float64).tiny))[ranks]


ALLOCATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "global": global_scores,
    "uniform": uniform_scores,
    "erk": erk_scores,
    "lamp": lamp_scores,
}


def _ranked(parameter: Tensor) -> tuple[Tensor, Tensor]:
    """The magnitudes of the n entries in ascending order, and the place of each entry in it: (n,).

    Equal magnitudes are in the order of their position.
    """
    magnitudes, positions = parameter.abs().flatten().sort(stable=True)
    places = torch.arange(len(positions), device=positions.device)
    return magnitudes, torch.empty_like(positions).scatter_(0, positions, places)
