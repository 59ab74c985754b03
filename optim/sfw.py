"""Stochastic Frank-Wolfe with momentum."""

import functools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from constraints import Region
from optim.constrained import ConstrainedOptimizer, decayed_gradient

RESCALES = ("gradient", "diameter", None)


class SFW(ConstrainedOptimizer):
    """Stochastic Frank-Wolfe with momentum (Pokutta, Spiegel and Zimmer, 2020, algorithm 2).

    Each step on a parameter theta with gradient g, momentum rho and learning rate eta:

        m     <- g at its first step, then rho m + (1 - rho) g
        v     <- lmo(m) of theta's region
        gamma  = ||m|| / ||theta - v||  (rescale "gradient"), 1 / diameter ("diameter") or 1 (None)
        theta <- (1 - alpha) theta + alpha v,  alpha = clip(eta gamma, 0, 1)

    A parameter that starts in its region never leaves it (see `constraints.make_feasible`).
    `weight_decay` times theta is added to g. `params` and `constraints` are as in
    ConstrainedOptimizer. Raises ValueError for a value that does not fit, and for a region that
    has no LMO.
    """

    def __init__(
        self,
        params: Iterable[Any],
        constraints: Sequence[Region],
        lr: float = 1.0,
        momentum: float = 0.9,
        rescale: str | None = "gradient",
        weight_decay: float = 0.0,
    ) -> None:
        defaults = {
            "lr": lr, "momentum": momentum, "rescale": rescale, "weight_decay": weight_decay,
        }  # fmt: skip
        super().__init__(params, constraints, defaults)

    def _check_group(self, group: dict[str, Any], regions: Sequence[Region]) -> None:
        super()._check_group(group, regions)
        if group["lr"] > 1:
            raise ValueError(f"lr must be at most 1, not {group['lr']}")
        if group["rescale"] not in RESCALES:
            raise ValueError(f"rescale must be one of {RESCALES}, not {group['rescale']!r}")
        if any(math.isinf(region.diameter) for region in regions):
            raise ValueError("SFW needs bounded regions: an unconstrained one has no LMO")

    def _update(self, p: Tensor, region: Region, group: dict[str, Any]) -> None:
        state, keep = self.state[p], group["momentum"]
        if "momentum_buffer" not in state:
            state["momentum_buffer"], keep = torch.zeros_like(p), 0.0
        m, lr = state["momentum_buffer"], group["lr"]
        gamma = {"gradient": None, "diameter": 1 / region.diameter, None: 1.0}[group["rescale"]]
        fused = _fused_step() if p.device.type == "cpu" else None
        decay = group["weight_decay"]
        if fused is None or not fused(p, m, region, float(lr), gamma, keep, decay):
            plain_step(p, m, region, lr, gamma, keep, decayed_gradient(p, group))


@functools.cache
def _fused_step() -> Callable[..., bool] | None:
    """The step compiled for the CPU; None where Numba, its compiler, is not installed."""
    try:
        from optim.fused import FusedStep  # takes a second to import
    except (ImportError, RuntimeError):  # it is absent, or has nowhere to keep what it compiles
        return None
    return FusedStep()


def plain_step(
    p: Tensor, m: Tensor, region: Region, lr: float | Tensor, gamma: float | None,
    keep: float, gradient: Tensor,
) -> None:  # fmt: skip
    """The step as the algorithm has it, on any device and for any region, in place on p and m.

    `keep` is the momentum, 0 at the first step; `gamma` None stands for ||m|| / ||theta - v||.
    """
    m.lerp_(gradient, 1 - keep) if keep else m.copy_(gradient)
    v = region.lmo(m)
    if gamma is None:
        gamma = m.norm() / (p - v).norm()
    alpha = lr * gamma
    if isinstance(alpha, Tensor):
        # At a vertex ||theta - v|| is 0 and alpha infinite or, with m = 0, not a number.
        p.lerp_(v, alpha.nan_to_num(0.0).clamp(0, 1).to(p.dtype))
    else:
        p.lerp_(v, min(alpha, 1.0))
