"""Balls of the Lp norms."""

import math

import torch
from torch import Tensor

from constraints.dtensor import entries
from constraints.parts import Computation, Norm, alone, furthest_in_ball, in_parts, norm_of
from constraints.projection import project_capped_l1_ball
from constraints.region import Region, scale

BISECTIONS = 60
NEWTON_STEPS = 10


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

    @property
    def vertex_entries(self) -> int | None:
        return {1: 1, 2: self.n, math.inf: self.n}.get(self.p)

    @property
    def vertex_along_gradient(self) -> bool:
        return self.p == 2

    def __repr__(self) -> str:
        return f"LpBall({self.n}, {self.p:g}, radius={self.radius:g})"

    def describe(self) -> dict[str, str | int | float]:
        return super().describe() | {"p": self.p}

    def furthest(self, rows: Tensor) -> Tensor:
        """sign(g_i) |g_i|^(q-1) / ||g||_q^(q-1) for each row g, 1/p + 1/q = 1; 0 where g is all 0.

        For p = 1 it has one non-zero entry, the first of largest magnitude. For 2 <= p < infinity
        the result has at least the precision of float32.
        """
        if self.p == math.inf:
            return rows.sign()
        if self.p == 1:
            largest = rows.abs().argmax(-1, keepdim=True)
            return torch.zeros_like(rows).scatter_(-1, largest, rows.gather(-1, largest).sign())
        return alone(furthest_in_ball(rows, self.p))

    def furthest_in_parts(self, rows: Tensor) -> Computation:
        """`furthest` for 1 < p < infinity."""
        return furthest_in_ball(rows, self.p)

    @in_parts
    def shift_inside(self, x: Tensor) -> Computation:
        """`x`, or, if it is outside, `x` scaled to the ball's surface."""
        self._check(x)
        return self._scaled_inside(x)

    def _scaled_inside(self, x: Tensor) -> Computation:
        norm = yield from norm_of(x, self.p)
        return scale(entries(x), (self.radius / norm).clamp(max=1))

    @in_parts
    def gauge(self, x: Tensor) -> Computation:
        """||x||_p / r."""
        self._check(x)
        return (yield from norm_of(x, self.p)) / self.radius

    @in_parts
    def euclidean_project(self, x: Tensor) -> Tensor | Computation:
        self._check(x)
        if not self.n:
            return entries(x).clone()
        if self.p == 1:
            return project_capped_l1_ball(x, total=self.radius)
        if self.p == 2:
            return self._scaled_inside(x)
        if self.p == math.inf:
            return entries(x).clamp(-self.radius, self.radius)
        return self._project_smooth(entries(x).detach())

    def _project_smooth(self, x: Tensor) -> Computation:
        """The projection for 2 < p < infinity.

        In units of the radius, the optimality conditions are y_i + c y_i^(p-1) = |x_i| and
        sum y_i^p = 1 for one c >= 0. log c is found by bisection, and for each c the y_i by
        Newton's method. It starts at the upper bound min(|x_i|, (|x_i| / c)^(1/(p-1))), from which
        it decreases to the root, since the left side is convex in y_i.
        """
        a = x.abs().double() / self.radius
        largest = (yield from norm_of(a, math.inf)).clamp(min=1)

        def candidate(c: Tensor) -> Tensor:
            y = torch.minimum(a, (a / c) ** (1 / (self.p - 1)))
            for _ in range(NEWTON_STEPS):
                slope = 1 + c * (self.p - 1) * y ** (self.p - 2)
                y = y - (y + c * y ** (self.p - 1) - a) / slope
            return y

        # At the upper bound even n entries of the largest magnitude have norm at most 1.
        low = torch.full_like(largest, -80.0)
        high = (largest * self.n).log() * self.p
        for _ in range(BISECTIONS):
            middle = (low + high) / 2
            outside = (yield Norm((candidate(middle.exp()) ** self.p).sum())) > 1
            low, high = torch.where(outside, middle, low), torch.where(outside, high, middle)
        inside = (yield Norm((a**self.p).sum())) <= 1
        y = torch.where(inside, a, candidate(high.exp())) * self.radius
        return y.to(x.dtype).copysign_(x)
