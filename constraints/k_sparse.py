"""The K-sparse polytope, the feasible region of the paper."""

import math

import numpy as np
import torch
from torch import Tensor

from constraints.projection import project_capped_l1_ball
from constraints.region import Region, is_local, scale, sign


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
        self.k = self.vertex_entries = int(k)

    def __repr__(self) -> str:
        return f"KSparsePolytope({self.n}, {self.k}, radius={self.radius:g})"

    def describe(self) -> dict[str, str | int | float]:
        return super().describe() | {"k": self.k}

    def lmo(self, g: Tensor) -> Tensor:
        """-r sign(g) on the K entries of largest magnitude, 0 elsewhere.

        Of entries that tie at the K-th magnitude, the first in the tensor's order are taken, so
        that no more than K are non-zero.
        """
        self._check(g)
        if not self.n:
            return g.clone()
        magnitude = g.detach().abs().flatten()
        threshold = _kth_largest(magnitude, self.k)
        chosen = _without_ties(magnitude, threshold, self.k)
        if chosen is None:
            chosen = largest_entries(magnitude, threshold, self.k)
        return sign(g).mul_(chosen.view(g.shape)).mul_(-self.radius)

    def shift_inside(self, x: Tensor) -> Tensor:
        """`x`, or, if it is outside, x / ||x||_1 times r min(K, floor(||x||_1 / ||x||_inf)).

        That is the authors' rule. It leaves an outside point's l1 norm at a whole multiple of r.
        """
        self._check(x)
        if not self.n:
            return x.clone()
        magnitude = x.abs().double()
        l1, linf = magnitude.sum(), magnitude.max()
        inside = (l1 <= self.radius * self.k) & (linf <= self.radius)
        factor = self.radius * (l1 / linf).floor().clamp(max=self.k) / l1
        return scale(x, torch.where(inside, torch.ones_like(l1), factor))

    def euclidean_project(self, x: Tensor) -> Tensor:
        """The nearest point of the intersection of the two balls, exact up to rounding."""
        self._check(x)
        return project_capped_l1_ball(x, total=self.radius * self.k, cap=self.radius)


def largest_entries(magnitude: Tensor, threshold: Tensor, k: int) -> Tensor:
    """Where the `k` largest of `magnitude` are: all above the k-th, `threshold`, and the first of
    those that tie with it. Never waits for the device."""
    above, tied = magnitude > threshold, magnitude == threshold
    return above | (tied & (tied.cumsum(0, dtype=torch.int32) <= k - above.sum()))


def _without_ties(magnitude: Tensor, threshold: Tensor, k: int) -> Tensor | None:
    """1 from the threshold on and 0 below, as numbers, which multiply faster than booleans.

    None if those are more than K, or on a GPU, which would have to be waited for to tell.
    """
    if not is_local(magnitude):
        return None
    chosen = torch.ge(magnitude, threshold, out=torch.empty_like(magnitude))
    return chosen if chosen.count_nonzero() <= k else None


def _kth_largest(values: Tensor, k: int) -> Tensor:
    """The K-th largest of `values`; NumPy's selection is many times faster on the CPU."""
    if is_local(values) and values.dtype in (torch.float32, torch.float64):
        position = len(values) - k
        return torch.from_numpy(np.partition(values.numpy(), position)[position : position + 1])
    return values.topk(k, sorted=False).values.min()
