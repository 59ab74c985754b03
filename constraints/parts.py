"""Numbers of whole tensors whose entries lie in several processes.

A computation "in parts" is a generator. It works on the entries that this process has. Where it
needs a number that depends on all entries, it yields its own part of it as a Norm, and is sent the
whole. So the computations of many tensors can take turns together and share their messages. For a
tensor that is not sharded, the part is the whole.
"""

import functools
import inspect
import math
from collections import defaultdict
from collections.abc import Callable, Generator, Hashable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from constraints.dtensor import entries, is_sharded, like, part_of, sharding_dims

TINY = torch.finfo(torch.float64).tiny


class Norm(NamedTuple):
    """Lp norms of a process's entries; it needs those of all entries.

    `values`, which are not negative, are a tensor of any shape or a tuple of numbers; so will be
    the whole. A norm with p = 1 is a sum, and integers are summed exactly.
    """

    values: Tensor | tuple[float, ...]
    p: float = 1


Computation = Generator[Norm, Tensor, Any]


def alone(computation: Any) -> Any:
    """The result of a computation on a whole tensor; a result itself is returned."""
    if not inspect.isgenerator(computation):
        return computation
    try:
        part = next(computation)
        while True:
            part = computation.send(part.values)
    except StopIteration as end:
        return end.value


def together(computations: Sequence[Computation], tensors: Sequence[Tensor]) -> list[Any]:
    """The results of computations on this process's parts of DTensors, one for each of `tensors`.

    Tensors that are sharded over the same processes share a message for each number that they ask
    for in turn. Every process of theirs must call this with the same tensors and computations.
    """
    results: list[Any] = [None] * len(computations)
    groups: dict[Hashable, list[int]] = defaultdict(list)
    for i, x in enumerate(tensors):
        groups[x.device_mesh, sharding_dims(x)].append(i)
    for (mesh, dims), places in groups.items():
        wholes: dict[int, Tensor | None] = dict.fromkeys(places)
        while wholes:
            parts = {}
            for i, whole in wholes.items():
                try:
                    parts[i] = computations[i].send(whole)
                except StopIteration as end:
                    results[i] = end.value
            wholes = dict(zip(parts, wholes_of(list(parts.values()), mesh, dims), strict=True))
    return results


def wholes_of(parts: Sequence[Norm], mesh: Any, dims: Sequence[int]) -> list[Any]:
    """The whole norms of tensors that are sharded along the dimensions `dims` of a device mesh.

    One message, along each of `dims`, for all integers, all sums and all largest values.
    """
    wholes = [part.values for part in parts]
    if not dims:
        return wholes
    messages = defaultdict(list)
    for i, (values, p) in enumerate(parts):
        power = _power(values, p, mesh.device_type)
        messages[power.dtype, p == math.inf].append((i, power))
    for (_, is_largest), places in messages.items():
        powers = [power.reshape(-1) for _, power in places]
        message = _reduced(torch.cat(powers), is_largest, mesh, dims)
        for (i, power), sums in zip(places, message.split([len(x) for x in powers]), strict=True):
            values, p = parts[i]
            whole = _root(sums, p)
            if isinstance(values, Tensor):
                wholes[i] = whole.view(power.shape).to(values.dtype)
            else:
                wholes[i] = tuple(whole.tolist())
    return wholes


def _power(values: Tensor | tuple[float, ...], p: float, device: str) -> Tensor:
    """What is added up, or of which the largest is taken, for a norm."""
    if not isinstance(values, Tensor):
        values = torch.tensor(values, dtype=torch.float64, device=device)
    elif values.is_floating_point():
        values = values.double()
    if p == math.inf:
        return values.abs().view(torch.int64)  # in which NaN, of sign +, is larger than any number
    return values if p == 1 else values**p


def _root(values: Tensor, p: float) -> Tensor:
    if p == math.inf:
        return values.view(torch.float64)
    return values if p == 1 else values ** (1 / p)


def _reduced(message: Tensor, is_largest: bool, mesh: Any, dims: Sequence[int]) -> Tensor:
    """The sum, or largest, of the processes' messages: in all of them the same, bit for bit.

    Sums of floating-point numbers may be rounded in another way in each of several groups of
    processes that have the same entries, and so one of them is chosen.
    """
    from torch.distributed import ReduceOp, all_reduce

    for dim in dims:
        operation = ReduceOp.MAX if is_largest else ReduceOp.SUM
        all_reduce(message, operation, group=mesh.get_group(dim))
    if message.is_floating_point():
        for dim in set(range(mesh.ndim)) - {dims[-1]}:
            if mesh.shape[dim] > 1:
                all_reduce(message.view(torch.int64), ReduceOp.MAX, group=mesh.get_group(dim))
    return message


def in_parts(method: Callable[..., Any]) -> Callable[..., Any]:
    """Makes a method of a region, which then takes plain tensors and DTensors, from a computation.

    `method(region, x)` is a computation in parts, or simply returns. It gives a plain tensor:
    either what becomes of this process's `entries(x)`, or one number.
    """

    @functools.wraps(method)
    def whole(region: Any, x: Tensor) -> Tensor:
        if not is_sharded(x):
            return alone(method(region, x))
        (result,) = together([_finished(method(region, x))], [x])
        return like(result, x) if result.shape == entries(x).shape else result

    whole.in_parts = method
    return whole


def applied(method: Callable[[Tensor], Tensor], x: Tensor) -> Computation:
    """What a region's `method`, applied to the DTensor `x`, gives for this process's entries.

    In parts, if the method is `in_parts`. Else every process gets all entries and applies it.
    """
    computation = getattr(method, "in_parts", None)
    if computation is None:
        return part_of(method(x.detach().full_tensor()), x)
    return (yield from _finished(computation(method.__self__, x)))


def _finished(computation: Any) -> Computation:
    """The computation, or one that simply has this result."""
    return (yield from computation) if inspect.isgenerator(computation) else computation


def norm_of(x: Tensor, p: float) -> Computation:
    """The Lp norm of all entries of `x`, a float64 tensor without dimensions."""
    own = entries(x)
    if not 2 < p < math.inf:
        return (yield Norm(lp_norm(own, p), p))
    # In units of the largest entry, whose powers could overflow, or all underflow.
    largest = (yield Norm(lp_norm(own, math.inf), math.inf)).clamp(min=TINY)
    return largest * (yield Norm(lp_norm(own.double() / largest, p), p))


def lp_norm(x: Tensor, p: float) -> Tensor:
    """The Lp norm of all entries of `x`, of which there may be none, as a float64 scalar tensor."""
    if not x.numel():
        return x.new_zeros((), dtype=torch.float64)
    return torch.linalg.vector_norm(x, p, dtype=torch.float64)


def furthest_in_ball(rows: Tensor, p: float) -> Computation:
    """The point of the unit ball of the Lp norm, 1 < p < infinity, furthest along each row g.

    It is sign(g_i) |g_i|^(q-1) / ||g||_q^(q-1), 1/p + 1/q = 1; 0 where g is all 0. It has at least
    the precision of float32.
    """
    # Entries are divided by the largest magnitude, so that their powers neither overflow nor all
    # underflow. Norms of half-precision gradients need more digits than their entries have.
    dtype = torch.promote_types(rows.dtype, torch.float32)
    tiny = torch.finfo(dtype).tiny
    some = rows.shape[-1] > 0
    largest = rows.abs().amax(-1, keepdim=True) if some else rows.new_zeros(len(rows), 1)
    largest = yield Norm(largest.to(dtype), math.inf)
    scaled = rows.to(dtype) / largest.clamp(min=tiny)
    q = p / (p - 1)
    norm = yield Norm(torch.linalg.vector_norm(scaled, q, dim=-1, keepdim=True), q)
    scaled /= norm.clamp(min=tiny)
    return scaled if q == 2 else scaled.abs().pow_(q - 1).mul_(scaled.sign())
