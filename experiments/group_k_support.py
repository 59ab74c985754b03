"""The group K-support ball, a region made for slicing, which sliced.py compares with others."""

import torch
from torch import Tensor, nn

from constraints import LpBall, Region, build_constraints
from experiments.k_support import KSupportBall, NormBall


class GroupKSupportBall(NormBall):
    """The convex hull of the tensors with at most K non-zero output channels and L2 norm at most r.

    Channels are along the first dimension. A tensor is in it if the K-support norm of its channels'
    L2 norms is at most r (Zimmer, Spiegel and Pokutta, arXiv 2205.11921). Its L2 diameter is 2 r.
    Raises ValueError when `k` is not in 1 ... channels or the size is not positive.
    """

    def __init__(
        self,
        n: int,
        channels: int,
        k: int,
        *,
        radius: float | None = None,
        diameter: float | None = None,
    ) -> None:
        self._set_size(n, radius, diameter, 2)
        self.channels, self.k = channels, k
        self._ball = KSupportBall(channels, k, radius=self.radius)  # of the channels' norms

    def __repr__(self) -> str:
        return f"GroupKSupportBall({self.n}, {self.channels}, {self.k}, radius={self.radius:g})"

    def _norms(self, x: Tensor) -> Tensor:
        self._check(x)
        return torch.linalg.vector_norm(x.reshape(self.channels, -1), dim=1, dtype=torch.float64)

    def lmo(self, g: Tensor) -> Tensor:
        """-r g_S / ||g_S||_2 on the K channels of largest norm, 0 elsewhere; 0 where g is all 0."""
        largest = g.abs().max()
        g = g / (largest + (largest == 0))  # so that no square overflows, and not all vanish
        norms = self._norms(g)
        factors = self._ball.lmo(norms) / norms.clamp(min=torch.finfo(torch.float64).tiny)
        return g * factors.to(g.dtype).view(-1, *[1] * (g.dim() - 1))

    def norm(self, x: Tensor) -> Tensor:
        """The K-support norm of the channels' L2 norms, a float64 scalar tensor."""
        return self._ball.norm(self._norms(x))


def group_regions(model: nn.Module, tau: float, k_frac: float) -> list[Region]:
    """Group K-support balls for weights, with K = max(1, round(k_frac channels)); else L2 balls.

    There is one for each of `model.parameters()`; tau sets the size as in mode "initialization".
    """
    balls = build_constraints(model, "l2_constraints", tau=tau)
    return [_region(p, ball, k_frac) for p, ball in zip(model.parameters(), balls, strict=True)]


def _region(p: nn.Parameter, ball: LpBall, k_frac: float) -> Region:
    if p.dim() < 2:
        return ball
    k = max(1, round(k_frac * len(p)))
    return GroupKSupportBall(p.numel(), len(p), k, radius=ball.radius)
