"""Regions of one's own that change the vertices of a region of the product."""

import typing

import torch

from constraints import LpBall


class Mixin:
    def furthest(self, rows):
        return -rows


class Mixed(Mixin, LpBall):
    pass


class Changed(LpBall):
    def lmo(self, g):
        return -super().lmo(g)


class Sparse(Changed):
    vertex_entries = 3


class Generic(LpBall, typing.Generic[typing.TypeVar("T")]):
    pass


def test_a_class_that_changes_the_vertex_inherits_no_short_cut_to_it():
    for changed in (Mixed, Changed):
        assert (changed.vertex_entries, changed.furthest_in_parts) == (None, None)
    assert Sparse(5, 2, radius=1.0).vertex_entries == 3
    assert Generic[int](5, 2, radius=1.0).vertex_entries == 5
    assert Changed(5, 2, radius=1.0).lmo(torch.ones(5)).sum() > 0
