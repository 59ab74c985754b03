"""Stochastic Frank-Wolfe with momentum."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from constraints import Region
from optim.constrained import ConstrainedOptimizer

# Each gives gamma, by which the learning rate is multiplied, from m, theta - v and the region.
RESCALES: dict[str | None, Callable[[Tensor, Tensor, Region], Tensor | float]] = {
    "gradient": lambda m, difference, region: m.norm() / difference.norm(),
    "diameter": lambda m, difference, region: 1 / region.diameter,
    None: lambda m, difference, region: 1.0,
}


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

    def _check_group(self, group: dict[str, Any]) -> None:
        super()._check_group(group)
        if group["lr"] > 1:
            raise ValueError(f"lr must be at most 1, not {group['lr']}")
        if group["rescale"] not in RESCALES:
            raise ValueError(f"rescale must be one of {list(RESCALES)}, not {group['rescale']!r}")
        if any(math.isinf(self._regions[p].diameter) for p in group["params"]):
            raise ValueError("SFW needs bounded regions: an unconstrained one has no LMO")

    def _update(self, p: Tensor, gradient: Tensor, region: Region, group: dict[str, Any]) -> None:
        state = self.state[p]
        if "momentum_buffer" in state:
            m = state["momentum_buffer"].lerp_(gradient, 1 - group["momentum"])
        else:
            m = state["momentum_buffer"] = torch.clone(gradient)
        v = region.lmo(m)
        gamma = RESCALES[group["rescale"]](m, p - v, region)
        alpha = group["lr"] * gamma
        if isinstance(alpha, Tensor):
            # At a vertex ||theta - v|| is 0 and alpha infinite or, with m = 0, not a number.
            p.lerp_(v, alpha.nan_to_num(0.0).clamp(0, 1).to(p.dtype))
        else:
            p.lerp_(v, min(alpha, 1.0))
