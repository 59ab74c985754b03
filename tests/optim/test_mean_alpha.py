"""The mean of alpha, which SFW keeps on the device: the effective weight decay of a step."""

import copy
import math

import pytest
import torch
from torch import nn

from constraints import KSparsePolytope, LpBall
from optim import SFW


def steps_of(region_kind, fused, lr=0.1, dtype=torch.float32):
    """An optimizer that has taken two steps, and alpha of each parameter as it moved in the last.

    Steps move theta to (1 - alpha) theta + alpha v: alpha follows from where an entry has gone.
    """
    generator = torch.Generator().manual_seed(0)
    params = [nn.Parameter(torch.randn(n, generator=generator).to(dtype)) for n in (300, 20)]
    regions = [region_kind(p.numel()) for p in params]
    optimizer = SFW(params, regions, lr=lr, momentum=0.5, fused=fused)
    for _ in range(2):
        before = [p.detach().clone() for p in params]
        for p in params:
            p.grad = torch.randn(p.shape, generator=generator).to(dtype)
        optimizer.step()
    alphas = []
    for p, old, region in zip(params, before, regions, strict=True):
        towards = region.lmo(optimizer.state[p]["momentum_buffer"]) - old
        alphas.append(((p.detach() - old).norm() / towards.norm()).item())
    return optimizer, alphas


@pytest.mark.parametrize("fused", [True, False])
def test_each_tensors_alpha_counts_as_often_as_it_has_entries(fused):
    optimizer, (first, second) = steps_of(lambda n: KSparsePolytope(n, n // 10, radius=2.0), fused)
    expected = (300 * first + 20 * second) / 320
    assert first != pytest.approx(second, rel=0.1)
    assert optimizer.mean_alpha().item() == pytest.approx(expected, rel=1e-4)
    assert optimizer.mean_alpha().dtype == torch.float32


def test_tensors_whose_steps_are_taken_in_different_ways_count_alike():
    kinds = {300: KSparsePolytope(300, 30, radius=2.0), 20: LpBall(20, 3, radius=2.0)}
    optimizer, (first, second) = steps_of(kinds.get, None)
    expected = (300 * first + 20 * second) / 320
    assert optimizer.mean_alpha().item() == pytest.approx(expected, rel=1e-4)


def test_it_is_0_before_a_step_and_not_part_of_the_state():
    optimizer, _ = steps_of(lambda n: LpBall(n, 2, radius=2.0), False)
    other = copy.deepcopy(optimizer)
    assert set(optimizer.state_dict()) == {"state", "param_groups"}
    other.load_state_dict(optimizer.state_dict())
    fresh = SFW([nn.Parameter(torch.ones(3))], [LpBall(3, 2, radius=1.0)])
    assert fresh.mean_alpha() == 0


def test_before_a_step_it_is_where_the_parameters_are():
    p = nn.Parameter(torch.ones(3, device="meta"))
    assert SFW([p], [LpBall(3, 2, radius=1.0)]).mean_alpha().is_meta
    assert SFW([{"params": []}], []).mean_alpha() == 0


@pytest.mark.parametrize("fused", [True, False])
def test_a_broken_gradient_is_seen_in_it(fused):
    p = nn.Parameter(torch.ones(30))
    optimizer = SFW([p], [KSparsePolytope(30, 3, radius=2.0)], fused=fused)
    p.grad = torch.full((30,), math.nan)
    optimizer.step()
    assert p.isnan().all() and optimizer.mean_alpha().isnan()
