"""Which channels of a network can only be cut out together, and cutting them out.

Those that a residual addition adds are coupled, with their BatchNorm and the inputs of the next
layer. torch-pruning's dependency graph finds which, and its functions cut channels out of a layer.
It is an optional requirement, and imported where it is used.
"""

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from utils.compute.device import placed
from utils.process.errors import UserError


@dataclass(frozen=True)
class Dimension:
    """A dimension of a layer's tensors: its outputs, its inputs, or both where they are the same.

    `pruner` has torch-pruning's functions for this kind of layer. `layer` is the name of a module,
    or of a parameter that belongs to no layer; then `axis` is the axis of that tensor.
    """

    layer: str
    pruner: Any
    is_input: bool  # of the inputs alone
    axis: int

    def size(self, module: nn.Module) -> int:
        """The number of channels that the module has in this dimension."""
        pruner = self.pruner
        return (pruner.get_in_channels if self.is_input else pruner.get_out_channels)(module)

    def cut(self, module: nn.Module, channels: list[int]) -> nn.Module:
        """Remove these channels from the module in place, or from a copy of a parameter."""
        pruner = self.pruner
        pruner.pruning_dim = self.axis
        cut = pruner.prune_in_channels if self.is_input else pruner.prune_out_channels
        return cut(module, channels)


def _dimension(layer: str, dep: Any) -> Dimension:
    """That of one of torch-pruning's dependencies."""
    cut = dep.handler
    pruner = cut.__self__
    is_input = cut == pruner.prune_in_channels and cut != pruner.prune_out_channels
    return Dimension(layer, pruner, is_input, dep.target.pruning_dim)


# Channels that are cut out together, by the dimensions in which they lie.
Unit = dict[Dimension, list[int]]
# A channel in a dimension, and the number of that vertex; and two vertices that are linked.
Vertices = dict[tuple[Dimension, int], int]
Link = tuple[int, int]


def coupled_groups(model: nn.Module, images: Tensor) -> list[list[Unit]]:
    """The groups of channels of a network; each is divided into the units that can be cut out.

    Every channel is in one unit at most. A group is what a residual stream or a hidden layer
    consists of. `model` is in evaluation mode, and takes `images`.

    A pair of a dimension and the number of a channel in it is a vertex of a graph. Two vertices are
    linked if torch-pruning cuts the one out with the other: a unit is a component of this graph.
    """
    import torch_pruning

    try:
        graph = torch_pruning.DependencyGraph().build_dependency(model, images, verbose=False)
        roots = [group[0] for group in graph.get_all_groups()]
    except Exception as error:  # torch-pruning's errors have no common type
        raise refusal(f"torch-pruning cannot follow its channels ({reason(error)})") from None
    names = {p: name for name, p in model.named_parameters()}
    names |= {module: name for name, module in model.named_modules()}
    vertices: Vertices = {}
    links: list[Link] = []
    of_roots: list[list[int]] = []  # the vertices of the layer that each group was found from
    for root in roots:
        of_roots.append([])
        for channel in root.idxs:
            coupled = graph.get_pruning_group(root.dep.target.module, root.dep.handler, [channel])
            found = []
            for dep, channels in coupled:
                if (name := names.get(dep.target.module)) is not None:
                    dimension = _dimension(name, dep)
                    found += [vertices.setdefault((dimension, i), len(vertices)) for i in channels]
            links += [(found[0], vertex) for vertex in found]
            of_roots[-1].append(found[0])
    links += _links_across_heads(model, vertices)
    return _components(vertices, links, of_roots)


def _links_across_heads(model: nn.Module, vertices: Vertices) -> list[Link]:
    """Links by which all heads, or all groups of one layer, lose the same channels."""
    links, modules = [], dict(model.named_modules())
    first: Vertices = {}
    for (dimension, channel), vertex in vertices.items():
        module = modules.get(dimension.layer)
        if (parts := _parts(module)) > 1:
            within = dimension, channel % (dimension.size(module) // parts)
            links.append((first.setdefault(within, vertex), vertex))
    return links


def _parts(module: nn.Module | None) -> int:
    """The number of parts into which a layer divides its channels, which have the same size."""
    if isinstance(module, nn.MultiheadAttention):
        return module.num_heads
    if isinstance(module, nn.GroupNorm):
        return module.num_groups
    groups = getattr(module, "groups", 1)
    return groups if groups < getattr(module, "out_channels", 0) else 1  # depthwise: no parts


def _components(
    vertices: Vertices, links: Sequence[Link], of_roots: Sequence[Sequence[int]]
) -> list[list[Unit]]:
    """Groups, as in `coupled_groups`: linked vertices form a unit, units of one root a group."""
    unit_of = _labels(len(vertices), links)
    within_groups = [(own[0], vertex) for own in of_roots for vertex in own]
    group_of = _labels(len(vertices), [*links, *within_groups])
    groups: dict[int, dict[int, Unit]] = {}
    for (dimension, channel), vertex in vertices.items():
        unit = groups.setdefault(group_of[vertex], {}).setdefault(unit_of[vertex], {})
        unit.setdefault(dimension, []).append(channel)
    return [list(units.values()) for units in groups.values()]


def _labels(count: int, links: Sequence[Link]) -> list[int]:
    """For each of `count` vertices, the number of the component that these edges put it in."""
    from scipy.sparse import coo_array  # these take a while to import
    from scipy.sparse.csgraph import connected_components

    one, other = zip(*links, strict=True) if links else ((), ())
    edges = coo_array(([1] * len(links), (one, other)), shape=(count, count))
    return connected_components(edges, directed=False)[1].tolist()


@torch.no_grad()
def cut_out(model: nn.Module, units: Iterable[Unit]) -> nn.Module:
    """A copy of `model` without these units, channels_last if `model` is and the copy can be."""
    sliced = copy.deepcopy(model)
    removed: Unit = {}
    for unit in units:
        for dimension, channels in unit.items():
            removed.setdefault(dimension, []).extend(channels)
    for dimension, channels in removed.items():
        _cut(sliced, dimension, sorted(channels))
    # All tensors at once, as for the loaded network: one with dimensions of size 1 has either
    # format, and by its strides a kernel may be chosen whose last bits differ.
    if any(p.dim() == 4 and not p.is_contiguous() for p in model.parameters()):
        placed(sliced, next(model.parameters()).device)
    return sliced


def _cut(model: nn.Module, dimension: Dimension, channels: list[int]) -> None:
    parent, _, name = dimension.layer.rpartition(".")
    layer = getattr(model.get_submodule(parent), name) if name else model
    if isinstance(layer, nn.LayerNorm):
        for channel in reversed(channels):  # of several, torch-pruning 1.6 may permute the others
            dimension.cut(layer, [channel])
        return
    result = dimension.cut(layer, channels)
    if isinstance(layer, nn.Parameter):
        setattr(model.get_submodule(parent), name, result)


def refusal(problem: str) -> UserError:
    return UserError(f"--granularity channels: {problem}; prune this network's weights instead")


def reason(error: Exception) -> str:
    """The type of an error and the first line of its message."""
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
