"""Which channels of a network can only be cut out together, and cutting them out.

Those that a residual addition adds are coupled, with their BatchNorm and the inputs of the next
layer. torch-pruning's dependency graph finds which, and its functions cut channels out of a layer.
It is an optional requirement, and imported where it is used.
"""

import copy
import itertools
import warnings
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from utils.compute.device import placed
from utils.process.errors import UserError, reason


@dataclass(frozen=True, eq=False)  # each is there once
class Dimension:
    """A dimension of a layer's tensors: its outputs, its inputs, or both where they are the same.

    `pruner` has torch-pruning's functions for this kind of layer. `layer` is the name of a module,
    or of a parameter that belongs to no layer; then `axis` is the axis of that tensor.
    """

    layer: str
    pruner: Any
    is_input: bool  # of the inputs alone
    axis: int

    @property
    def is_read(self) -> bool:
        """Whether the inputs have these channels, alone or as well as the outputs."""
        return self.is_input or self.pruner.prune_in_channels == self.pruner.prune_out_channels

    def size(self, module: nn.Module) -> int | None:
        """The number of channels that the module has in this dimension; None if none of its own."""
        pruner = self.pruner
        pruner.pruning_dim = self.axis
        return (pruner.get_in_channels if self.is_input else pruner.get_out_channels)(module)

    def cut(self, module: nn.Module, channels: list[int]) -> nn.Module:
        """Remove these channels from the module in place, or from a copy of a parameter."""
        pruner = self.pruner
        pruner.pruning_dim = self.axis
        cut = pruner.prune_in_channels if self.is_input else pruner.prune_out_channels
        return cut(module, channels)


# Channels that are cut out together, by the dimensions in which they lie.
Unit = dict[Dimension, list[int]]
# The number of each channel, by its dimension; and the numbers of two that are linked.
Vertices = dict[Dimension, dict[int, int]]
Link = tuple[int, int]

MAX_LINKS = 10_000_000  # between channels of a network; vit_b_16 has 0.6 million


def coupled_groups(model: nn.Module, images: Tensor) -> tuple[list[list[Unit]], list[str]]:
    """The groups of channels of a network; each is divided into the units that can be cut out.

    Every channel is in one unit at most. A group is what a residual stream or a hidden layer
    consists of; that of the network's outputs is left out. `model` is in evaluation mode, and
    takes `images`; its layers may be frozen. Returns the layers that no gradient leads to, too:
    torch-pruning follows gradients. Raises UserError if it fails or finds more than MAX_LINKS.

    A pair of a dimension and the number of a channel in it is a vertex of a graph. Two vertices are
    linked if torch-pruning cuts the one out with the other: a unit is a component of this graph.
    """
    import torch_pruning

    traced, ran = copy.deepcopy(model), {}
    for parameter in traced.parameters():
        parameter.requires_grad_(parameter.is_floating_point())  # the graph follows gradients
    layers = [m for m in traced.modules() if isinstance(m, (nn.Linear, _ConvNd))]
    for layer in layers:
        layer.register_forward_hook(lambda m, *_: ran.update({m: 1}))
    graph = torch_pruning.DependencyGraph()
    try:
        with torch.enable_grad(), warnings.catch_warnings(action="ignore"):
            graph.build_dependency(traced, (images,), verbose=False)
        tracing = _Tracing(traced, graph)
        for layer in (m for m in graph.module2node if m in layers):
            tracing.follow(layer)
    except Exception as error:  # torch-pruning's errors have no common type
        raise refusal(f"torch-pruning cannot follow its channels ({reason(error)})") from None
    tracing.links += _links_across_heads(traced, tracing.vertices)
    lost = [tracing.names[layer] for layer in ran if layer not in graph.module2node]
    return tracing.groups(), lost


class _Index(NamedTuple):
    """A channel, and the one with which it goes of the layer that is followed; None: unknown."""

    idx: int
    root_idx: int | None


class _Tracing:
    """What is cut out with the output channels of layers, as torch-pruning's graph has it."""

    def __init__(self, model: nn.Module, graph: Any) -> None:
        self.graph = graph
        self.names: dict[Any, str] = {module: name for name, module in model.named_modules()}
        self.names |= {parameter: name for name, parameter in model.named_parameters()}
        self.number = itertools.count().__next__
        self.dimensions: dict[tuple[Any, Any], Dimension] = {}  # by what cuts them
        self.vertices: Vertices = {}
        self.links: list[Link] = []
        self.of_roots: list[list[int]] = []  # the vertices of each layer that was followed
        # What has been followed, and a vertex of the layer with which that was.
        self.followed: dict[Any, int] = {}
        self.found = 0
        nodes = graph.module2node.values()
        sizes = (size(n) for n in nodes for size in (graph.get_in_channels, graph.get_out_channels))
        self.widest = max(size or 0 for size in sizes)  # what torch-pruning loses track of may grow

    def follow(self, layer: nn.Module) -> None:
        """Link each output channel of a layer to all that is cut out with it.

        This is what torch-pruning's `get_pruning_group` does, for all channels at once: each index
        of a channel carries that of the layer's channel with which it goes.
        """
        from torch_pruning.dependency import Dependency

        if layer in self.followed:
            return
        cut = self.graph.get_pruner_of_module(layer).prune_out_channels
        first = Dependency(cut, cut, None, self.graph.module2node[layer])
        channels = range(self.graph.get_out_channels(layer))
        root = self._vertices_of(first)
        self.of_roots.append([root[channel] for channel in channels])
        seen: dict[tuple[Any, Any], set] = defaultdict(set)
        steps = [(first, [_Index(channel, channel) for channel in channels])]
        while steps:
            dep, indices = steps.pop()
            before = seen[dep.target, dep.handler]
            indices = [index for index in indices if index not in before]
            before.update(indices)
            self._link(root, dep, indices)
            for further in dep.target.dependencies if indices else ():
                if further.is_triggered_by(dep.handler):
                    steps.append((further, self._mapped(further, indices)))

    def _link(self, root: dict[int, int], dep: Any, indices: list[_Index]) -> None:
        """Link channels of what `dep` cuts to the channels of the root with which they go."""
        self.found += len(indices)
        self._check(self.found)
        if indices and self.graph.is_out_channel_pruning_fn(dep.handler):
            self.followed.setdefault(dep.target.module, root[0])
        if (own := self._vertices_of(dep)) is not None:
            # Of an index without a root torch-pruning does not know with what it goes.
            self.links += [
                (root[i.root_idx], own[i.idx]) for i in indices if i.root_idx is not None
            ]

    def _mapped(self, dep: Any, indices: list[_Index]) -> list[_Index]:
        """The channels of what `dep` cuts that go with these of its source."""
        found: dict[_Index, None] = {}
        for start in range(0, len(indices), 1000):  # of each many may come
            some = indices[start : start + 1000]
            for mapping in filter(None, dep.index_mapping):
                some = mapping(some)
            found |= dict.fromkeys(index for index in some if index.idx < self.widest)
            self._check(self.found + len(found))
        return list(found)

    def _check(self, found: int) -> None:
        if found > MAX_LINKS:
            raise RuntimeError(f"it finds more than {MAX_LINKS:,} pairs of coupled channels")

    def _vertices_of(self, dep: Any) -> dict[int, int] | None:
        """Those of a dimension, numbered as they are asked for; None of what has no channels."""
        target, key = dep.target.module, (dep.target, dep.handler)
        if key not in self.dimensions and target in self.names:
            pruner = dep.handler.__self__
            is_input = dep.handler == pruner.prune_in_channels != pruner.prune_out_channels
            dimension = Dimension(self.names[target], pruner, is_input, dep.target.pruning_dim)
            if dimension.size(target) is not None:  # as of PReLU with one parameter
                self.dimensions[key] = dimension
                self.vertices[dimension] = defaultdict(self.number)
        return self.vertices.get(self.dimensions.get(key))

    def groups(self) -> list[list[Unit]]:
        """As `coupled_groups`: linked vertices form a unit, units of one root a group."""
        if not self.of_roots:
            return []
        unit_of = _labels(self.number(), self.links)
        of_roots = [[unit_of[vertex] for vertex in own] for own in self.of_roots]
        links = [(own[0], unit) for own in of_roots for unit in own]
        group_of = _labels(max(unit_of) + 1, links)
        groups: dict[int, dict[int, Unit]] = {}
        for dimension, own in self.vertices.items():
            for channel, vertex in own.items():
                number = unit_of[vertex]
                unit = groups.setdefault(group_of[number], {}).setdefault(number, {})
                unit.setdefault(dimension, []).append(channel)
        last = next(iter(self.graph.module2node))  # torch-pruning begins at the end
        if last in self.followed:
            groups.pop(group_of[unit_of[self.followed[last]]], None)
        return [list(units.values()) for units in groups.values()]


def _links_across_heads(model: nn.Module, vertices: Vertices) -> list[Link]:
    """Links by which all heads, or all groups of one layer, lose the same channels."""
    links, modules = [], dict(model.named_modules())
    for dimension, own in vertices.items():
        module = modules.get(dimension.layer)
        if (parts := _parts(module)) > 1:
            first: dict[int, int] = {}
            within = dimension.size(module) // parts
            links += [(first.setdefault(i % within, vertex), vertex) for i, vertex in own.items()]
    return links


def _parts(module: nn.Module | None) -> int:
    """The number of parts into which a layer divides its channels, which have the same size."""
    if isinstance(module, nn.MultiheadAttention):
        return module.num_heads
    if isinstance(module, nn.GroupNorm):
        return module.num_groups
    groups = getattr(module, "groups", 1)
    return groups if groups < getattr(module, "out_channels", 0) else 1  # depthwise: no parts


def _labels(count: int, links: Sequence[Link]) -> list[int]:
    """For each of `count` vertices, the number of the component that these edges put it in."""
    from scipy.sparse import coo_array  # these take a while to import
    from scipy.sparse.csgraph import connected_components

    ends = np.array(links, np.int32).reshape(-1, 2).T
    edges = coo_array((np.ones(len(links), np.int8), tuple(ends)), shape=(count, count))
    return connected_components(edges, directed=False)[1].tolist()


def channels_of(units: Iterable[Unit]) -> Unit:
    """All channels of these units, ascending in each dimension."""
    found: Unit = defaultdict(list)
    for unit in units:
        for dimension, channels in unit.items():
            found[dimension] += channels
    return {dimension: sorted(channels) for dimension, channels in found.items()}


@torch.no_grad()
def cut_out(model: nn.Module, units: Iterable[Unit]) -> nn.Module:
    """A copy of `model` without these units, channels_last if `model` is and the copy can be."""
    sliced = copy.deepcopy(model)
    for dimension, channels in channels_of(units).items():
        _cut(sliced, dimension, channels)
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    for name, p in sliced.named_parameters():
        p.requires_grad_(name not in frozen)
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
