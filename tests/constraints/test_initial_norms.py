"""The norm that each parameter counts with: that of a draw of its initialiser, or its own."""

import functools
import math
import threading
import types

import pytest
import torch
from torch import nn

from constraints import build_constraints, gauges


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


def test_an_initialiser_that_draws_an_infinite_constant_is_told_unless_it_is_frozen():
    class Infinite(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.full((4,), math.inf))

        def reset_parameters(self):
            nn.init.constant_(self.weight, math.inf)

    with pytest.raises(ValueError, match="'weight' has NaN or infinite"):
        radii(Infinite())
    assert radii(Infinite().requires_grad_(False)) == {"weight": 1.0}


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
