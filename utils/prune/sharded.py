"""Magnitude pruning of sharded parameters (DTensors): no process ever has more than its entries."""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from constraints.dtensor import entries, is_sharded, positions
from constraints.parts import Computation, Norm, together
from constraints.selection import key_bits, magnitude_keys, smallest


def zero_smallest(parameters: Sequence[Tensor], count: int) -> None:
    """Set the `count` entries smallest in magnitude of all parameters to 0, in place.

    Of entries that tie, the first in the order of the parameters, and in each of them in its own
    order, are removed. All processes must call it together.
    """
    own = [entries(p.detach()) for p in parameters]
    dtype = torch.promote_types(max((x.dtype for x in own), key=key_bits), torch.float32)
    keys = [partial(_keys, x, dtype) for x in own]
    starts = torch.tensor([0] + [p.numel() for p in parameters]).cumsum(0).tolist()
    places = [partial(_places, p, start) for p, start in zip(parameters, starts, strict=False)]
    chosen = _driven(smallest(keys, count, key_bits(dtype), places, starts[-1]), parameters)
    for x, mask in zip(own, chosen, strict=True):
        x.masked_fill_(mask.view(x.shape), 0)


def _keys(x: Tensor, dtype: torch.dtype) -> Tensor:
    return magnitude_keys(x.to(dtype))


def _places(p: Tensor, start: int, local: Tensor) -> Tensor:
    """Where in all parameters, of which `p` begins at `start`, entries of p's part are."""
    return positions(p, local) + start


def _driven(selection: Computation, parameters: Sequence[Tensor]) -> list[Tensor]:
    """The result of a computation that asks for numbers of each of the parameters in rows."""
    sharded = [i for i, p in enumerate(parameters) if is_sharded(p)]
    try:
        rows = next(selection).values
        while True:
            parts = [_ask(rows[i]) for i in sharded]
            wholes = together(parts, [parameters[i] for i in sharded])
            rows[sharded] = torch.stack(wholes)
            rows = selection.send(rows).values
    except StopIteration as end:
        return end.value


def _ask(values: Tensor) -> Computation:
    return (yield Norm(values))
