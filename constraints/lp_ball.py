"""Balls of the Lp norms."""

import math

import torch
from torch import Tensor

from constraints.projection import project_capped_l1_ball
from constraints.region import GradientVertex, Region, SignVertex
from constraints.tensors import furthest_in_ball, lp_norm, scale


class LpBall(Region):
    """All tensors whose Lp norm is at most `radius`, for p = 1, 2 <= p < infinity, or infinity.

    Its L2 diameter is 2 r n^(1/2 - 1/p) for p > 2, else 2 r. Give `radius` or `diameter`.
    Raises ValueError for another p or a size that is not positive.
    """

    def __init__(
        self, n: int, p: float, *, radius: float | None = None, diameter: float | None = None
    ) -> None:
        if not (p == 1 or p >= 2):
            raise ValueError(f"p must be 1, or 2 or more, not {p}")
        self._set_size(n, radius, diameter, 2 * max(n, 1) ** max(0.5 - 1 / p, 0))
        self.p = float(p)

    def describe(self) -> dict[str, str | int | float]:
        return super().describe() | {"p": self.p}

    @property
    def vertex(self) -> SignVertex | GradientVertex | None:
        known = {1: SignVertex(min(self.n, 1)), 2: GradientVertex(), math.inf: SignVertex(self.n)}
        return known.get(self.p)

    def lmo(self, g: Tensor) -> Tensor:
        """-r sign(g_i) |g_i|^(q-1) / ||g||_q^(q-1), with 1/p + 1/q = 1; 0 where g is all 0.

        For p = 1 it has one non-zero entry, the first of largest magnitude; for p = infinity it is
        -r sign(g).
        """
        vertex = LpBall.vertex.fget(self)  # a subclass that calls this from its own `lmo` has none
        furthest = vertex.furthest if vertex else lambda rows: furthest_in_ball(rows, self.p)
        return self._opposite(g, furthest)

    def shift_inside(self, x: Tensor) -> Tensor:
        """`x`, or, if it is outside, `x` scaled to the ball's surface."""
        self._check(x)
        return scale(x, (self.radius / lp_norm(x, self.p)).clamp(max=1))

    def euclidean_project(self, x: Tensor) -> Tensor:
        self._check(x)
        if self.p == 1:
            return project_capped_l1_ball(x, total=self.radius)
        if self.p == 2:
            return self.shift_inside(x)
        if self.p == math.inf:
            return x.clamp(-self.radius, self.radius)
        return self._project_smooth(x.detach())

    def gauge(self, x: Tensor) -> Tensor:
        """||x||_p / r."""
        self._check(x)
        return lp_norm(x, self.p) / self.radius

    def _project_smooth(self, x: Tensor) -> Tensor:
        """In units of the radius y_i + c y_i^(p-1) = |x_i|, with ||y||_p = 1, for one c >= 0.

        log c is found by bisection, the y_i by Newton's method from an upper bound.
        """
        p, a = self.p, x.abs().double() / self.radius

        def candidate(c: Tensor) -> Tensor:
            y = torch.minimum(a, (a / c) ** (1 / (p - 1)))
            for _ in range(10):
                y = y - (y + c * y ** (p - 1) - a) / (1 + c * (p - 1) * y ** (p - 2))
            return y

        # With the largest c, n entries as large as the largest one are inside.
        high = (lp_norm(a, math.inf).clamp(min=1) * self.n).log() * p
        low = torch.full_like(high, -80.0)
        for _ in range(60):
            middle = (low + high) / 2
            outside = (candidate(middle.exp()) ** p).sum() > 1
            low, high = torch.where(outside, middle, low), torch.where(outside, high, middle)
        y = torch.where((a**p).sum() <= 1, a, candidate(high.exp())) * self.radius
        return y.to(x.dtype).copysign_(x)
