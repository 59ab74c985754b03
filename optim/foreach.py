"""SFW's step in PyTorch's own operations, on any device, for any type of tensor and any region.

Tensors with the same options are stepped together, as lists, by PyTorch's `_foreach_` functions.
Tensors of one shape whose vertices look alike are rows of one matrix: a few operations for each of
the 17 shapes of ResNet18, instead of for each of its 62 tensors. Nothing waits for a device.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from constraints import Region
from constraints.tensors import l2_norm
from optim.base import TensorStep


def rescaling(s: TensorStep) -> float | None:
    """gamma, or None for ||m|| / ||theta - v||, which is computed during the step."""
    rescale = s.group["rescale"]
    if rescale == "gradient":
        return None
    return 1 / s.region.diameter if rescale == "diameter" else 1.0


def plain_step(steps: Iterable[TensorStep]) -> None:
    """Advance each momentum buffer and move each `theta`, in place."""
    together = defaultdict(list)
    for s in steps:
        together[id(s.group), s.momentum, s.theta.device, s.theta.dtype].append(s)
    for alike in together.values():
        theta, gradients, m = map(list, zip(*(s.tensors for s in alike), strict=True))
        if decay := alike[0].group["weight_decay"]:
            gradients = torch._foreach_add(gradients, theta, alpha=decay)
        if momentum := alike[0].momentum:
            torch._foreach_lerp_(m, gradients, 1 - momentum)
        else:
            torch._foreach_copy_(m, gradients)
        move_to_vertices(alike)


def move_to_vertices(steps: Sequence[TensorStep]) -> None:
    """Move each `theta` in place, when the momentum buffers have been advanced."""
    theta, m = [s.theta for s in steps], [s.momentum_buffer for s in steps]
    v = vertices([s.region for s in steps], m)
    gammas = [rescaling(s) for s in steps]
    if None in gammas:
        gammas, distances = _norms(m), _norms(torch._foreach_sub(theta, v))
        # At a vertex ||theta - v|| is 0. The ratio is cut to a finite number, so that a learning
        # rate of 0 times the ratio is 0.
        limits = torch.finfo(gammas[0].dtype)
        torch._foreach_clamp_min_(distances, limits.tiny)
        torch._foreach_div_(gammas, distances)
        torch._foreach_clamp_max_(gammas, limits.max)
    # 0, or NaN where an entry of m is infinite or NaN, which is to be seen in all of theta.
    broken = torch._foreach_mul(torch._foreach_norm(m, torch.inf), 0.0)
    alphas = torch._foreach_add(broken, gammas)
    lr = steps[0].group["lr"]
    on_device = isinstance(lr, Tensor) and not lr.is_cpu
    torch._foreach_mul_(alphas, lr.reshape(()) if on_device else float(lr))
    torch._foreach_clamp_min_(alphas, 0.0)
    torch._foreach_clamp_max_(alphas, 1.0)
    torch._foreach_lerp_(theta, v, alphas)
    for s, alpha in zip(steps, alphas, strict=True):
        s.alpha = alpha


def _norms(tensors: Sequence[Tensor]) -> Sequence[Tensor]:
    """The L2 norm of each of the tensors, which are on one device."""
    return list(map(l2_norm, tensors)) if tensors[0].is_cpu else torch._foreach_norm(tensors)


def vertices(regions: Sequence[Region], gradients: Sequence[Tensor]) -> list[Tensor]:
    """The LMO of each region at its gradient; NaN in a gradient need not show in the vertex."""
    v: list[Tensor] = [None] * len(regions)
    together = defaultdict(list)
    for i, (region, g) in enumerate(zip(regions, gradients, strict=True)):
        if region.vertex is None:
            v[i] = region.lmo(g)
        else:
            together[region.vertex, g.shape].append(i)
    for (vertex, shape), places in together.items():
        own = [gradients[i] for i in places]
        rows = torch.stack(own) if len(own) > 1 else own[0]  # which need not be copied
        found = vertex.furthest(rows.reshape(len(own), -1)).view(len(own), *shape)
        for i, point in zip(places, found.unbind(), strict=True):
            v[i] = point
    places = [i for alike in together.values() for i in alike]
    if places:
        torch._foreach_mul_([v[i] for i in places], [-regions[i].radius for i in places])
    return v
