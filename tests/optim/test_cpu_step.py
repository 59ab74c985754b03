"""SFW's fused step on the CPU against the algorithm written out, whatever the tensors look like."""

import copy
import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from reference import sfw_step
from torch import nn

from constraints import KSparsePolytope, LpBall
from optim import SFW
from optim.cpu import kernels, step

RESCALES = ("gradient", "diameter", None)


def check_steps(shape, region, dtype, rescale, levels, channels_last, decay=0.0, steps=4, seed=0):
    """Take random steps with SFW and compare each with the reference step."""
    generator = torch.Generator().manual_seed(seed)
    layout = torch.channels_last if channels_last else torch.contiguous_format

    def draw():
        x = torch.randn(shape, generator=generator, dtype=torch.float64)
        if levels:  # few values: many ties, many zeros
            x = (x * levels).round() / levels
        return x.to(dtype).contiguous(memory_format=layout)

    p = nn.Parameter(region.shift_inside(draw()))
    options = dict(lr=0.5, rescale=rescale, weight_decay=decay)
    optimizer = SFW([p], [region], fused=True, **options)
    m = None
    for _ in range(steps):
        before, p.grad = p.detach().clone(), draw()
        optimizer.step()
        before, g = before.double(), p.grad.double()
        _, expected_m = sfw_step(before, g, m, region, momentum=0.9, **options)
        m = optimizer.state[p]["momentum_buffer"].double().clone()
        torch.testing.assert_close(m, expected_m, rtol=1e-5, atol=1e-6)
        # From its own buffer the choice of entries is exact, ties included.
        expected, _ = sfw_step(before, m, None, region, **options | {"weight_decay": 0.0})
        tolerance = 1e-5 if dtype == torch.float32 else 1e-10
        torch.testing.assert_close(p.detach().double(), expected, rtol=tolerance, atol=tolerance)
        assert p.is_contiguous(memory_format=layout)


@pytest.fixture
def small_limits(monkeypatch):
    """Samples and wakes threads for small tensors too."""
    monkeypatch.setattr(step, "WHOLE", 400)
    monkeypatch.setattr(step, "SAMPLE_LEAST", 128)
    monkeypatch.setattr(step, "PARALLEL_FROM", 1000)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=80)
@given(
    shape=st.sampled_from(
        [(1,), (2,), (7,), (64,), (33, 41), (8, 6, 3, 3), (20, 16, 3, 3), (3, 1, 1, 1)]
    ),
    fraction=st.floats(0, 1),
    kind=st.sampled_from(["k_sparse", "l1", "l2", "linf"]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    rescale=st.sampled_from(RESCALES),
    levels=st.sampled_from([0, 1, 2, 8]),
    channels_last=st.booleans(),
    decay=st.sampled_from([0.0, 0.1]),
    deviations=st.sampled_from([0.0, 4.0]),  # 0: the bracket is often missed
    seed=st.integers(0, 1000),
)
def test_every_step_is_the_algorithms(
    small_limits,
    shape,
    fraction,
    kind,
    dtype,
    rescale,
    levels,
    channels_last,
    decay,
    deviations,
    seed,
):
    n = math.prod(shape)
    region = {
        "k_sparse": lambda: KSparsePolytope(n, max(1, round(fraction * n)), radius=0.7),
        "l1": lambda: LpBall(n, 1, radius=3.0),
        "l2": lambda: LpBall(n, 2, radius=0.8 * math.sqrt(n)),
        "linf": lambda: LpBall(n, math.inf, radius=0.4),
    }[kind]()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(step, "DEVIATIONS", deviations)
        check_steps(
            shape,
            region,
            dtype,
            rescale,
            levels,
            channels_last and len(shape) == 4,
            decay,
            seed=seed,
        )


@pytest.mark.parametrize("n", [9000, 300_000])
def test_a_vertex_along_the_momentum_buffer_is_not_stored(n, monkeypatch):
    monkeypatch.setattr(step, "move_to_vertices", None)
    region = LpBall(n, 2, radius=math.sqrt(n))
    check_steps((n,), region, torch.float32, "gradient", 0, False)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("size", [1e-40, 1e-21, 1e21, 1e38])
def test_the_vertex_of_a_tiny_or_huge_gradient_has_the_balls_radius(fused, size):
    p = nn.Parameter(torch.zeros(9000))
    p.grad = torch.linspace(-size, size, 9000)
    SFW([p], [LpBall(9000, 2, radius=3.0)], rescale=None, fused=fused).step()
    torch.testing.assert_close(p.norm(), torch.tensor(3.0), rtol=1e-5, atol=0)


@pytest.mark.parametrize("nearness", [1e-2, 1e-4])
def test_a_step_close_to_its_vertex_is_the_algorithms(nearness):
    """The difference theta - v must not be lost in the rounding of sums."""
    n, generator = 9000, torch.Generator().manual_seed(0)
    g, away = (torch.randn(n, generator=generator) for _ in range(2))
    region = LpBall(n, 2, radius=1.0)
    p = nn.Parameter(region.lmo(g) * (1 - nearness) + nearness * away / away.norm())
    p.grad = g * nearness / 1000
    expected, _ = sfw_step(
        p.detach().double(), p.grad.double(), None, region, lr=0.5, rescale="gradient"
    )
    before = p.detach().clone()
    SFW([p], [region], lr=0.5, fused=True).step()
    torch.testing.assert_close(
        (p - before).norm().double(), (expected - before.double()).norm(), rtol=0.05, atol=0
    )


@pytest.mark.parametrize("levels", [0, 4])
@pytest.mark.parametrize(("n", "k"), [(9000, 450), (300_000, 15_000)])
def test_large_tensors_step_like_small_ones(n, k, levels):
    check_steps((n,), KSparsePolytope(n, k, radius=0.5), torch.float32, "gradient", levels, False)


@pytest.mark.parametrize("value", [math.nan, -math.inf])
@pytest.mark.parametrize("count", [5000, 300_000])
@pytest.mark.parametrize(
    "kind", [lambda n: KSparsePolytope(n, n // 20, radius=1.0), lambda n: LpBall(n, 2, radius=1.0)]
)
def test_a_broken_gradient_neither_hangs_nor_crashes_and_shows(kind, value, count, small_limits):
    p = nn.Parameter(torch.zeros(count))
    p.grad = torch.randn(count)
    p.grad[::7] = value
    optimizer = SFW([p], [kind(count)], fused=True)
    for _ in range(2):
        optimizer.step()
        assert p.isnan().all()


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("rescale", RESCALES)
def test_a_gradient_whose_norm_overflows_is_a_large_one(fused, rescale):
    """Its squares are infinite in float32, but it is not: the step is the longest there is."""
    p, q = nn.Parameter(torch.zeros(6)), nn.Parameter(torch.zeros(6))
    p.grad = torch.tensor([3e38, -1e38, 2e38, 0.0, 1.0, 1e20])
    q.grad = p.grad / 1e30
    for parameter in (p, q):
        SFW(
            [parameter], [KSparsePolytope(6, 2, radius=1.0)], lr=1.0, rescale=rescale, fused=fused
        ).step()
    assert torch.equal(p, q) and p.norm() > 0


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize(
    "region", [KSparsePolytope(1, 1, radius=1.0), LpBall(1, 2, radius=1.0)], ids=repr
)
def test_a_learning_rate_of_zero_keeps_a_vertex(region, fused):
    p = nn.Parameter(torch.zeros(1))
    p.grad = torch.full((1,), 100.0)
    optimizer = SFW([p], [region], fused=fused)
    optimizer.step()
    assert p.tolist() == [-1.0]
    optimizer.param_groups[0]["lr"] = 0.0  # as at the end of a cosine schedule
    optimizer.step()
    assert p.tolist() == [-1.0]


def test_entries_without_momentum_stay_where_denormals_are_flushed():
    p = nn.Parameter(torch.full((10,), 0.5))
    p.grad = torch.eye(10)[0]
    flushed = torch.set_flush_denormal(True)
    try:
        SFW([p], [KSparsePolytope(10, 5, radius=1.0)], lr=0.5, rescale=None).step()
    finally:
        torch.set_flush_denormal(False)
    assert flushed
    assert p.tolist() == [-0.25] + [0.25] * 9


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
@given(
    sizes=st.lists(st.sampled_from([1, 9, 64, 399, 401, 1393, 70_000]), min_size=1, max_size=8),
    levels=st.sampled_from([0, 2]),
    seed=st.integers(0, 1000),
)
def test_tensors_taken_in_one_call_step_as_each_would_alone(small_limits, sizes, levels, seed):
    generator = torch.Generator().manual_seed(seed)

    def draw(n):
        x = torch.randn(n, generator=generator)
        return (x * levels).round() / levels if levels else x

    kinds = [
        lambda n: KSparsePolytope(n, max(1, n // 20), radius=0.7),
        lambda n: KSparsePolytope(n, n, radius=0.7),
        lambda n: LpBall(n, 2, radius=5.0),
    ]
    regions = [kinds[i % 3](n) for i, n in enumerate(sizes, seed)]
    p, q = ([nn.Parameter(torch.zeros(n)) for n in sizes] for _ in range(2))
    together = SFW(p, regions, lr=0.1, fused=True)
    alone = [SFW([x], [region], lr=0.1, fused=True) for x, region in zip(q, regions, strict=True)]
    for _ in range(3):
        for a, b in zip(p, q, strict=True):
            a.grad = draw(a.numel())
            b.grad = a.grad.clone()
        together.step()
        for optimizer in alone:
            optimizer.step()
    assert all(map(torch.equal, p, q))


@pytest.mark.parametrize("unseen", ["larger", "smaller"])
def test_a_bracket_that_a_sample_has_put_wrong_does_not_matter(unseen, monkeypatch):
    """The sample sees none of the entries that are larger, or smaller, than all that it sees."""
    n, k, seen = 300_000, 15_000, torch.zeros(300_000, dtype=torch.bool)
    for r in range(step._sample(n, k)[0] // kernels.RUN):
        start = int(r * kernels.GOLDEN % 1.0 * (n // kernels.RUN)) * kernels.RUN
        seen[start : start + kernels.RUN] = True
    g = torch.randn(n, generator=torch.Generator().manual_seed(0))
    g[seen] *= 1e-3 if unseen == "larger" else 1e3
    region, p = KSparsePolytope(n, k, radius=0.5), nn.Parameter(torch.full((n,), 0.01))
    expected, _ = sfw_step(p.detach().double(), g.double(), None, region, lr=1e-3, rescale=None)
    monkeypatch.setattr(step, "move_to_vertices", None)  # the plain step
    p.grad = g
    SFW([p], [region], lr=1e-3, rescale=None, fused=True).step()
    torch.testing.assert_close(p.detach().double(), expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("nonzero", [0, 7])
@pytest.mark.parametrize("n", [500, 300_000])
def test_v_is_0_where_a_gradient_is(n, nonzero, monkeypatch):
    monkeypatch.setattr(step, "move_to_vertices", None)
    p = nn.Parameter(torch.full((n,), 0.25))
    p.grad = torch.zeros(n)
    p.grad[:nonzero] = 1e-3
    SFW([p], [KSparsePolytope(n, 50, radius=1.0)], lr=0.5, rescale=None, fused=True).step()
    assert p.tolist() == [-0.375] * nonzero + [0.125] * (n - nonzero)


def test_parameters_gradients_and_state_may_lie_elsewhere_at_each_step():
    """Their addresses are looked up anew."""
    n, generator = 80_000, torch.Generator().manual_seed(0)
    region = KSparsePolytope(n, n // 20, radius=0.1)
    p, q = nn.Parameter(torch.zeros(n)), nn.Parameter(torch.zeros(n))
    a, b = (SFW([x], [region], lr=0.1, fused=True) for x in (p, q))
    for _ in range(4):
        p.grad = torch.randn(n, generator=generator)
        q.grad = p.grad.clone()
        former, before = q.data, q.detach().clone()
        q.data = q.data.clone()
        b.load_state_dict(copy.deepcopy(b.state_dict()))
        a.step()
        b.step()
        assert torch.equal(p, q) and torch.equal(former, before)


@pytest.mark.parametrize("n", [1 << 17, (1 << 17) + 1, 1 << 18, 10**6, 10**9])
def test_a_sample_is_made_of_whole_runs(n):
    """What else was in memory would decide how sums are split, and so their last bits."""
    assert step._sample(n, n // 20)[0] % kernels.RUN == 0


def test_results_do_not_depend_on_the_number_of_threads():
    def run(threads):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        p = nn.Parameter(torch.zeros(600_000))
        optimizer = SFW([p], [KSparsePolytope(600_000, 30_000, radius=0.1)])
        for seed in range(3):
            p.grad = torch.randn(600_000, generator=torch.Generator().manual_seed(seed))
            optimizer.step()
        torch.set_num_threads(before)
        return p

    assert torch.equal(run(1), run(2))
