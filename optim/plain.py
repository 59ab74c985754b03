"""SFW's step as the algorithm has it, on any device, for any type of tensor and any region.

All tensors with the same options take it together: lists go through PyTorch's `_foreach_`
functions, and tensors of one shape, whose regions differ only in their radius, share an LMO. So a
step of ResNet18 dispatches a few operations for each of its 17 shapes, not for each of its 62
tensors. Nothing waits for a device.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from constraints import Region
from optim.constrained import TensorStep


def rescaling(s: TensorStep) -> float | None:
    """gamma; None stands for ||m|| / ||theta - v||, which is not known before the step."""
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
        _step(alike)


def _step(steps: Sequence[TensorStep]) -> None:
    group, momentum = steps[0].group, steps[0].momentum
    theta, gradients, m = map(list, zip(*(s.tensors for s in steps), strict=True))
    if group["weight_decay"]:
        gradients = torch._foreach_add(gradients, theta, alpha=group["weight_decay"])
    if momentum:
        torch._foreach_lerp_(m, gradients, 1 - momentum)
    else:
        torch._foreach_copy_(m, gradients)
    v = vertices([s.region for s in steps], m)
    gammas = [rescaling(s) for s in steps]
    # 0, but NaN where an entry is infinite or NaN, which is to be seen in all of theta.
    alphas = torch._foreach_norm(m, torch.inf)
    torch._foreach_mul_(alphas, 0.0)
    if None in gammas:
        gammas = _relative_norms(m, torch._foreach_sub(theta, v))
    torch._foreach_add_(alphas, gammas)
    lr = group["lr"]
    on_device = isinstance(lr, Tensor) and not lr.is_cpu
    torch._foreach_mul_(alphas, lr.reshape(()) if on_device else float(lr))
    torch._foreach_clamp_min_(alphas, 0.0)
    torch._foreach_clamp_max_(alphas, 1.0)
    torch._foreach_lerp_(theta, v, alphas)


def _relative_norms(m: Sequence[Tensor], differences: Sequence[Tensor]) -> Sequence[Tensor]:
    """||m|| / ||theta - v|| for each tensor.

    At a vertex ||theta - v|| is 0. The ratio stays finite, so that a learning rate of 0 counts.
    """
    limits = torch.finfo(m[0].dtype)
    ratios, distances = torch._foreach_norm(m), torch._foreach_norm(differences)
    torch._foreach_clamp_min_(distances, limits.tiny)
    torch._foreach_div_(ratios, distances)
    torch._foreach_clamp_max_(ratios, limits.max)
    return ratios


def vertices(regions: Sequence[Region], gradients: Sequence[Tensor]) -> list[Tensor]:
    """The LMO of each region at its gradient; without NaN, maybe, where that has NaN."""
    v: list[Tensor] = [None] * len(regions)
    together = defaultdict(list)
    for i, (region, g) in enumerate(zip(regions, gradients, strict=True)):
        if region.furthest is None:
            v[i] = region.lmo(g)
        else:
            together[region.alike(), g.shape].append(i)
    for (_, shape), places in together.items():
        first, *others = (gradients[i] for i in places)
        rows = torch.stack([first, *others]) if others else first  # which need not be copied
        found = regions[places[0]].furthest(rows.reshape(len(places), -1))
        points = found.view(-1, *shape).unbind() if others else [found.view(shape)]
        for i, point in zip(places, points, strict=True):
            v[i] = point
    places = [i for alike in together.values() for i in alike]
    if places:
        torch._foreach_mul_([v[i] for i in places], [-regions[i].radius for i in places])
    return v
