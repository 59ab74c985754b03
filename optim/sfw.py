"""Stochastic Frank-Wolfe with momentum."""

import functools
import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from constraints import Region
from optim import cuda
from optim.base import ConstrainedOptimizer, TensorStep
from optim.foreach import plain_step

if TYPE_CHECKING:
    from optim.cpu.step import CpuStep
    from optim.cuda.step import CudaStep

RESCALES = ("gradient", "diameter", None)


class SFW(ConstrainedOptimizer):
    """Stochastic Frank-Wolfe with momentum (Pokutta, Spiegel and Zimmer, 2020, algorithm 2).

    Each step on a parameter theta with gradient g, in terms of the options:

        m     <- g at its first step, then momentum m + (1 - momentum) g
        v     <- lmo(m) of theta's region
        gamma  = ||m|| / ||theta - v||  (rescale "gradient"), 1 / diameter ("diameter") or 1 (None)
        theta <- (1 - alpha) theta + alpha v,  alpha = clip(lr gamma, 0, 1)

    A parameter that starts in its region (see `constraints.make_feasible`) stays in it, up to
    rounding. `weight_decay` times theta is added to g; `maximize` negates g.

    The plain step is written in PyTorch's operations, for any device and region. The fused one
    takes a few passes over memory, for regions with a known `vertex`: on the CPU, compiled by
    Numba, and on NVIDIA GPUs, compiled by Triton, for float32 parameters and a SignVertex; on both
    also for half precision. `fused` None takes it for each parameter for which it can be taken,
    True requires it for all, False never takes it. On a GPU the first step tries it on small
    tensors, and warns if it fails; so a first step cannot be captured in a CUDA graph.

    `params` and `constraints`, and what all types of parameters have in common, are described in
    ConstrainedOptimizer. Raises ValueError for a value that does not fit and for a region that has
    no LMO, and RuntimeError for `fused=True` where there is no fused step.
    """

    kind = "SFW"
    _alphas: Sequence[tuple[int, float | Tensor]] = ()  # of the last step, with numbers of entries

    def __init__(
        self,
        params: Iterable[Any],
        constraints: Sequence[Region],
        lr: float | Tensor = 1.0,
        momentum: float = 0.9,
        rescale: str | None = "gradient",
        weight_decay: float = 0.0,
        *,
        maximize: bool = False,
        fused: bool | None = None,
    ) -> None:
        defaults = dict(lr=lr, momentum=momentum, rescale=rescale, weight_decay=weight_decay)
        super().__init__(params, constraints, defaults | {"maximize": maximize, "fused": fused})

    def _check_options(self, options: dict[str, Any]) -> None:
        super()._check_options(options)
        if options["lr"] > 1:
            raise ValueError(f"lr must be at most 1, not {options['lr']}")
        if options["rescale"] not in RESCALES:
            raise ValueError(f"rescale must be one of {RESCALES}, not {options['rescale']!r}")
        own = zip(options.get("params", ()), options.get("constraints", ()), strict=True)
        for p, region in own:
            if math.isinf(region.diameter):
                raise ValueError("SFW needs bounded regions: an unconstrained one has no LMO")
            if options["fused"]:
                self._obstacle(p, region, (), required=True)

    def _take(self, steps: Sequence[TensorStep]) -> None:
        on_gpu, on_cpu, plain = [], [], []
        for s in steps:
            fused, theta = s.group["fused"], s.theta
            if fused is False or self._obstacle(theta, s.region, s.tensors, required=bool(fused)):
                plain.append(s)
            else:
                (on_gpu if theta.is_cuda else on_cpu).append(s)
        if on_cpu:
            self._cpu_step(on_cpu)
        if on_gpu:
            self._cuda_step(on_gpu)
        plain_step(plain)

    def _move(self, steps: Sequence[TensorStep]) -> None:
        super()._move(steps)
        self._alphas = [(s.theta.numel(), s.alpha) for s in steps]

    @torch.no_grad()
    def mean_alpha(self) -> Tensor:
        """The mean of alpha over all entries that the last step moved, a float32 scalar tensor.

        A tensor's alpha thus counts as often as it has entries. It is what the step took away from
        the weights, as a fraction: the effective weight decay. It stays on the device, and nothing
        waits for it. 0 before the first step.
        """
        total = sum(n for n, _ in self._alphas)
        known = sum(n / total * a for n, a in self._alphas if not isinstance(a, Tensor))
        shares = [n / total for n, a in self._alphas if isinstance(a, Tensor)]
        alphas = [a.float() for _, a in self._alphas if isinstance(a, Tensor)]
        if not alphas:
            device = next((p.device for group in self.param_groups for p in group["params"]), None)
            return torch.full((), float(known), dtype=torch.float32, device=device)
        alphas = [a.to(alphas[0].device, non_blocking=True) for a in alphas]
        return torch.stack(torch._foreach_mul(alphas, shares)).sum() + known

    @functools.cached_property
    def _cuda_step(self) -> "CudaStep":
        from optim.cuda.step import CudaStep  # imports Triton

        return CudaStep()

    @functools.cached_property
    def _cpu_step(self) -> "CpuStep | None":
        """The fused step on the CPU; None without Numba, which compiles it."""
        try:
            from optim.cpu.step import CpuStep  # takes a second to import
        except ImportError:
            return None
        return CpuStep()

    def _obstacle(
        self, p: Tensor, region: Region, tensors: Sequence[Tensor], required: bool
    ) -> str | None:
        """Why there is no fused step on `p`, or None; raises RuntimeError if it is `required`."""
        if p.is_cuda:
            obstacle = cuda.obstacle(p.device, region, tensors)
        elif not p.is_cpu:
            obstacle = f"there is no fused step on {p.device}"
        elif self._cpu_step is None:
            obstacle = "it needs Numba, which is not installed"
        else:
            obstacle = self._cpu_step.obstacle(region, tensors)
        if obstacle and required:
            raise RuntimeError(f"SFW cannot take a fused step (fused=True): {obstacle}")
        return obstacle
