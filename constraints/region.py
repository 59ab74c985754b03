"""What every feasible region offers."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from constraints.sharding import is_sharded
from constraints.tensors import furthest_in_ball, largest_entries


@dataclass(frozen=True)
class SignVertex:
    """v is -radius sign(g) on the `entries` entries of g of largest magnitude, 0 elsewhere.

    Of entries that tie, the first are taken.
    """

    entries: int

    def furthest(self, rows: Tensor) -> Tensor:
        """-v / radius for each row g of a matrix; for a row with NaN it may be anything."""
        signs = rows.sign()
        if self.entries == rows.shape[-1]:
            return signs
        return signs.mul_(largest_entries(rows.abs(), self.entries))


@dataclass(frozen=True)
class GradientVertex:
    """v is -radius g / ||g||_2, and 0 where g is 0."""

    def furthest(self, rows: Tensor) -> Tensor:
        """-v / radius for each row g of a matrix, in at least the precision of float32."""
        return furthest_in_ball(rows, 2)


class Region(ABC):
    """A convex region of tensors with `n` entries, centred on the origin; `n` may be 0.

    `radius` and `diameter` are in the units of the entries; `diameter` is the largest L2 distance
    between two points. The methods take a plain tensor of any shape with `n` entries, any memory
    format and any floating-point type, return a new one like it, and never make the host wait for
    the device. What they return has NaN in it if the tensor has. They raise ValueError when the
    number of entries is not `n`, and TypeError for a DTensor.
    """

    n: int
    radius: float
    diameter: float
    # What the vertex that `lmo(g)` returns looks like, if that is known. An optimizer may then find
    # it without calling `lmo`. It counts only in the class that also defines `lmo`.
    vertex: SignVertex | GradientVertex | None = None
    # `gauge(x)` is the smallest s >= 0 for which x is in s times the region, a float64 scalar
    # tensor. None for regions that have none, of which nothing is reported.
    gauge: Callable[[Tensor], Tensor] | None = None

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        first = next(base for base in cls.__mro__ if {"lmo", "vertex"} & vars(base).keys())
        if not {"lmo", "vertex"} <= vars(first).keys():
            cls.vertex = None

    def _set_size(
        self, n: int, radius: float | None, diameter: float | None, diameter_per_radius: float
    ) -> None:
        """Set `n`, and `radius` and `diameter` from the one of them that is given."""
        if (radius is None) == (diameter is None):
            raise ValueError("give either radius or diameter")
        self.n = int(n)
        self.radius = float(diameter / diameter_per_radius if radius is None else radius)
        self.diameter = self.radius * diameter_per_radius
        if not 0 < self.radius < math.inf:
            name, value = ("diameter", diameter) if radius is None else ("radius", radius)
            raise ValueError(f"{name} must be positive and finite, not {value}")

    def _check(self, x: Tensor) -> None:
        if is_sharded(x):
            raise TypeError("a region takes plain tensors: give it x.full_tensor()")
        if x.numel() != self.n:
            raise ValueError(f"the region has {self.n} entries, the tensor {x.numel()}")

    def _opposite(self, g: Tensor, furthest: Callable[[Tensor], Tensor]) -> Tensor:
        """-radius times the point that `furthest` finds for `g` as a row; NaN if `g` has NaN."""
        self._check(g)
        if not self.n:
            return g.clone()
        v = furthest(g.reshape(1, -1))
        largest = g.amax().to(v.dtype)  # NaN if there is one
        v = v.mul_(torch.where(largest.isnan(), largest, -self.radius)).view(g.shape)
        return v.to(g.dtype) if g.is_contiguous() else torch.empty_like(g).copy_(v)

    def describe(self) -> dict[str, str | int | float]:
        """The region's kind and sizes in plain types, as an optimizer's state dict holds them."""
        return {"kind": type(self).__name__, "n": self.n, "radius": self.radius}

    def __repr__(self) -> str:
        sizes = [f"{name}={size}" for name, size in self.describe().items() if name != "kind"]
        return f"{type(self).__name__}({', '.join(sizes)})"

    @abstractmethod
    def lmo(self, g: Tensor) -> Tensor:
        """The linear minimisation oracle: a vertex v of the region at which <g, v> is smallest."""

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

    def lmo(self, g: Tensor) -> Tensor:
        """Raises NotImplementedError: a linear function has no minimum here."""
        raise NotImplementedError("an unbounded region has no linear minimisation oracle")

    def shift_inside(self, x: Tensor) -> Tensor:
        self._check(x)
        return x.clone()

    euclidean_project = shift_inside
