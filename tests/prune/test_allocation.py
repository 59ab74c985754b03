"""How the zeros are spread over the tensors: exact totals, and each rule against its definition."""

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from utils.compute.measure import zeros_by_parameter
from utils.prune.weights.allocation import ALLOCATIONS, SCOPES
from utils.prune.weights.ranking import RATIOS, MagnitudeRanking


def network(seed=0, levels=None):
    """Convolutions, BatchNorm and linear layers without a 0, of few magnitudes where asked for."""
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 16, 3, bias=False), nn.Linear(40, 10)
    )
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn_like(p))
            if levels:
                p.copy_((p * levels).round() / levels)
            p[p == 0] = 1e-3
    return model


def zeros_of(model, allocation, ratio, scope="all"):
    removed = MagnitudeRanking(model, allocation, scope).prune(ratio)
    return removed, zeros_by_parameter(model)


@given(
    seed=st.integers(0, 99),
    allocation=st.sampled_from(sorted(ALLOCATIONS)),
    scope=st.sampled_from(sorted(SCOPES)),
    ratio=st.one_of(st.sampled_from(RATIOS), st.floats(0, 1), st.decimals(0, 1, places=2)),
    levels=st.sampled_from([None, 1, 4]),
)
def test_exactly_the_ratio_is_removed_the_smallest_of_each_tensor(
    seed, allocation, scope, ratio, levels
):
    model, dense = network(seed, levels), network(seed, levels)
    removed, zeros = zeros_of(model, allocation, float(ratio), scope)
    in_scope = {n: p for n, p in model.named_parameters() if scope == "all" or p.dim() > 1}
    total = sum(p.numel() for p in in_scope.values())
    assert removed == sum(zeros.values()) == math.floor(Fraction(str(float(ratio))) * total)
    for (name, p), old in zip(model.named_parameters(), dense.parameters(), strict=True):
        gone = p == 0
        assert torch.equal(p[~gone], old[~gone])
        if name not in in_scope:
            assert not gone.any()
        elif gone.any() and not gone.all():
            assert old[gone].abs().max() <= old[~gone].abs().min()


@pytest.mark.parametrize("allocation", ALLOCATIONS)
def test_ties_are_broken_by_position(allocation):
    model = nn.Sequential(nn.Linear(6000, 1, bias=False), nn.Linear(6000, 1, bias=False))
    for p in model.parameters():
        nn.init.ones_(p)
    MagnitudeRanking(model, allocation).prune(0.5)
    first, second = (p.flatten().tolist() for p in model.parameters())
    assert sorted(first) == first and sorted(second) == second
    assert sum(first) == (0 if allocation == "global" else 3000)


@pytest.mark.parametrize("allocation", ALLOCATIONS)
def test_a_higher_ratio_removes_what_a_lower_one_does_and_more(allocation):
    model = network(levels=4)
    ranking = MagnitudeRanking(model, allocation)
    gone = torch.zeros(len(ranking.weights), dtype=torch.bool)
    for ratio in RATIOS:
        ranking.prune(ratio)
        now = torch.cat([p.detach().flatten() for p in model.parameters()]) == 0
        assert (now | ~gone).all()
        gone = now


@given(seed=st.integers(0, 99), ratio=st.floats(0, 1))
def test_uniform_removes_the_same_fraction_of_every_tensor(seed, ratio):
    model = network(seed)
    _, zeros = zeros_of(model, "uniform", ratio)
    rounding = len(zeros) / 2  # of all tensors, which the total makes the larger ones take up
    for name, p in model.named_parameters():
        assert abs(zeros[name] - ratio * p.numel()) <= 1 + rounding


@pytest.mark.parametrize("allocation", ["uniform", "erk"])
def test_shares_are_rounded_to_the_nearest(allocation):
    """At 99 % a tensor of 64 is to keep 0.64 of an entry."""
    model = nn.ParameterList([torch.randn(64), torch.randn(6336)])
    _, zeros = zeros_of(model, allocation, 0.99)
    assert zeros == {"0": 63, "1": 6273}


@given(seed=st.integers(0, 99), ratio=st.floats(0, 1))
def test_erk_densities_are_in_proportion_to_its_factors_and_at_most_1(seed, ratio):
    """The scale of the densities is found here by halving, as its authors' definition has it."""
    model = network(seed)
    shapes = {name: p.shape for name, p in model.named_parameters() if p.dim() > 1}
    factors = {name: sum(shape) / math.prod(shape) for name, shape in shapes.items()}
    kept = (1 - ratio) * sum(map(math.prod, shapes.values()))
    low, high = 0.0, 1 / min(factors.values())
    for _ in range(100):
        middle = (low + high) / 2
        total = sum(min(middle * factors[n], 1) * math.prod(s) for n, s in shapes.items())
        low, high = (low, middle) if total > kept else (middle, high)
    _, zeros = zeros_of(model, "erk", ratio, "weights")
    for name, shape in shapes.items():
        left = math.prod(shape) - zeros[name]
        assert abs(left - min(low * factors[name], 1) * math.prod(shape)) <= 1 + len(shapes) / 2


@given(seed=st.integers(0, 99), ratio=st.floats(0, 0.99))  # the last entries all score 1
def test_lamp_is_its_definition(seed, ratio):
    model, dense = network(seed), network(seed)
    scores = []
    for p in dense.parameters():
        squares = p.detach().double().flatten() ** 2
        scores.append(torch.stack([s / squares[squares >= s].sum() for s in squares]))
    scores = torch.cat(scores)
    removed, _ = zeros_of(model, "lamp", ratio)
    now = torch.cat([p.detach().flatten() for p in model.parameters()])
    threshold = scores.sort().values[removed - 1] if removed else -1.0
    assert torch.equal(now == 0, scores <= threshold * (1 + 1e-12))


@pytest.mark.parametrize("allocation", ["erk", "lamp"])
def test_a_tensor_of_zeros_and_a_scalar_are_ranked(allocation):
    model = nn.Linear(3, 2)
    nn.init.zeros_(model.weight)
    model.scale = nn.Parameter(torch.tensor(2.0))
    MagnitudeRanking(model, allocation).prune(0.5)
    assert all(p.isfinite().all() for p in model.parameters())


def test_weights_leave_biases_and_batch_norm_as_they_are():
    model = network()
    removed, zeros = zeros_of(model, "global", 0.5, "weights")
    assert {name for name, count in zeros.items() if count} == {"0.weight", "2.weight", "3.weight"}
    assert removed == (3 * 8 * 9 + 8 * 16 * 9 + 400) // 2
