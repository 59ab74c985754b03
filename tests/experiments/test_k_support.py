"""The K-support ball, on trial in the proxy, against its definition."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from scipy.optimize import minimize

from experiments.k_support import KSupportBall


@st.composite
def balls(draw):
    n = draw(st.integers(1, 6))
    return KSupportBall(n, draw(st.integers(1, n)), radius=draw(st.floats(0.1, 10)))


def random_tensor(ball, seed, zeros=False):
    x = torch.randn(ball.n, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return x.round() if zeros else x


def largest_norm(u, k):
    """The L2 norm of the K largest entries, which is the K-support norm's dual."""
    return u.abs().topk(k).values.norm()


@settings(max_examples=60, deadline=None)
@given(balls(), st.integers(0, 2**31), st.booleans())
def test_lmo_reaches_the_minimum_at_a_point_of_k_entries_on_the_surface(ball, seed, zeros):
    g = random_tensor(ball, seed, zeros)
    v = ball.lmo(g)
    assert (v != 0).sum() <= ball.k
    assert (g @ v).item() == pytest.approx(-ball.radius * largest_norm(g, ball.k).item())
    if g.any():
        assert v.norm().item() == pytest.approx(ball.radius)


@settings(max_examples=30, deadline=None)
@given(balls(), st.integers(0, 2**31))
def test_norm_is_the_largest_inner_product_with_the_dual_ball(ball, seed):
    x = random_tensor(ball, seed)
    support = x.numpy()

    def negative(u):
        u = torch.from_numpy(u)
        return -(torch.from_numpy(support) @ u / largest_norm(u, ball.k).clamp(min=1e-12)).item()

    starts = (x, x.sign(), x.sign() + x)
    reached = max(-minimize(negative, s.numpy(), method="Powell").fun for s in starts)
    assert ball.norm(x).item() >= reached - 1e-9
    assert ball.norm(x).item() == pytest.approx(reached, rel=1e-2)


@pytest.mark.parametrize("k", [1, 5])
def test_norm_is_l1_for_k_1_and_l2_for_k_n(k):
    x = torch.tensor([3.0, -1.0, 0.0, 2.0, 2.0])
    expected = x.abs().sum() if k == 1 else x.norm()
    assert KSupportBall(5, k, radius=1).norm(x).item() == pytest.approx(expected.item())


@pytest.mark.parametrize("scale", [1e-30, 1e-12, 1.0, 1e12, 1e30])
def test_lmo_neither_underflows_nor_overflows(scale):
    g = torch.tensor([3.0, -4.0, 1.0, 0.5]) * scale
    v = KSupportBall(4, 2, radius=5).lmo(g)
    assert v.tolist() == pytest.approx([-3.0, 4.0, 0.0, 0.0])


@settings(max_examples=60, deadline=None)
@given(balls(), st.integers(0, 2**31))
def test_shift_inside_scales_onto_the_surface_or_leaves_alone(ball, seed):
    x = random_tensor(ball, seed) * 5
    shifted = ball.shift_inside(x)
    if ball.norm(x) <= ball.radius:
        assert torch.equal(shifted, x)
    else:
        assert ball.norm(shifted).item() == pytest.approx(ball.radius)
        assert ball.gauge(shifted).item() == pytest.approx(1)
