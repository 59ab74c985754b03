"""What units of coupled channels are worth, judged by the weights that would go with them."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from utils.prune.channels.graph import Dimension, Unit


def l2_scores(squares: Tensor) -> Tensor:
    """The L2 norm of all entries of a unit, of which one may count in two of its dimensions."""
    return squares.sum(0).sqrt()


def relative_scores(squares: Tensor) -> Tensor:
    """The root of the mean square over the tensors, each in units of its own mean over the units.

    So a tensor counts the same whatever the size of its entries, and layers can be compared.
    """
    means = squares.mean(1, keepdim=True)
    return (squares / means.clamp(min=torch.finfo(squares.dtype).tiny)).mean(0).sqrt()


# Each takes the squared norms (tensors, units) of what the units of a group have in each tensor.
SCORES: dict[str, Callable[[Tensor], Tensor]] = {"relative": relative_scores, "l2": l2_scores}


@torch.no_grad()
def squared_norms(model: nn.Module, group: list[Unit]) -> Tensor:
    """The squared norm, in float64, of each unit's entries in each tensor: (tensors, units)."""
    rows = []
    for dimension in {dimension: None for unit in group for dimension in unit}:
        members = [unit.get(dimension, []) for unit in group]
        owner = torch.tensor([i for i, own in enumerate(members) for _ in own])
        channels = torch.tensor([channel for own in members for channel in own])
        for tensor in by_channel(model, dimension):
            squares = tensor.cpu().double().flatten(1).square().sum(1)[channels]
            rows.append(squares.new_zeros(len(group)).index_add_(0, owner, squares))
    return torch.stack(rows)


def by_channel(model: nn.Module, dimension: Dimension) -> list[Tensor]:
    """The tensors that lose entries with channels of this dimension, each (channels, ...)."""
    if (parameter := dict(model.named_parameters()).get(dimension.layer)) is not None:
        return [parameter.movedim(dimension.axis, 0).unsqueeze(1)]
    layer = model.get_submodule(dimension.layer)
    if isinstance(layer, nn.MultiheadAttention):
        into, out, bias = layer.in_proj_weight, layer.out_proj, layer.in_proj_bias
        biases = () if bias is None else (*bias.unsqueeze(1).chunk(3), out.bias.unsqueeze(1))
        return [*into.chunk(3), into.T, out.weight, out.weight.T, *biases]
    if isinstance(layer, nn.Embedding):
        return [layer.weight.T]
    bias = getattr(layer, "bias", None)
    tensors = [p.unsqueeze(1) for p in (layer.weight, bias) if p is not None]
    if isinstance(layer, (nn.Linear, _ConvNd)):
        transposed, groups = getattr(layer, "transposed", False), getattr(layer, "groups", 1)
        if dimension.is_input != transposed:  # the weight's second axis, divided into the groups
            tensors[0] = layer.weight.unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1)
        if dimension.is_input:
            del tensors[1:]
    return tensors
