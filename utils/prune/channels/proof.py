"""Proof, on the dense network, that channels that go together are those that depend on each other.

A cut that runs may be wrong: where code puts channels in another order, torch-pruning names columns
of the next layer that belong to others. So some units are poisoned: their channels become NaN where
a layer writes them. At every layer that reads channels, exactly those of these units must be NaN.
There they become zeros, so that what else depends on a unit, such as a mean over all channels, is
NaN at a layer where that is not expected, or in the outputs.
"""

import copy
from collections.abc import Sequence
from itertools import combinations, count, islice
from math import comb
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from utils.prune.channels.graph import Dimension, Unit

# What layers with channels call their inputs; others, such as masks, have none.
INPUTS = ("input", "query", "key", "value")


@torch.no_grad()
def unproven(model: nn.Module, images: Tensor, groups: Sequence[Sequence[Unit]]) -> set[int]:
    """The numbers of the groups of which not every unit is proven. `model` itself is not run.

    This takes about as many forward passes as the number of units has bits; if not all is proven,
    as many again, and one for each group.
    """
    if not groups:
        return set()
    network = _Poisoned(copy.deepcopy(model).eval(), images, groups)
    codes = _codes(len(network.group_of))
    if not any(network.failing(code) for code in codes):
        return set()
    failed = {n for n in range(len(groups)) if network.failing(network.group_of == n)}
    rest = ~torch.isin(network.group_of, torch.tensor(sorted(failed)))
    return failed.union(*(network.failing(code & rest) for code in codes))


def _codes(units: int) -> Tensor:
    """For each forward pass, which units are poisoned in it: bool (passes, units).

    Each is in half of them, and no two in the same half. A channel that is NaN in exactly the
    passes of one unit depends on no other: each other one is in a pass in which it is not NaN.
    """
    passes = next(n for n in count(2) if comb(n, n // 2) >= units)
    chosen = torch.tensor(list(islice(combinations(range(passes), passes // 2), units)))
    return torch.zeros(units, passes, dtype=torch.bool).scatter_(1, chosen, True).T


class _Poisoned:
    """A network in which units can be poisoned."""

    def __init__(self, model: nn.Module, images: Tensor, groups: Sequence[Sequence[Unit]]) -> None:
        self.model, self.images = model, images
        self.group_of = torch.tensor([n for n, group in enumerate(groups) for _ in group])
        # By layer or parameter, the number of the unit of each channel, or -1.
        self.read: dict[nn.Module, Tensor] = {}
        self.written: dict[nn.Module, Tensor] = {}
        self.parameters: list[tuple[nn.Parameter, int, Tensor]] = []
        self._find_channels([unit for group in groups for unit in group])
        self.axes: dict[nn.Module, int] = {}  # where the channels of a layer were found
        self.passed: set[nn.Module] = set()
        self.failed: set[int] = set()
        for layer in self.read.keys() | self.written.keys():
            layer.register_forward_pre_hook(self._before, with_kwargs=True)
            layer.register_forward_hook(self._after)

    def _find_channels(self, units: Sequence[Unit]) -> None:
        modules: dict[str, Any] = dict(self.model.named_modules())
        modules |= dict(self.model.named_parameters())
        found: dict[Dimension, Tensor] = {}
        for number, unit in enumerate(units):
            for dimension, channels in unit.items():
                if dimension not in found:
                    found[dimension] = torch.full((dimension.size(modules[dimension.layer]),), -1)
                found[dimension][channels] = number
        for dimension, numbers in found.items():
            module = modules[dimension.layer]
            if isinstance(module, nn.Parameter):
                self.parameters.append((module, dimension.axis, numbers))
                continue
            if dimension.is_read:
                self.read[module] = numbers
            if not dimension.is_input:
                self.written[module] = numbers

    def failing(self, units: Tensor) -> set[int]:
        """The numbers of the groups that fail when these units, bool (units,), are poisoned."""
        self.failed, self.poisoned = set(), torch.cat([units, torch.tensor([False])])
        self.all_poisoned = set(self.group_of[units].tolist())
        self.passed.clear()
        clean = [parameter.clone() for parameter, _, _ in self.parameters]
        try:
            for parameter, axis, numbers in self.parameters:
                parameter.copy_(self._filled(parameter, axis, numbers, torch.nan))
            if self.model(self.images).isnan().any():
                self.failed |= self.all_poisoned
        except Exception:  # whatever the network's own code raises of NaN
            return self.all_poisoned
        finally:
            for (parameter, _, _), values in zip(self.parameters, clean, strict=True):
                parameter.copy_(values)
        for layer, numbers in (*self.read.items(), *self.written.items()):
            if layer not in self.passed:
                self._fail(numbers[self.poisoned[numbers]])
        return self.failed

    def _before(self, layer: nn.Module, inputs: tuple, named: dict[str, Any]) -> tuple | None:
        """Check what is NaN in the inputs of a layer, and replace it."""
        self.passed.add(layer)
        if layer not in self.read:
            return None
        several = 3 if isinstance(layer, nn.MultiheadAttention) else 1
        checked = [self._checked(layer, values) for values in inputs[:several]]
        named = {k: self._checked(layer, v) if k in INPUTS else v for k, v in named.items()}
        return (*checked, *inputs[several:]), named

    def _checked(self, layer: nn.Module, values: Tensor) -> Tensor:
        numbers = self.read[layer]
        expected, wrong = self.poisoned[numbers], numbers
        for axis in _possible_axes(layer, values):
            if values.shape[axis] == len(numbers):
                others = [i for i in range(values.dim()) if i != axis % values.dim()]
                found = values.sum(others).isnan().cpu()
                if found.equal(expected):
                    self.axes[layer] = axis
                    return self._filled(values, axis, numbers, 0)
                wrong = numbers[found != expected]
        self._fail(wrong)
        return values.masked_fill(values.isnan(), 0)

    def _after(self, layer: nn.Module, inputs: tuple, outputs: Any) -> Any:
        """Poison the outputs of a layer."""
        if layer not in self.written:
            return None
        values, *others = outputs if isinstance(outputs, tuple) else (outputs,)
        axis = self.axes.get(layer, _possible_axes(layer, values)[0])
        values = self._filled(values, axis, self.written[layer], torch.nan)
        return (values, *others) if isinstance(outputs, tuple) else values

    def _filled(self, values: Tensor, axis: int, numbers: Tensor, value: float) -> Tensor:
        shape = [len(numbers) if i == axis % values.dim() else 1 for i in range(values.dim())]
        return torch.where(self.poisoned[numbers].to(values.device).view(shape), value, values)

    def _fail(self, numbers: Tensor) -> None:
        """The channels of the units with these numbers do not depend on what they should."""
        self.failed |= set(self.group_of[numbers[numbers >= 0]].tolist())
        if (numbers < 0).any():  # what belongs to no unit
            self.failed |= self.all_poisoned


def _possible_axes(layer: nn.Module, values: Tensor) -> tuple[int, ...]:
    """Where a layer may have its channels in these inputs or outputs."""
    if isinstance(layer, _ConvNd):
        return (values.dim() - len(layer.kernel_size) - 1,)
    if isinstance(layer, nn.LayerNorm) and type(layer).forward is not nn.LayerNorm.forward:
        return (-1, 1)  # some permute what they take, and permute it back
    if isinstance(layer, (nn.Linear, nn.LayerNorm, nn.MultiheadAttention, nn.Embedding)):
        return (-1,)
    return (1,)
