"""The group K-support ball, on trial in the proxy, against its definition."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from torch import nn

from constraints import LpBall
from experiments.group_k_support import GroupKSupportBall, group_regions

SEEDS = st.integers(0, 2**31)


@st.composite
def balls(draw):
    channels, each = draw(st.integers(1, 5)), draw(st.integers(1, 4))
    k, radius = draw(st.integers(1, channels)), draw(st.floats(0.1, 10))
    return GroupKSupportBall(channels * each, channels, k, radius=radius)


def random_tensor(ball, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(ball.channels, ball.n // ball.channels, generator=generator).double()


@given(balls(), SEEDS)
def test_lmo_reaches_the_minimum_at_k_channels_on_the_surface(ball, seed):
    g = random_tensor(ball, seed)
    v = ball.lmo(g)
    assert (v.norm(dim=1) != 0).sum() <= ball.k
    assert v.norm().item() == pytest.approx(ball.radius)
    least = -ball.radius * g.norm(dim=1).topk(ball.k).values.norm()  # over the hull's vertices
    assert (g * v).sum().item() == pytest.approx(least.item())
    assert ball.gauge(v).item() == pytest.approx(1)


@given(balls(), SEEDS, SEEDS)
def test_the_norm_is_dual_to_that_of_the_k_largest_channels(ball, seed, other):
    x, u = random_tensor(ball, seed), random_tensor(ball, other)
    dual = u.norm(dim=1).topk(ball.k).values.norm()
    assert (x * u).sum() <= ball.norm(x) * dual * (1 + 1e-9)


@given(balls(), SEEDS)
def test_points_between_vertices_are_inside(ball, seed):
    generator = torch.Generator().manual_seed(seed)
    weights = torch.rand(6, generator=generator).softmax(0)
    vertices = [ball.lmo(random_tensor(ball, seed + i)) for i in range(6)]
    assert ball.gauge(sum(w * v for w, v in zip(weights, vertices, strict=True))) <= 1 + 1e-9


@pytest.mark.parametrize("k", [1, 5])
def test_the_norm_is_the_sum_of_channels_norms_for_k_1_and_l2_for_all(k):
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    expected = x.norm(dim=1).sum() if k == 1 else x.norm()
    assert GroupKSupportBall(15, 5, k, radius=1).norm(x).item() == pytest.approx(expected.item())


@pytest.mark.parametrize("scale", [0.0, 1e-30, 1.0, 1e30])
def test_lmo_neither_underflows_nor_overflows(scale):
    g = torch.tensor([[3.0, -4.0], [1.0, 0.5], [0.0, 2.0]]) * scale
    v = GroupKSupportBall(6, 3, 1, radius=5).lmo(g)
    expected = [-3.0, 4.0, 0, 0, 0, 0] if scale else [0.0] * 6
    assert v.flatten().tolist() == pytest.approx(expected)


@given(balls(), SEEDS)
def test_shift_inside_scales_onto_the_surface_or_leaves_alone(ball, seed):
    x = random_tensor(ball, seed) * 5
    shifted = ball.shift_inside(x)
    if ball.norm(x) <= ball.radius:
        assert torch.equal(shifted, x)
    else:
        assert ball.gauge(shifted).item() == pytest.approx(1)


def test_weights_get_a_fraction_of_their_channels_and_others_an_l2_ball():
    model = nn.Sequential(nn.Conv2d(3, 10, 3), nn.BatchNorm2d(10), nn.Flatten(), nn.Linear(90, 2))
    regions = group_regions(model, tau=3.0, k_frac=0.3)
    assert [getattr(region, "k", None) for region in regions] == [3, None, None, None, 1, None]
    assert all(isinstance(region, LpBall) for region in regions[1:4])
    with torch.no_grad():
        for region, p in zip(regions, model.parameters(), strict=True):
            assert region.lmo(torch.ones_like(p)).shape == p.shape
