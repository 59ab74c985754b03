"""Projected stochastic gradient descent."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from constraints import Region
from optim.base import ConstrainedOptimizer
from optim.tensor_step import TensorStep


class ProjectedSGD(ConstrainedOptimizer):
    """SGD with momentum, each step followed by the Euclidean projection onto the region.

    Each step on a parameter theta with gradient g, in terms of the options:

        m     <- g at its first step, then momentum m + g
        theta <- the point of theta's region nearest to theta - lr m

    Over unconstrained regions it is torch.optim.SGD. `weight_decay` times theta is added to g;
    `maximize` negates g. `params` and `constraints`, and what all types of parameters have in
    common, are described in ConstrainedOptimizer. Raises ValueError for a value that does not fit.
    """

    kind = "ProjectedSGD"

    def __init__(
        self,
        params: Iterable[Any],
        constraints: Sequence[Region],
        lr: float | Tensor = 0.1,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        *,
        maximize: bool = False,
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "maximize": maximize,
        }
        super().__init__(params, constraints, defaults)

    def _take(self, steps: Sequence[TensorStep]) -> None:
        for s in steps:
            _descend(s)
            projected = s.region.euclidean_project(s.theta)
            # 0, or NaN if an entry of m is infinite or NaN; without waiting for the device.
            broken = torch.linalg.vector_norm(s.momentum_buffer, math.inf) * 0
            s.theta.copy_(projected.add_(broken))


def _descend(s: TensorStep) -> None:
    """The gradient step, in place."""
    theta, m, lr = s.theta, s.momentum_buffer, s.group["lr"]
    m.mul_(s.momentum).add_(s.decayed_gradient())
    # A tensor on a GPU cannot be an `alpha` without waiting for it.
    theta.sub_(m * lr.reshape(())) if isinstance(lr, Tensor) else theta.add_(m, alpha=-lr)
