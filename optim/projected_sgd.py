"""Projected stochastic gradient descent."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from constraints import Region
from optim.base import ConstrainedOptimizer, TensorStep


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
        defaults = dict(lr=lr, momentum=momentum, weight_decay=weight_decay, maximize=maximize)
        super().__init__(params, constraints, defaults)

    def _take(self, steps: Sequence[TensorStep]) -> None:
        for s in steps:
            (theta, gradient, m), lr, decay = s.tensors, s.group["lr"], s.group["weight_decay"]
            m.mul_(s.momentum).add_(gradient.add(theta, alpha=decay) if decay else gradient)
            # A tensor on a GPU cannot be an `alpha` without waiting for it.
            theta.sub_(m * lr.reshape(())) if isinstance(lr, Tensor) else theta.add_(m, alpha=-lr)
            # 0, or NaN if an entry of m is infinite or NaN; without waiting for the device.
            broken = torch.linalg.vector_norm(m, math.inf) * 0
            theta.copy_(s.region.euclidean_project(theta).add_(broken))
