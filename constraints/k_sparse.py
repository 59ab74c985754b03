"""The K-sparse polytope, the feasible region of the paper."""

import math

import numpy as np
import torch
from torch import Tensor

from constraints.dtensor import entries, is_local
from constraints.parts import Computation, Norm, in_parts, lp_norm, norm_of
from constraints.projection import project_capped_l1_ball
from constraints.region import Region, scale


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

    @property
    def vertex_entries(self) -> int:
        return self.k

    def __repr__(self) -> str:
        return f"KSparsePolytope({self.n}, {self.k}, radius={self.radius:g})"

    def describe(self) -> dict[str, str | int | float]:
        return super().describe() | {"k": self.k}

    def furthest(self, rows: Tensor) -> Tensor:
        """sign(g) on the K entries of largest magnitude of each row g, 0 elsewhere.

        Of entries that tie at the K-th magnitude, the first in the row are taken, so that no more
        than K are non-zero.
        """
        return rows.sign().mul_(largest_entries(rows.abs(), self.k))

    @in_parts
    def shift_inside(self, x: Tensor) -> Computation:
        """`x`, or, if it is outside, x / ||x||_1 times r min(K, floor(||x||_1 / ||x||_inf)).

        This is the authors' rule: a point from outside gets an l1 norm that is a multiple of r.
        """
        self._check(x)
        own = entries(x)
        l1 = yield Norm(own.abs().double().sum())
        linf = yield Norm(lp_norm(own, math.inf), math.inf)
        inside = (l1 <= self.radius * self.k) & (linf <= self.radius)
        factor = self.radius * (l1 / linf).floor().clamp(max=self.k) / l1
        return scale(own, torch.where(inside, torch.ones_like(l1), factor))

    @in_parts
    def gauge(self, x: Tensor) -> Computation:
        """max(||x||_1 / (r K), ||x||_inf / r)."""
        self._check(x)
        l1, linf = (yield from norm_of(x, 1)), (yield from norm_of(x, math.inf))
        return torch.maximum(l1 / max(self.k, 1), linf) / self.radius

    @in_parts
    def euclidean_project(self, x: Tensor) -> Computation:
        """The nearest point of the intersection of the two balls, exact up to rounding."""
        self._check(x)
        return project_capped_l1_ball(x, total=self.radius * self.k, cap=self.radius)


def largest_entries(magnitude: Tensor, k: int) -> Tensor:
    """1 at the `k` largest entries of each row of `magnitude`, and 0 elsewhere.

    Of entries that tie, the first are taken. It takes few operations and waits for no device.
    """
    if not is_local(magnitude) and magnitude.dtype != torch.float64:
        return by_keys(magnitude, k)
    threshold = _kth_largest(magnitude, k)
    if is_local(magnitude):
        # As numbers of the same type, which multiply faster than booleans.
        chosen = torch.ge(magnitude, threshold, out=torch.empty_like(magnitude))
        if chosen.count_nonzero(-1).max() <= k:
            return chosen
    return by_threshold(magnitude, threshold, k)


def by_keys(magnitude: Tensor, k: int) -> Tensor:
    """`largest_entries` as booleans, by integer keys that are all different within a row.

    The upper bits of an entry's key are those of its magnitude, read as an integer, which keeps the
    order. The lower bits are its distance from the end of the row, so that the first entry wins.
    """
    bits = magnitude.float().view(torch.int32)
    from_end = torch.arange(magnitude.shape[-1], 0, -1, device=magnitude.device)
    keys = torch.add(from_end, bits, alpha=1 << 31)
    return keys >= keys.topk(k, sorted=False).values.amin(-1, keepdim=True)


def by_threshold(magnitude: Tensor, threshold: Tensor, k: int) -> Tensor:
    """`largest_entries` as booleans, from the K-th largest magnitude of each row."""
    above, tied = magnitude > threshold, magnitude == threshold
    room = k - above.sum(-1, keepdim=True)
    return above | (tied & (tied.cumsum(-1, dtype=torch.int32) <= room))


def _kth_largest(values: Tensor, k: int) -> Tensor:
    """The K-th largest of each row; NumPy's selection is many times faster on the CPU."""
    if is_local(values) and values.dtype in (torch.float32, torch.float64):
        position = values.shape[-1] - k
        rows = np.partition(values.detach().numpy(), position)
        return torch.from_numpy(rows[..., position : position + 1])
    return values.topk(k, sorted=False).values.amin(-1, keepdim=True)
