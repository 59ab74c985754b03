"""Patterns N:M: of each M weights along the inputs of a layer, the N largest in magnitude stay.

A weight is (outputs, inputs, ...): a convolution's groups are M successive input channels, for each
output channel and each position in the kernel. Sparse tensor cores take 2:4.
"""

import re
from collections.abc import Iterable
from fractions import Fraction

import torch
from torch import Tensor, nn

from constraints.sharding import assign, refuse_unknown, whole
from utils.prune.weights.allocation import prunable

DENSE = "dense"  # stands in the place of a pattern for the network as it was
LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.MultiheadAttention)


def is_pattern(text: str) -> bool:
    """Whether this is N:M, with 0 < N < M and no leading zeros."""
    return bool(re.fullmatch(r"[1-9]\d*:[1-9]\d*", text)) and removed_share(text) > 0


def removed_share(pattern: str) -> Fraction:
    """The share of a layer's weights that a pattern, or DENSE, removes."""
    n, m = (1, 1) if pattern == DENSE else map(int, pattern.split(":"))
    return 1 - Fraction(n, m)


def by_removed(patterns: Iterable[str]) -> list[str]:
    """Patterns and DENSE, each once, ascending in what a layer that fits loses."""
    return sorted(set(patterns), key=lambda p: (removed_share(p), len(p), p))


def groups_of(weight: Tensor, m: int) -> Tensor:
    """The magnitudes of a weight (outputs, inputs, ...) in groups of `m`: (groups, m)."""
    return weight.abs().movedim(1, -1).reshape(-1, m)


def fits(weight: Tensor, pattern: str) -> bool:
    """Whether the number of the weight's inputs is a multiple of the pattern's M."""
    return weight.shape[1] % int(pattern.split(":")[1]) == 0


def pruned_to(weight: Tensor, pattern: str) -> Tensor:
    """The weight, which must fit, with the M - N smallest magnitudes of each group set to 0.

    Of equal magnitudes, those of earlier inputs are removed first.
    """
    n, m = map(int, pattern.split(":"))
    smallest = groups_of(weight, m).argsort(dim=1, stable=True)[:, : m - n]
    removed = torch.zeros(weight.numel() // m, m, dtype=torch.bool, device=weight.device)
    removed.scatter_(1, smallest, True)
    return weight.masked_fill(removed.view(weight.movedim(1, -1).shape).movedim(-1, 1), 0)


def has_pattern(weight: Tensor, pattern: str) -> bool:
    """Whether the weight fits, and no group has more than N entries that are not 0."""
    n, m = map(int, pattern.split(":"))
    return fits(weight, pattern) and bool((groups_of(weight, m).count_nonzero(1) <= n).all())


def has_plain_weights(layer: nn.Module) -> bool:
    """Whether this is one of LAYERS, and no subclass that computes other weights from its own."""
    return isinstance(layer, LAYERS) and any(type(layer).forward is k.forward for k in LAYERS)


def layer_weights(model: nn.Module) -> dict[str, nn.Parameter]:
    """The weights of linear layers, attention's projections and convolutions, by name.

    Computed ones, as of weight normalisation, and those of layers with a `forward` of their own and
    of transposed convolutions are left out. Raises ValueError for a model with masks of
    torch.nn.utils.prune.
    """
    of_layers = {
        id(p)
        for layer in model.modules()
        if has_plain_weights(layer)
        for name, p in layer.named_parameters(recurse=False)
        if name.endswith("weight")
    }
    return {name: p for name, p in prunable(model, "weights").items() if id(p) in of_layers}


class PatternRanking:
    """Prunes the `layer_weights` of a model that fit to patterns N:M; all else stays dense.

    Parameters may be sharded, as for MagnitudeRanking.
    """

    def __init__(self, model: nn.Module) -> None:
        self.parameters = list(prunable(model, "weights").values())
        refuse_unknown(self.parameters)
        self._layers = layer_weights(model)
        self._dense = {name: whole(p).clone() for name, p in self._layers.items()}
        self._others = [name for name in prunable(model, "weights") if name not in self._layers]

    def left_dense(self, pattern: str) -> list[str]:
        """The names of the weights, tensors of at least two dimensions, that are not pruned."""
        return self._others + [n for n, w in self._dense.items() if not fits(w, pattern)]

    def prune(self, pattern: str) -> int:
        """Prune to this pattern, or to DENSE, and restore all else; the model changes in place.

        Returns the number of entries removed.
        """
        removed = Fraction(0)
        for name, p in self._layers.items():
            weight = self._dense[name]
            if pattern != DENSE and fits(weight, pattern):
                removed += removed_share(pattern) * weight.numel()
                weight = pruned_to(weight, pattern)
            assign(p, weight)
        return int(removed)
