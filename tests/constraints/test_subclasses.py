"""Regions of one's own that change the vertices of a region of the product."""

import math
import typing

import pytest
import torch

from constraints import KSparsePolytope, LpBall, SignVertex
from optim.foreach import vertices


class Mixin:
    def lmo(self, g):
        return g.clone()


class Mixed(Mixin, LpBall):
    pass


class Changed(LpBall):
    def lmo(self, g):
        return -super().lmo(g)


class Later(Changed):
    vertex = SignVertex(3)  # of another LMO than this class has


class Both(Changed):
    vertex = SignVertex(3)

    def lmo(self, g):
        return self._opposite(g, self.vertex.furthest)


class Generic(LpBall, typing.Generic[typing.TypeVar("T")]):
    pass


@pytest.mark.parametrize("kind", [Mixed, Changed, Later])
def test_a_class_that_changes_the_vertex_does_not_inherit_what_it_looks_like(kind):
    region, g = kind(5, 2, radius=1.0), torch.arange(5.0)
    assert region.vertex is None
    assert torch.equal(*vertices([region], [g]), region.lmo(g))


def test_a_vertex_counts_beside_the_lmo_that_it_describes():
    assert Both(5, 2, radius=1.0).vertex == SignVertex(3)
    assert Generic[int](5, 1, radius=1.0).vertex == SignVertex(1)


@pytest.mark.parametrize(
    ("kind", "size"), [(KSparsePolytope, 3), (LpBall, 1), (LpBall, 2), (LpBall, math.inf)]
)
def test_an_lmo_may_call_that_of_its_base(kind, size):
    class Masked(kind):
        def lmo(self, g):
            return super().lmo(g * (g > 0))

    g = torch.tensor([-5.0, 1.0, 0.5, 2.0, -1.0, 4.0])
    assert torch.equal(Masked(6, size, radius=2.0).lmo(g), kind(6, size, radius=2.0).lmo(g.relu()))
