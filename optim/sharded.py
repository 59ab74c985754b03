"""Steps on sharded parameters: DTensors of FSDP2 and of tensor parallelism.

Every process moves the entries that it has. What depends on whole tensors are a few numbers, for
which processes send each other messages, one in each round for all parameters that are sharded over
the same processes. SFW on K-sparse polytopes takes four rounds: three counts of digits, by which
the K-th largest magnitude is found exactly, and the norms. Where more entries tie at that
magnitude than a vertex has room for, counts of their positions follow, so that the first ones in
the tensor's order are chosen however it is sharded.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from constraints.dtensor import entries
from constraints.parts import Computation, Norm, applied, lp_norm, together
from optim.constrained import TensorStep
from optim.plain import advance, move, rescaling, stepped_together


def sfw_step(steps: Sequence[TensorStep]) -> None:
    """`optim.plain.plain_step` for DTensors. All their processes must take it together."""
    tensors, own = [s.momentum_buffer for s in steps], [own_entries(s) for s in steps]
    for alike in stepped_together(own):
        advance(alike)
    v = together([s.region.vertex_in_parts(s.momentum_buffer) for s in steps], tensors)
    norms = together([_norms(s, point) for s, point in zip(own, v, strict=True)], tensors)
    found = {id(s): (point, *three) for s, point, three in zip(own, v, norms, strict=True)}
    for alike in stepped_together(own):
        move(alike, *zip(*(found[id(s)] for s in alike), strict=True))
    for s, mine in zip(steps, own, strict=True):
        s.alpha = mine.alpha


def _norms(s: TensorStep, v: Tensor) -> Computation:
    """What `optim.plain.move` needs: 0 or NaN, ||m|| and ||theta - v||."""
    numbers = [lp_norm(s.momentum_buffer, math.inf) * 0]
    if rescaling(s) is None:
        numbers += [lp_norm(s.momentum_buffer, 2) ** 2, lp_norm(s.theta - v, 2) ** 2]
    broken, *squares = (yield Norm(torch.stack(numbers))).unbind()
    sizes = [x.sqrt().to(v.dtype) for x in squares] or (None, None)
    return broken.to(v.dtype), *sizes


def project(steps: Sequence[TensorStep]) -> None:
    """Move each theta, a DTensor, to the nearest point of its region, or to NaN if m is broken."""
    projected = together([_projection(s) for s in steps], [s.theta for s in steps])
    for s, point in zip(steps, projected, strict=True):
        entries(s.theta).copy_(point)


def _projection(s: TensorStep) -> Computation:
    point = yield from applied(s.region.euclidean_project, s.theta)
    broken = yield Norm(lp_norm(entries(s.momentum_buffer), math.inf) * 0)
    return point.add_(broken.to(point.dtype))


def own_entries(s: TensorStep) -> TensorStep:
    """The step on the entries that this process has of a DTensor."""
    theta, gradient, m = map(entries, s.tensors)
    return replace(s, theta=theta, gradient=gradient, momentum_buffer=m)
