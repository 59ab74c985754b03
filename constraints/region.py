"""What every feasible region offers."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor, nn


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
    # If the vertices are vectors in which some entries are +radius or -radius and all others are 0,
    # the number of those entries. Optimizers may then find the vertex without calling `lmo`. None
    # for other regions, and for subclasses that change `lmo`.
    vertex_entries: int | None = None
    # Optional: `furthest(rows)` takes gradients of n entries as the rows of a matrix. It returns a
    # new matrix whose rows are the points of the region of radius 1 that are furthest in these
    # directions; for a row with NaN they may be anything. A region that defines it inherits `lmo`,
    # and an optimizer may call it once for several regions: see `alike`.
    furthest: Callable[[Tensor], Tensor] | None = None
    # `gauge(x)`, if a region has it, is the smallest s >= 0 for which x is in s times the region:
    # how much of the region x fills. A float64 scalar tensor. None for other regions, of which
    # nothing is reported.
    gauge: Callable[[Tensor], Tensor] | None = None

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
        if not self.n:
            return g.clone()
        v = self.furthest(g.reshape(1, -1))
        largest = g.amax().to(v.dtype)  # NaN if there is one
        v = v.mul_(torch.where(largest.isnan(), largest, -self.radius)).view(g.shape)
        return v.to(g.dtype) if g.is_contiguous() else torch.empty_like(g).copy_(v)

    def alike(self) -> tuple | None:
        """A key that regions share if they differ only in their radius; None without `furthest`."""
        if self.furthest is None:
            return None
        return tuple(value for key, value in self.describe().items() if key != "radius")

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

    def shift_inside(self, x: Tensor) -> Tensor:
        self._check(x)
        return x.clone()

    def euclidean_project(self, x: Tensor) -> Tensor:
        self._check(x)
        return x.clone()


def is_local(x: Tensor) -> bool:
    """Whether reading the values of `x` costs nothing: it is in this CPU's memory, and no subclass
    of Tensor that stands for entries elsewhere, as a DTensor's are."""
    return x.is_cpu and type(x) in (Tensor, nn.Parameter)


def lp_norm(x: Tensor, p: float) -> Tensor:
    """The Lp norm of all entries of `x`, of which there may be none, as a float64 scalar tensor."""
    if not x.numel():
        return x.new_zeros((), dtype=torch.float64)
    return torch.linalg.vector_norm(x, p, dtype=torch.float64)


def scale(x: Tensor, factor: Tensor) -> Tensor:
    """`x` times a number, rounded once: in half precision the number alone may not be finite."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    return (x.to(dtype) * factor.to(dtype)).to(x.dtype)
