"""Which region each parameter gets."""

import copy
import json
import math

import pytest
import torch
from torch import nn

from constraints import (
    KSparsePolytope,
    LpBall,
    Unconstrained,
    build_constraints,
    gauges,
    make_feasible,
)
from models import build_model

INPUTS = {"ResNet18": (3, 32), "Mlp": (1, 28)}


@pytest.mark.parametrize("arch", INPUTS)
def test_regions_are_the_authors(arch, golden):
    expected = json.loads(golden("regions.json").read_text())[arch]
    model = build_model(arch, 10, *INPUTS[arch])
    k_sparse = build_constraints(model, "k_sparse_constraints")
    l2 = build_constraints(model, "l2_constraints")
    named = zip(model.named_parameters(), k_sparse, l2, strict=True)
    for (name, p), polytope, ball in named:
        if name in expected:
            e = expected[name]
            assert (p.numel(), polytope.n, polytope.k) == (e["n"], e["n"], e["k"])
            assert polytope.diameter == pytest.approx(e["k_sparse_diameter"], rel=0.02), name
            assert polytope.radius == pytest.approx(e["k_sparse_radius"], rel=0.02), name
            assert ball.radius == pytest.approx(e["l2_radius"], rel=0.02), name


def test_constant_initialisers_count_as_norm_one():
    model = nn.Sequential(nn.BatchNorm2d(512), nn.LayerNorm(3), nn.Linear(4, 4))
    *constant, weight, _ = build_constraints(model, "l2_constraints", tau=3.0)
    assert [region.radius for region in constant] == [3.0] * 4
    assert weight.radius != 3.0


def test_make_feasible_starts_a_wide_batch_norm_scale_at_0_146():
    model = nn.BatchNorm2d(512)
    make_feasible(model, build_constraints(model, "k_sparse_constraints"))
    assert model.weight.tolist() == pytest.approx([0.146484375] * 512)


def test_neither_the_model_nor_the_random_state_changes():
    model = build_model("Mlp", 10, 1, 8)
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    first = build_constraints(model, "k_sparse_constraints")
    assert torch.equal(torch.get_rng_state(), state)
    for name, values in model.state_dict().items():
        assert torch.equal(values, before[name])
    torch.manual_seed(123)
    again = build_constraints(model, "k_sparse_constraints")
    assert [r.radius for r in again] == [r.radius for r in first]


def test_k_is_at_least_k_sparseness_and_at_most_n():
    model = nn.ParameterList([torch.randn(n) for n in (4, 50, 1000)])
    regions = build_constraints(model, "k_sparse_constraints", k_sparseness=10, k_frac=0.25)
    assert [r.k for r in regions] == [4, 12, 250]


@pytest.mark.parametrize(
    ("kind", "mode", "attribute", "of"),
    [
        ("k_sparse_constraints", "radius", "radius", KSparsePolytope),
        ("k_sparse_constraints", "diameter", "diameter", KSparsePolytope),
        ("l2_constraints", "radius", "radius", LpBall),
        ("l2_constraints", "diameter", "diameter", LpBall),
    ],
)
def test_tau_sets_radius_or_diameter(kind, mode, attribute, of):
    for region in build_constraints(nn.Linear(30, 2), kind, tau=4.0, mode=mode):
        assert isinstance(region, of)
        assert getattr(region, attribute) == pytest.approx(4.0)


@pytest.mark.parametrize("mode", ["initialization", None])
def test_unconstrained_ignores_the_mode(mode):
    regions = build_constraints(nn.Linear(3, 2), "unconstraints", mode=mode)
    assert [type(r) for r in regions] == [Unconstrained] * 2


def test_frozen_parameters_have_a_region_and_are_not_moved_into_it():
    model = nn.Linear(4, 4)
    model.weight.requires_grad_(False).fill_(100.0)
    regions = build_constraints(model, "l2_constraints", tau=1e-3)
    make_feasible(model, regions)
    assert [region.n for region in regions] == [16, 4]
    assert (model.weight == 100).all() and model.bias.norm() <= 1.001 * regions[1].radius


def test_shared_parameters_get_one_region():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    assert len(build_constraints(model, "l2_constraints")) == len(list(model.parameters())) == 3


def test_a_region_of_ones_own_is_built_without_an_entry_in_the_table():
    (region,) = build_constraints(
        nn.Linear(30, 20, bias=False), KSparsePolytope, tau=3, mode="radius"
    )
    assert region.describe() == {"kind": "KSparsePolytope", "n": 600, "radius": 3.0, "k": 30}


def test_gauges_go_by_the_names_of_the_parameters_and_need_a_gauge_of_each_region():
    model = nn.Linear(3, 2)
    regions = [LpBall(6, 2, radius=2.0), KSparsePolytope(2, 1, radius=1.0)]
    nn.init.zeros_(model.weight)
    nn.init.constant_(model.bias, 0.25)
    assert gauges(model, regions) == {"weight": 0.0, "bias": 0.5}
    assert gauges(model, [regions[0], Unconstrained(2)]) == {}


def test_unknown_kind_and_mode_and_missing_size_are_named():
    with pytest.raises(ValueError, match="nothing"):
        build_constraints(nn.Linear(2, 2), "nothing")
    with pytest.raises(ValueError, match="nothing"):
        build_constraints(nn.Linear(2, 2), "l2_constraints", mode="nothing")
    with pytest.raises(ValueError, match="either radius or diameter"):
        build_constraints(nn.Linear(2, 2), "l2_constraints", mode=None)


def test_values_that_are_not_finite_are_not_shifted_but_named():
    model = nn.Linear(4, 4)
    constraints = build_constraints(model, "l2_constraints")
    with torch.no_grad():
        model.weight[0, 0] = math.nan
    with pytest.raises(ValueError, match="the parameter 'weight' has NaN or infinite values"):
        make_feasible(model, constraints)
