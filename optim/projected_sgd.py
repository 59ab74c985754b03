"""Projected stochastic gradient descent."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from constraints import Region
from optim.constrained import ConstrainedOptimizer, decayed_gradient


class ProjectedSGD(ConstrainedOptimizer):
    """SGD with momentum, each step followed by the Euclidean projection onto the region.

    Over unconstrained regions it is torch.optim.SGD: m <- g at a parameter's first step, then
    rho m + g; theta <- project(theta - eta m). `weight_decay` times theta is added to g. `params`
    and `constraints` are as in ConstrainedOptimizer. Raises ValueError for a value that does not
    fit.
    """

    def __init__(
        self,
        params: Iterable[Any],
        constraints: Sequence[Region],
        lr: float = 0.1,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}
        super().__init__(params, constraints, defaults)

    def _update(self, p: Tensor, region: Region, group: dict[str, Any]) -> None:
        state, gradient = self.state[p], decayed_gradient(p, group)
        if "momentum_buffer" in state:
            m = state["momentum_buffer"].mul_(group["momentum"]).add_(gradient)
        else:
            m = state["momentum_buffer"] = torch.clone(gradient)
        lr = group["lr"]
        # A tensor on a GPU cannot be an `alpha` without waiting for it.
        p.sub_(m * lr) if isinstance(lr, Tensor) else p.add_(m, alpha=-lr)
        p.copy_(region.euclidean_project(p))
