"""Regions against the authors' numbers, against plain references, and as mathematics."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from reference import k_sparse_lmo
from scipy.optimize import minimize
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

import constraints
from constraints import KSparsePolytope, LpBall, Unconstrained, projection
from constraints.tensors import largest_entries

DTYPES = (torch.float32, torch.float64, torch.bfloat16)


def golden_cases(path, letter):
    file = np.load(path)
    count = sum(name.startswith(letter) and name.endswith("_x") for name in file.files)
    assert count > 0
    for i in range(count):
        prefix = f"{letter}{i}_"
        yield {k.removeprefix(prefix): file[k] for k in file.files if k.startswith(prefix)}


def close(tensor, expected):
    np.testing.assert_allclose(tensor, expected, rtol=1e-5, atol=1e-6)


@st.composite
def tensors(draw, max_entries=60, dtypes=DTYPES, scale=1.0):
    """Tensors with ties, zeros and four dimensions in either memory format."""
    shape = draw(st.sampled_from([(1,), (7,), (5, 3), (2, 3, 3, 3), (4, 1, 2, 2)]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10_000)))
    x = torch.randn(shape, generator=generator) * scale * draw(st.sampled_from([0.01, 1, 30]))
    if draw(st.booleans()):
        x = (x * 2).round() / 2
    x = x.to(draw(st.sampled_from(dtypes)))
    if x.dim() == 4 and draw(st.booleans()):
        x = x.contiguous(memory_format=torch.channels_last)
    return x


@st.composite
def regions(draw, n):
    size = {draw(st.sampled_from(["radius", "diameter"])): draw(st.sampled_from([0.1, 1.0, 7.5]))}
    p = draw(st.sampled_from([None, 1, 2, 2.5, 4, math.inf]))
    if p is None:
        return KSparsePolytope(n, draw(st.integers(1, n)), **size)
    return LpBall(n, p, **size)


def region_norms(region, x):
    """How far out `x` is: at most 1 inside the region."""
    x = x.double().flatten()
    if isinstance(region, KSparsePolytope):
        return max(x.norm(1) / region.k, x.norm(math.inf)).item() / region.radius
    return x.norm(region.p).item() / region.radius


def test_k_sparse_lmo_is_the_authors(golden):
    for case in golden_cases(golden("lmo.npz"), "k"):
        region = KSparsePolytope(case["x"].size, int(case["k"]), radius=float(case["radius"]))
        assert region.diameter == pytest.approx(float(case["diameter"]))
        close(region.lmo(torch.tensor(case["x"])), case["v"])


def test_lp_ball_lmo_is_the_authors(golden):
    for case in golden_cases(golden("lmo.npz"), "p"):
        region = LpBall(case["x"].size, float(case["p"]), radius=float(case["radius"]))
        assert region.diameter == pytest.approx(float(case["diameter"]))
        close(region.lmo(torch.tensor(case["x"])), case["v"])


def test_k_sparse_shift_inside_is_the_authors(golden):
    for case in golden_cases(golden("feasible.npz"), "k"):
        region = KSparsePolytope(case["x"].size, int(case["k"]), radius=float(case["radius"]))
        close(region.shift_inside(torch.tensor(case["x"])), case["y"])


def test_lp_ball_shift_and_projection_are_the_authors(golden):
    for case in golden_cases(golden("feasible.npz"), "p"):
        region = LpBall(case["x"].size, float(case["p"]), radius=float(case["radius"]))
        close(region.shift_inside(torch.tensor(case["x"])), case["shift"])
        close(region.euclidean_project(torch.tensor(case["x"])), case["project"])


@given(st.data())
def test_k_sparse_lmo_equals_a_stable_sort(data):
    g = data.draw(tensors())
    k = data.draw(st.integers(1, g.numel()))
    region = KSparsePolytope(g.numel(), k, radius=1.5)
    v = region.lmo(g)
    assert torch.equal(v, k_sparse_lmo(g, k, 1.5))
    assert v.dtype == g.dtype and v.shape == g.shape


@given(st.data())
def test_the_largest_entries_are_found_in_each_row_in_all_ways(data):
    columns, k = data.draw(st.integers(1, 30)), data.draw(st.integers(1, 30))
    shape, k = (data.draw(st.integers(1, 4)), columns), min(k, columns)
    numbers = st.sampled_from([0.0, 2.0**-149, 1.0, 1.5, 2.0, math.inf])
    drawn = data.draw(st.lists(numbers, min_size=math.prod(shape), max_size=math.prod(shape)))
    magnitude = torch.tensor(drawn).view(shape)
    order = magnitude.sort(descending=True, stable=True)
    expected = torch.zeros(shape).scatter_(-1, order.indices[:, :k], 1.0)
    assert torch.equal(largest_entries(magnitude, k).float(), expected)
    with pytest.MonkeyPatch.context() as patch:  # as on a GPU
        patch.setattr(constraints.tensors, "is_local", lambda x: False)
        assert torch.equal(largest_entries(magnitude, k).float(), expected)


@given(st.data())
def test_lmo_is_in_the_region_and_no_other_point_is_lower(data):
    g = data.draw(tensors(dtypes=(torch.float64,)))
    region = data.draw(regions(g.numel()))
    v = region.lmo(g)
    assert region_norms(region, v) <= 1 + 1e-9
    other = region.shift_inside(data.draw(tensors(dtypes=(torch.float64,))).flatten()[:1] * g)
    best = min((g * other).sum(), -(g * other).sum())
    assert (g * v).sum() <= best + 1e-9 * g.norm() * region.diameter


@given(st.data())
def test_shift_inside_keeps_inner_points_and_directions(data):
    x = data.draw(tensors())
    region = data.draw(regions(x.numel()))
    y = region.shift_inside(x)
    tolerance = 4 * torch.finfo(x.dtype).eps
    assert region_norms(region, y) <= 1 + tolerance
    if region_norms(region, x) < 1 - tolerance:
        assert torch.equal(x, y)
    else:
        parallel = (x.double() * y.double()).sum().item()
        lengths = (x.double().norm() * y.double().norm()).item()
        assert parallel == pytest.approx(lengths, rel=1e-2)


@given(st.data())
def test_the_gauge_is_the_multiple_of_the_region_on_whose_surface_a_point_lies(data):
    """For every g, <x, g> is at most the gauge times the largest <y, g> in the region."""
    x = data.draw(tensors())
    region = data.draw(regions(x.numel()))
    gauge = region.gauge(x)
    assert gauge.shape == () and gauge.item() == pytest.approx(region_norms(region, x), rel=1e-6)
    if gauge:
        assert region_norms(region, x.double() / gauge) == pytest.approx(1)
    g = data.draw(tensors(dtypes=(torch.float64,))).flatten()[:1] + x.double()
    assert (x * g).sum() <= (1 + 1e-6) * gauge * -(g * region.lmo(g)).sum()


@pytest.mark.parametrize("region", [KSparsePolytope(0, 0, radius=1.0), LpBall(0, 2, radius=1.0)])
def test_a_tensor_without_entries_fills_nothing(region):
    assert region.gauge(torch.zeros(0)) == 0


@given(st.data())
def test_projection_meets_the_optimality_conditions(data):
    """y is the nearest point if and only if <x - y, z - y> <= 0 for every z in the region."""
    x = data.draw(tensors(dtypes=(torch.float64,)))
    region = data.draw(regions(x.numel()))
    y = region.euclidean_project(x)
    assert region_norms(region, y) <= 1 + 1e-9
    residual = x - y
    furthest = region.lmo(-residual)
    rounding = 1e-7 * residual.norm() + 1e-15 * x.norm()
    assert (residual * (furthest - y)).sum() <= rounding * region.diameter


@pytest.mark.parametrize("seed", range(4))
def test_k_sparse_projection_agrees_with_a_general_solver(seed):
    x = np.random.default_rng(seed).normal(size=6) * 2
    region = KSparsePolytope(6, 2 + seed % 2, radius=0.8)
    # y = p - q with p, q >= 0 turns both norms into linear constraints.
    solution = minimize(
        lambda pq: ((pq[:6] - pq[6:] - x) ** 2).sum(),
        np.zeros(12),
        bounds=[(0, 0.8)] * 12,
        constraints={"type": "ineq", "fun": lambda pq: 0.8 * region.k - pq.sum()},
        options={"ftol": 1e-14, "maxiter": 1000},
    )
    y = region.euclidean_project(torch.tensor(x))
    np.testing.assert_allclose(y, solution.x[:6] - solution.x[6:], atol=1e-5)


@given(st.data())
def test_results_do_not_depend_on_the_memory_format(data):
    x = torch.randn(
        2, 3, 3, 3, generator=torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    )
    region = data.draw(regions(x.numel()))
    last = x.contiguous(memory_format=torch.channels_last)
    for method in (region.lmo, region.shift_inside, region.euclidean_project):
        torch.testing.assert_close(method(x), method(last))


@pytest.mark.parametrize("method", ["lmo", "shift_inside", "euclidean_project"])
@pytest.mark.parametrize("p", [None, 1, 2, 3, math.inf])
def test_nothing_waits_for_the_device(p, method):
    """On a fake GPU, where reading a value raises an error."""
    region = LpBall(40, p, radius=0.1) if p else KSparsePolytope(40, 3, radius=0.1)
    with FakeTensorMode():
        x = torch.empty(40, device="cuda")
        y = getattr(region, method)(x)
        assert y.device == x.device and y.shape == x.shape
        assert region.gauge(x).device == x.device
        with pytest.raises(DataDependentOutputException):
            x.sum().item()


@pytest.mark.parametrize(("n", "k"), [(512, 25), (64, 10)])
def test_bfloat16_is_projected_like_double(n, k):
    region, ones = KSparsePolytope(n, k, radius=0.001), torch.ones(n)
    expected = region.euclidean_project(ones.double()).bfloat16()
    assert torch.equal(region.euclidean_project(ones.bfloat16()), expected)
    assert expected.norm() > 0


@given(st.data())
def test_newton_and_sorting_find_the_same_projection(data):
    x = data.draw(tensors(dtypes=(torch.float32, torch.float64))).flatten()
    cap = data.draw(st.sampled_from([0.01, 0.3, 2.0, math.inf]))
    total = data.draw(st.sampled_from([0.02, 1.0, 10.0]))
    pieces = x.split(3)
    shifts = (
        projection.shift_by_newton(pieces, total, cap),
        projection.shift_by_sorting(x, total, cap),
    )
    newton, sorting = ((x.abs().double() - shift).clamp(0, cap) for shift in shifts)
    torch.testing.assert_close(newton, sorting)


@pytest.mark.parametrize("cap", [0.05, 0.5, math.inf])
def test_newtons_method_is_exact_up_to_rounding_after_a_few_steps(cap, monkeypatch):
    monkeypatch.setattr(projection, "MOST_STEPS", 20)
    x = torch.randn(5000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for total in (1.0, 30.0, 200.0):
        shift = projection.shift_by_newton(x.split(1000), total, cap)
        assert (x.abs() - shift).clamp(0, cap).sum().item() == pytest.approx(total, rel=1e-12)


@pytest.mark.parametrize(
    "region",
    [KSparsePolytope(5, 2, radius=1.0), *(LpBall(5, p, radius=9.0) for p in (1, 2, 3, math.inf))],
    ids=repr,
)
@pytest.mark.parametrize("dtype", DTYPES)
def test_zero_gradient_gives_the_origin(region, dtype):
    zeros = torch.zeros(5, dtype=dtype)
    assert torch.equal(region.lmo(zeros).abs(), zeros)


def test_unconstrained_projects_onto_itself_and_has_no_lmo():
    region, x = Unconstrained(3), torch.randn(3)
    assert torch.equal(region.euclidean_project(x), x)
    assert region.euclidean_project(x).data_ptr() != x.data_ptr()
    with pytest.raises(NotImplementedError):
        region.lmo(x)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: KSparsePolytope(5, 6, radius=1.0), "k must be between 1 and n = 5, not 6"),
        (lambda: KSparsePolytope(5, 0, radius=1.0), "not 0"),
        (lambda: KSparsePolytope(5, 2), "either radius or diameter"),
        (lambda: KSparsePolytope(5, 2, radius=1.0, diameter=1.0), "either radius or diameter"),
        (lambda: LpBall(5, 1.5, radius=1.0), "not 1.5"),
        (lambda: LpBall(5, 2, radius=-1.0), "radius must be positive and finite, not -1.0"),
        (lambda: LpBall(5, 2, diameter=math.nan), "diameter must be positive"),
        (lambda: LpBall(5, 2, radius=1.0).lmo(torch.zeros(4)), "5 entries, the tensor 4"),
    ],
)
def test_bad_arguments_are_refused_with_their_value(build, message):
    with pytest.raises(ValueError, match=message):
        build()
