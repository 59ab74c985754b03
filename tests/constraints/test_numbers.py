"""Regions at the edges of the number formats: tiny, huge, not a number, and no entries at all."""

import math

import pytest
import torch
from torch import nn

from constraints import KSparsePolytope, LpBall, build_constraints, make_feasible
from constraints.projection import shift_by_newton, shift_by_sorting

REGIONS = [
    KSparsePolytope(40, 3, radius=0.5),
    *(LpBall(40, p, radius=2.0) for p in (1, 2, 3, math.inf)),
]
METHODS = ("lmo", "shift_inside", "euclidean_project")


def vector(dtype=torch.float32):
    return torch.randn(40, generator=torch.Generator().manual_seed(0)).to(dtype)


@pytest.mark.parametrize("region", REGIONS, ids=repr)
@pytest.mark.parametrize("scale", [1e-44, 1e-38, 1e-30, 1e-23, 1e19, 1e30, 1e37])
def test_an_lmo_depends_on_the_gradients_direction_only(region, scale):
    """Squares of such float32 entries vanish or overflow."""
    g = (vector().double() * scale).float()
    expected = region.lmo(g.double())
    torch.testing.assert_close(region.lmo(g).double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("region", REGIONS, ids=repr)
def test_an_lmo_in_half_precision_is_that_of_float32_rounded(region, dtype):
    g = vector(dtype) * (torch.finfo(dtype).max / 4)
    assert torch.equal(region.lmo(g), region.lmo(g.float()).to(dtype))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e4])
@pytest.mark.parametrize("region", REGIONS, ids=repr)
def test_a_shift_in_half_precision_is_that_of_float32_rounded(region, scale, dtype):
    """Here the factor, and for 40 numbers of 10^4 their sum, is beyond half precision."""
    x = (vector() * scale).to(dtype)
    for factor in (1.0, 1e-4):
        smaller = type(region)(40, getattr(region, "k", None) or region.p, radius=factor)
        assert torch.equal(smaller.shift_inside(x), smaller.shift_inside(x.float()).to(dtype))


@pytest.mark.parametrize("value", [1e-6, 0.1, 2000.0])
@pytest.mark.parametrize("p", [10, 100])
def test_powers_of_an_lp_norm_neither_overflow_nor_underflow(p, value):
    x = torch.full((400,), value, dtype=torch.float64)
    ball = LpBall(400, p, radius=value * 400 ** (1 / p) / 2)
    assert ball.gauge(x).item() == pytest.approx(2)
    torch.testing.assert_close(ball.shift_inside(x), x / 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("region", REGIONS, ids=repr)
def test_nan_comes_out_as_nan(region, method, dtype):
    for where in ([0], [39], [1, 5, 20, 30], list(range(40))):
        x = vector(dtype)
        x[where] = math.nan
        assert getattr(region, method)(x)[where].isnan().any()


@pytest.mark.parametrize("cap", [0.5, math.inf])
def test_nan_anywhere_is_seen_by_both_ways_to_project(cap):
    for position in (0, 20, 39):
        x = vector()
        x[position] = math.nan
        assert math.isnan(shift_by_newton(x.split(7), 1.5, cap))
        assert shift_by_sorting(x, 1.5, cap).isnan()


EMPTY = [
    KSparsePolytope(0, 0, radius=0.5),
    KSparsePolytope(0, 0, diameter=1.0),
    *(LpBall(0, p, radius=2.0) for p in (1, 2, 3, math.inf)),
]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("region", EMPTY, ids=repr)
@pytest.mark.parametrize("shape", [(0,), (3, 0), (0, 2, 3, 3)])
def test_tensors_without_entries_stay_as_they_are(region, method, shape):
    x = torch.zeros(shape)
    y = getattr(region, method)(x)
    assert y.shape == shape and y is not x


@pytest.mark.parametrize("kind", ["k_sparse_constraints", "l2_constraints"])
@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_networks_with_empty_parameters_get_regions(kind):
    model = nn.ModuleList([nn.Linear(0, 3), nn.Linear(2, 3)])
    model.empty = nn.Parameter(torch.zeros(0))
    constraints = build_constraints(model, kind)
    assert [region.n for region in constraints] == [0, 0, 3, 6, 3]
    make_feasible(model, constraints)
    assert all(0 < region.radius < math.inf for region in constraints)
