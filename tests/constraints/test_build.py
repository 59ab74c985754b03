"""Which region each parameter gets."""

import copy
import functools
import json
import math
import threading
import types

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


def radii(model):
    """Of L2 balls for tau 1: the norms that the parameters count with, by name."""
    regions = build_constraints(model, "l2_constraints", tau=1.0)
    names = [name for name, _ in model.named_parameters()]
    return {name: region.radius for name, region in zip(names, regions, strict=True)}


def test_a_layer_without_initialiser_stands_for_its_own_draws():
    model = nn.ParameterList([torch.tensor([3.0, -4.0]), torch.full((4,), 1e-6), torch.zeros(3)])
    assert list(radii(model).values()) == [5.0, 1.0, 1.0]  # constants count as norm 1


def test_attention_counts_with_what_its_own_initialiser_draws():
    """_reset_parameters draws in_proj_weight uniformly within sqrt(6 / (fan in + fan out))."""
    model = nn.MultiheadAttention(16, 2, add_bias_kv=True)
    nn.init.zeros_(model.in_proj_weight)
    norms = radii(model)
    assert norms["in_proj_weight"] == pytest.approx((16 * 48 * 6 / 64 / 3) ** 0.5, rel=0.02)
    assert norms["bias_k"] == pytest.approx((16 * 2 / (16 + 1)) ** 0.5, rel=0.4)
    assert norms["in_proj_bias"] == 1.0


def test_an_embedding_counts_with_its_normal_draws():
    assert radii(nn.Embedding(50, 20))["weight"] == pytest.approx(1000**0.5, rel=0.02)


def test_each_norm_layer_counts_as_norm_one():
    model = nn.ModuleList([nn.LayerNorm(6), nn.GroupNorm(2, 6), nn.BatchNorm1d(6), nn.PReLU()])
    assert set(radii(model).values()) == {1.0}


class Initialised(nn.Module):
    """Its initialiser draws one parameter and leaves another; or it wants an argument."""

    def __init__(self):
        super().__init__()
        self.drawn, self.left = nn.Parameter(torch.zeros(500)), nn.Parameter(torch.ones(2))
        nn.init.constant_(self.left[1:], 0.0)

    def reset_parameters(self):
        nn.init.normal_(self.drawn)


class Deferred(Initialised):
    def reset_parameters(self, deviation):
        nn.init.normal_(self.drawn, deviation)


def test_a_parameter_that_the_initialiser_leaves_counts_with_the_norm_it_has():
    norms = radii(Initialised())
    assert norms["drawn"] == pytest.approx(500**0.5, rel=0.02)
    assert norms["left"] == 1.0 and radii(Deferred())["drawn"] == 1.0


def test_an_initialiser_that_is_an_attribute_draws_the_copy():
    layer = Deferred()
    layer.reset_parameters = functools.partial(Initialised.reset_parameters, layer)
    assert radii(layer)["drawn"] == pytest.approx(500**0.5, rel=0.02)
    layer.reset_parameters = types.MethodType(Initialised.reset_parameters, layer)
    assert radii(layer)["drawn"] == pytest.approx(500**0.5, rel=0.02)
    assert layer.drawn.count_nonzero() == 0


def test_a_parameter_that_is_neither_drawn_nor_known_is_refused():
    layer = Initialised().to("meta")
    with pytest.raises(ValueError, match="'left'"):
        radii(layer)


class Normalised(nn.Module):
    """Its initialiser computes a small parameter from a large one."""

    def __init__(self):
        super().__init__()
        self.v, self.g = nn.Parameter(torch.empty(50, 100)), nn.Parameter(torch.empty(50))
        self.reset_parameters()

    def reset_parameters(self):
        nn.init.normal_(self.v)
        with torch.no_grad():
            self.g.copy_(self.v.norm(dim=1))


def test_an_initialiser_may_compute_one_parameter_from_another():
    norms = radii(Normalised())
    assert norms["v"] == pytest.approx(5000**0.5, rel=0.01)
    assert norms["g"] == pytest.approx(5000**0.5, rel=0.01)


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated")
def test_a_layer_whose_weight_a_hook_computes_counts_with_the_norms_it_has():
    layer = torch.nn.utils.weight_norm(nn.Linear(30, 20))
    before = layer.weight.clone()
    norms = radii(layer)
    assert torch.equal(layer.weight, before)
    for name in ("weight_g", "weight_v"):
        assert norms[name] == pytest.approx(getattr(layer, name).norm().item())


class Locked(nn.Linear):
    """It cannot be copied."""

    def __init__(self, *sizes):
        super().__init__(*sizes)
        self.lock = threading.Lock()


class Refusing(nn.Linear):
    def reset_parameters(self):
        if hasattr(self, "built"):
            raise KeyError("drawn once")
        super().reset_parameters()
        self.built = True


@pytest.mark.parametrize("kind", [Locked, Refusing])
def test_what_cannot_be_copied_or_drawn_counts_with_the_norm_it_has(kind):
    layer = kind(30, 20)
    assert radii(layer)["weight"] == pytest.approx(layer.weight.norm().item())


@pytest.mark.parametrize("dtype", [torch.int64, torch.complex64])
def test_parameters_that_are_no_real_numbers_count_with_the_norm_they_have(dtype):
    """They are frozen: a table of codes beside a layer, say."""
    layer = nn.Linear(30, 20)
    layer.codes = nn.Parameter(torch.tensor([3, -4], dtype=dtype), requires_grad=False)
    assert radii(layer)["codes"] == 5.0
    assert radii(layer)["weight"] == radii(nn.Linear(30, 20))["weight"]
    assert gauges(layer, build_constraints(layer, "l2_constraints", tau=1.0))["codes"] == 1.0


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_parameter_whose_norm_is_no_number_is_named_with_the_way_out(value):
    model = nn.ModuleDict({"scale": nn.ParameterList([torch.tensor([1.0, value])])})
    with pytest.raises(ValueError, match=r"'scale\.0' has NaN or infinite .* mode 'radius'"):
        radii(model)
    assert len(build_constraints(model, "l2_constraints", mode="radius")) == 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_the_regions_do_not_depend_on_the_models_type(dtype):
    def network():
        return nn.Sequential(nn.Linear(30, 20), nn.MultiheadAttention(8, 2))

    assert radii(network().to(dtype)) == radii(network())


class Signs(nn.Module):
    """Random signs of given magnitudes: the norm of every draw is known."""

    def __init__(self, drawn):
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(0.5, 1.5, 4_000_000))
        if drawn:
            self.reset_parameters = self.draw

    def draw(self):
        self.weight.mul_(torch.randint(0, 2, (1000, 1)).mul(2).sub(1).expand(-1, 4000).flatten())


@pytest.mark.parametrize("drawn", [False, True])
def test_a_norm_of_millions_of_entries_is_right(drawn):
    """Float32 sums lose its fourth digit."""
    layer = Signs(drawn)
    expected = layer.weight.detach().double().norm().item()
    assert radii(layer)["weight"] == pytest.approx(expected, rel=2e-6)


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
