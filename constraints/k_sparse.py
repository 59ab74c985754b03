"""The K-sparse polytope, the feasible region of the paper."""

import math

import torch
from torch import Tensor

from constraints.projection import project_capped_l1_ball
from constraints.region import Region, SignVertex
from constraints.tensors import lp_norm, scale


class KSparsePolytope(Region):
    """The convex hull of the vectors with K entries of +r or -r and zeros elsewhere.

    Equivalently, the l1 ball of radius rK cut with the l-infinity ball of radius r (Miao et al.,
    ICLR 2022). Its L2 diameter is 2 r sqrt(K). Give `radius` (r) or `diameter`.
    Raises ValueError when `k` is not in 1 ... n (0 for n = 0) or the size is not positive.
    """

    def __init__(
        self, n: int, k: int, *, radius: float | None = None, diameter: float | None = None
    ) -> None:
        if not min(n, 1) <= k <= n:
            raise ValueError(f"k must be between 1 and n = {n}, not {k}")
        self._set_size(n, radius, diameter, 2 * math.sqrt(max(k, 1)))
        self.k = int(k)

    def describe(self) -> dict[str, str | int | float]:
        return super().describe() | {"k": self.k}

    @property
    def vertex(self) -> SignVertex:
        return SignVertex(self.k)

    def lmo(self, g: Tensor) -> Tensor:
        """-r sign(g) on the K entries of largest magnitude, 0 elsewhere.

        Of entries that tie at the K-th magnitude, the first are taken, so that no more than K are
        non-zero.
        """
        return self._opposite(g, SignVertex(self.k).furthest)

    def shift_inside(self, x: Tensor) -> Tensor:
        """`x`, or, if it is outside, x / ||x||_1 times r min(K, floor(||x||_1 / ||x||_inf)).

        This is the authors' rule: a point from outside gets an l1 norm that is a multiple of r.
        """
        self._check(x)
        l1, linf = x.abs().double().sum(), lp_norm(x, math.inf)
        inside = (l1 <= self.radius * self.k) & (linf <= self.radius)
        factor = self.radius * (l1 / linf).floor().clamp(max=self.k) / l1
        return scale(x, torch.where(inside, torch.ones_like(l1), factor))

    def euclidean_project(self, x: Tensor) -> Tensor:
        """The nearest point of the intersection of the two balls, exact up to rounding."""
        self._check(x)
        return project_capped_l1_ball(x, total=self.radius * self.k, cap=self.radius)

    def gauge(self, x: Tensor) -> Tensor:
        """max(||x||_1 / (r K), ||x||_inf / r)."""
        self._check(x)
        return torch.maximum(lp_norm(x, 1) / max(self.k, 1), lp_norm(x, math.inf)) / self.radius
