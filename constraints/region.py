"""What every feasible region offers."""

import functools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from constraints.dtensor import entries, is_sharded, like, positions
from constraints.parts import Computation, applied, furthest_in_ball, in_parts, norm_of, together
from constraints.selection import key_bits, magnitude_keys, smallest

# Attributes that tell the vertex in a faster way, and those that it must agree with.
SHORT_CUTS = {
    "furthest_in_parts": ("lmo", "furthest"),
    "vertex_entries": ("lmo", "furthest", "furthest_in_parts"),
}


class Region(ABC):
    """A convex region of tensors with `n` entries, centred on the origin; `n` may be 0.

    `radius` and `diameter` are in the units of the entries; `diameter` is the largest L2 distance
    between two points. The methods take a tensor of any shape with `n` entries, any memory format
    and any floating-point type, return a new one like it, and never make the host wait for the
    device. What they return has NaN in it if the tensor has. They raise ValueError when the number
    of entries is not `n`.
    """

    n: int
    radius: float
    diameter: float
    # If the vertex that `lmo(g)` returns is 0 but for the K entries of g of largest magnitude, K.
    # Optimizers may then find it without calling `lmo`. None for other regions.
    vertex_entries: int | None = None
    # Whether such a vertex is a multiple of g at these entries, one of L2 norm `radius`. Else it is
    # -radius sign(g) there.
    vertex_along_gradient: bool = False
    # Optional: `furthest(rows)` takes gradients of n entries as the rows of a matrix. It returns a
    # new matrix whose rows are the points of the region of radius 1 that are furthest in these
    # directions; for a row with NaN they may be anything. A region that defines it inherits `lmo`,
    # and an optimizer may call it once for several regions: see `alike`.
    furthest: Callable[[Tensor], Tensor] | None = None
    # The same as a computation in parts (see `constraints.parts`), on the entries that a process
    # has of each gradient.
    furthest_in_parts: Callable[[Tensor], Computation] | None = None
    # `gauge(x)`, if a region has it, is the smallest s >= 0 for which x is in s times the region:
    # how much of the region x fills. A float64 scalar tensor. None for other regions, of which
    # nothing is reported.
    gauge: Callable[[Tensor], Tensor] | None = None

    def __init_subclass__(cls, **options: Any) -> None:
        """A class that changes the vertex does not inherit short cuts to that of its base class."""
        super().__init_subclass__(**options)

        def distance(name: str) -> int:
            return next(i for i, base in enumerate(cls.__mro__) if name in vars(base))

        for short_cut, ways in SHORT_CUTS.items():
            if min(map(distance, ways)) < distance(short_cut):
                setattr(cls, short_cut, None)

    def _set_size(
        self, n: int, radius: float | None, diameter: float | None, diameter_per_radius: float
    ) -> None:
        """Set `n`, and `radius` and `diameter` from the one of them that is given."""
        if n < 0:
            raise ValueError(f"n must be at least 0, not {n}")
        if (radius is None) == (diameter is None):
            raise ValueError("give either radius or diameter")
        self.n = int(n)
        self.radius = float(diameter / diameter_per_radius if radius is None else radius)
        self.diameter = self.radius * diameter_per_radius
        if not 0 < self.radius < math.inf:
            name, value = ("diameter", diameter) if radius is None else ("radius", radius)
            raise ValueError(f"{name} must be positive and finite, not {value}")

    def _check(self, x: Tensor) -> None:
        if x.numel() != self.n:
            raise ValueError(f"the region has {self.n} entries, the tensor {x.numel()}")

    def describe(self) -> dict[str, str | int | float]:
        """The region's kind and sizes in plain types, as an optimizer's state dict holds them."""
        return {"kind": type(self).__name__, "n": self.n, "radius": self.radius}

    def lmo(self, g: Tensor) -> Tensor:
        """The linear minimisation oracle: a vertex v of the region at which <g, v> is smallest."""
        self._check(g)
        if is_sharded(g):
            return like(*together([self._lmo_in_parts(g)], [g]), g)
        if not self.n:
            return g.clone()
        v = self.furthest(g.reshape(1, -1))
        largest = g.amax().to(v.dtype)  # NaN if there is one
        v = v.mul_(torch.where(largest.isnan(), largest, -self.radius)).view(g.shape)
        return v.to(g.dtype) if g.is_contiguous() else torch.empty_like(g).copy_(v)

    def _lmo_in_parts(self, g: Tensor) -> Computation:
        v = yield from self.vertex_in_parts(g)
        largest = yield from norm_of(g, math.inf)
        return scale(v, torch.where(largest.isnan(), largest, 1.0)).to(g.dtype)

    def vertex_in_parts(self, g: Tensor) -> Computation:
        """What this process has of `lmo(g)`, for a DTensor `g`; maybe without NaN, where g has it.

        A computation in parts for regions that have `vertex_entries` or `furthest_in_parts`, or
        whose `lmo` is `in_parts`. For other regions all processes get the whole gradient.
        """
        own = entries(g)
        if self.vertex_entries is not None:
            v = own if self.vertex_along_gradient else own.sign()
            keys = functools.partial(magnitude_keys, own, largest_first=True)
            if self.vertex_entries < self.n:
                (chosen,) = yield from smallest(
                    [keys],
                    self.vertex_entries,
                    key_bits(own.dtype),
                    [functools.partial(positions, g)],
                    self.n,
                    ties_at=(1 << key_bits(own.dtype)) - 1,  # zeros, at which v is 0 anyway
                )
                v = v * chosen.view(own.shape)
            if self.vertex_along_gradient:
                v = (yield from furthest_in_ball(v.reshape(1, -1), 2)).view(v.shape)
            return v.mul_(-self.radius)
        if self.furthest_in_parts is not None:
            v = yield from self.furthest_in_parts(own.reshape(1, -1))
            return v.mul_(-self.radius).view(own.shape)
        return (yield from applied(self.lmo, g))

    def alike(self) -> tuple | None:
        """A key that regions share if they differ only in their radius: `furthest` serves them all.

        None for regions that have an `lmo` of their own, and for attributes without a hash value.
        """
        if self.furthest is None or type(self).lmo is not Region.lmo:
            return None
        own = [pair for pair in vars(self).items() if pair[0] not in ("radius", "diameter")]
        key = type(self), *own
        try:
            hash(key)
        except TypeError:
            return None
        return key

    @abstractmethod
    def shift_inside(self, x: Tensor) -> Tensor:
        """`x` itself if it is in the region, else a multiple of it that is."""

    @abstractmethod
    def euclidean_project(self, x: Tensor) -> Tensor:
        """The point of the region nearest to `x` in the L2 norm."""


class Unconstrained(Region):
    """All tensors with `n` entries: every point is its own projection, and there is no LMO."""

    def __init__(self, n: int) -> None:
        self.n = n
        self.radius = self.diameter = math.inf

    def __repr__(self) -> str:
        return f"Unconstrained({self.n})"

    def lmo(self, g: Tensor) -> Tensor:
        """Raises NotImplementedError: a linear function has no minimum here."""
        raise NotImplementedError("an unbounded region has no linear minimisation oracle")

    @in_parts
    def shift_inside(self, x: Tensor) -> Tensor:
        self._check(x)
        return entries(x).clone()

    @in_parts
    def euclidean_project(self, x: Tensor) -> Tensor:
        self._check(x)
        return entries(x).clone()


def scale(x: Tensor, factor: Tensor) -> Tensor:
    """`x` times a number, rounded once: in half precision the number alone may not be finite."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    return (x.to(dtype) * factor.to(dtype)).to(x.dtype)
