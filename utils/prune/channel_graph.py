"""Which channels of a network can only be cut out together, and cutting them out.

Those that a residual addition adds are coupled, with their BatchNorm and the inputs of the next
layer. torch-pruning's dependency graph finds which, and its functions cut channels out of a layer.
It is an optional requirement, and imported where it is used.
"""

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from utils.process.errors import UserError


@dataclass(frozen=True)
class Dimension:
    """A dimension of a layer's tensors: its outputs, its inputs, or both where they are the same.

    `cut` is torch-pruning's function that removes channels from it. `layer` is the name of a
    module, or of a parameter that belongs to no layer; then `axis` is the axis of that tensor.
    """

    layer: str
    cut: Callable[[nn.Module, list[int]], nn.Module]
    axis: int

    @property
    def is_input(self) -> bool:
        """Whether it is that of the inputs alone."""
        own = self.cut.__self__
        return self.cut == own.prune_in_channels and self.cut != own.prune_out_channels


# Channels that are cut out together, by the dimensions in which they lie.
Unit = dict[Dimension, list[int]]


def coupled_groups(model: nn.Module, images: Tensor) -> list[list[Unit]]:
    """The groups of channels of a network; each is divided into the units that can be cut out.

    Every channel is in one unit at most. A group is what a residual stream or a hidden layer
    consists of; it must keep one unit. `model` is in evaluation mode, and takes `images`.
    """
    import torch_pruning

    try:
        graph = torch_pruning.DependencyGraph().build_dependency(model, images, verbose=False)
        roots = [group[0] for group in graph.get_all_groups()]
    except Exception as error:  # torch-pruning's errors have no common type
        raise refusal(f"torch-pruning cannot follow its channels ({reason(error)})") from None
    names = {p: name for name, p in model.named_parameters()}
    names |= {module: name for name, module in model.named_modules()}
    slots: dict[tuple[Dimension, int], int] = {}  # a channel in a dimension, and its number
    links: list[tuple[int, int]] = []
    of_root: list[list[int]] = []  # the slots of the layer that each group was found from
    for root in roots:
        of_root.append([])
        for channel in root.idxs:
            closure = graph.get_pruning_group(root.dep.target.module, root.dep.handler, [channel])
            found = []
            for dep, channels in closure:
                if (name := names.get(dep.target.module)) is not None:
                    dimension = Dimension(name, dep.handler, dep.target.pruning_dim)
                    found += [slots.setdefault((dimension, i), len(slots)) for i in channels]
            links += [(found[0], slot) for slot in found]
            of_root[-1].append(found[0])
    links += _links_across_heads(model, slots)
    return _components(slots, links, of_root)


def _links_across_heads(
    model: nn.Module, slots: dict[tuple[Dimension, int], int]
) -> list[tuple[int, int]]:
    """Pairs of slots, so that all heads, or groups of one layer, lose the same channels."""
    links, modules = [], dict(model.named_modules())
    first: dict[tuple[Dimension, int], int] = {}
    for (dimension, channel), slot in slots.items():
        module = modules.get(dimension.layer)
        if (parts := _parts(module)) > 1:
            size = dimension.cut.__self__.get_in_channels(module)
            if not dimension.is_input:
                size = dimension.cut.__self__.get_out_channels(module)
            links.append((first.setdefault((dimension, channel % (size // parts)), slot), slot))
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
    slots: dict[tuple[Dimension, int], int],
    links: Sequence[tuple[int, int]],
    of_root: Sequence[Sequence[int]],
) -> list[list[Unit]]:
    """Groups, as in `coupled_groups`: linked slots form a unit, units of one root a group."""
    in_unit = _labels(len(slots), links)
    of_group = [(own[0], slot) for own in of_root for slot in own]
    in_group = _labels(len(slots), [*links, *of_group])
    groups: dict[int, dict[int, Unit]] = {}
    for (dimension, channel), slot in slots.items():
        unit = groups.setdefault(in_group[slot], {}).setdefault(in_unit[slot], {})
        unit.setdefault(dimension, []).append(channel)
    return [list(units.values()) for units in groups.values()]


def _labels(count: int, links: Sequence[tuple[int, int]]) -> list[int]:
    """For each of `count` vertices, the number of the component that these edges put it in."""
    from scipy.sparse import coo_array  # these take a while to import
    from scipy.sparse.csgraph import connected_components

    one, other = zip(*links, strict=True) if links else ((), ())
    edges = coo_array(([1] * len(links), (one, other)), shape=(count, count))
    return connected_components(edges, directed=False)[1].tolist()


@torch.no_grad()
def cut_out(model: nn.Module, units: Iterable[Unit]) -> nn.Module:
    """A copy of `model`, in the same memory format, without these units."""
    sliced = copy.deepcopy(model)
    removed: Unit = {}
    for unit in units:
        for dimension, channels in unit.items():
            removed.setdefault(dimension, []).extend(channels)
    for dimension, channels in removed.items():
        _cut(sliced, dimension, sorted(channels))
    for p, whole in zip(sliced.parameters(), model.parameters(), strict=True):
        if whole.dim() == 4 and whole.is_contiguous(memory_format=torch.channels_last):
            p.data = p.data.contiguous(memory_format=torch.channels_last)
    return sliced


def _cut(model: nn.Module, dimension: Dimension, channels: list[int]) -> None:
    parent, _, name = dimension.layer.rpartition(".")
    layer = getattr(model.get_submodule(parent), name) if name else model
    if isinstance(layer, nn.LayerNorm):
        for channel in reversed(channels):  # of several, torch-pruning 1.6 may permute the others
            dimension.cut(layer, [channel])
        return
    dimension.cut.__self__.pruning_dim = dimension.axis
    result = dimension.cut(layer, channels)
    if isinstance(layer, nn.Parameter):
        setattr(model.get_submodule(parent), name, result)


def refusal(problem: str) -> UserError:
    return UserError(f"--granularity channels: {problem}; prune this network's weights instead")


def reason(error: Exception) -> str:
    """The type of an error and the first line of its message."""
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
