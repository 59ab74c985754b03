"""The K-support ball, a region that the proxy compares with those of the product."""

import torch
from torch import Tensor

from constraints import Region
from constraints.tensors import furthest_in_ball, largest_entries


class NormBall(Region):
    """The vectors whose norm, as `norm` defines it, is at most r."""

    def norm(self, x: Tensor) -> Tensor:
        """The norm of `x`, a float64 scalar tensor."""
        raise NotImplementedError

    def gauge(self, x: Tensor) -> Tensor:
        """The norm of `x` over r."""
        return self.norm(x) / self.radius

    def shift_inside(self, x: Tensor) -> Tensor:
        """`x`, or, if it is outside, `x` scaled to the region's surface."""
        factor = (self.radius / self.norm(x)).clamp(max=1)
        return (x.double() * factor).to(x.dtype)

    def euclidean_project(self, x: Tensor) -> Tensor:
        raise NotImplementedError("SFW needs no projection; the trial does without one")


class KSupportBall(NormBall):
    """The convex hull of the vectors with at most K non-zero entries and L2 norm at most r.

    It is where the K-support norm is at most r (Argyriou, Foygel and Srebro, NeurIPS 2012); Zimmer,
    Spiegel and Pokutta (arXiv 2205.11921) train with it. Its L2 diameter is 2 r. Give `radius` (r)
    or `diameter`. Raises ValueError when `k` is not in 1 ... n or the size is not positive.
    """

    def __init__(
        self, n: int, k: int, *, radius: float | None = None, diameter: float | None = None
    ) -> None:
        if not 1 <= k <= n:
            raise ValueError(f"k must be between 1 and n = {n}, not {k}")
        self._set_size(n, radius, diameter, 2)
        self.k = k

    def __repr__(self) -> str:
        return f"KSupportBall({self.n}, {self.k}, radius={self.radius:g})"

    def lmo(self, g: Tensor) -> Tensor:
        """-r g_S / ||g_S||_2, where S are the K entries of largest magnitude; 0 where g is all 0.

        Of entries that tie at the K-th magnitude, the first are taken.
        """

        def furthest(rows: Tensor) -> Tensor:
            return furthest_in_ball(rows * largest_entries(rows.abs(), self.k), 2)

        return self._opposite(g, furthest)

    def norm(self, x: Tensor) -> Tensor:
        """The K-support norm of `x`, a float64 scalar tensor; the region is where it is at most r.

        With |w| in descending order, w_0 infinite and i counted from 1, there is one q in
        0 ... K - 1 with w_(K-q-1) > (sum of w_i over i >= K - q) / (q + 1) >= w_(K-q). The norm's
        square is the sum of w_i^2 over i < K - q and of that tail's (sum)^2 / (q + 1)
        (Argyriou, Foygel and Srebro, proposition 2.1).
        """
        self._check(x)
        w = x.detach().abs().double().flatten().sort(descending=True).values
        q = torch.arange(self.k, device=w.device)
        first = self.k - 1 - q  # the tail's first entry, counting from 0
        tails = w.flip(0).cumsum(0).flip(0)[first]
        squares = torch.cat([w.new_zeros(1), (w**2).cumsum(0)])[first]
        before = torch.cat([w.new_full((1,), torch.inf), w])[first]
        means = tails / (q + 1)
        # Rounding may leave no q that fits exactly: the last one whose tail is not too small.
        fits = (before > means) & (means >= w[first])
        chosen = torch.where(fits.any(), fits.int().argmax(), (before > means).int().argmax())
        return (squares + tails**2 / (q + 1)).gather(0, chosen.view(1)).sqrt().squeeze()
