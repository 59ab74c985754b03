"""Slicing: which channels go together, how many go, and what is left."""

import copy
import re
from itertools import pairwise

import pytest
import torch
from networks import (
    Attention,
    Branches,
    Gated,
    Joined,
    Normalised,
    Pyramid,
    Remembering,
    Residual,
    SharedTensor,
)
from torch import nn

from models import build_model
from utils.compute.device import placed
from utils.compute.measure import channels_by_layer, multiply_adds
from utils.process.errors import UserError, reason
from utils.prune.channels.graph import coupled_groups, cut_out
from utils.prune.channels.scores import SCORES, by_channel, squared_norms
from utils.prune.channels.slicing import ChannelRanking

pytest.importorskip("torch_pruning")


NETWORKS = {
    "residual": Residual,
    "Mlp": lambda: build_model("Mlp", 5, 3, 8),
    "branches": Branches,
    "attention": Attention,
    "GroupNorm": Normalised,
    "PReLU": lambda: nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.PReLU(8), nn.Flatten(), nn.Linear(288, 9), nn.ReLU(), nn.Linear(9, 5)
    ),
    "one PReLU": lambda: nn.Sequential(
        nn.Flatten(), nn.Linear(192, 9), nn.PReLU(), nn.Linear(9, 7), nn.PReLU(), nn.Linear(7, 5)
    ),
    "joined": Joined,
    "gated": Gated,
    "pyramid": Pyramid,
}
# No norm over several channels.
LINEAR_IN_CHANNELS = ("residual", "Mlp", "branches", "PReLU", "one PReLU", "joined", "pyramid")


def network(name):
    """The network in evaluation mode, all its tensors random, and a batch of two images."""
    torch.manual_seed(0)
    model = NETWORKS[name]().eval()
    with torch.no_grad():
        for values in (*model.parameters(), *model.buffers()):
            if values.is_floating_point():
                values.add_(0.1 * torch.rand_like(values))
    return model, torch.randn(2, 3, 8, 8)


def small(name, **settings):
    model, images = network(name)
    return ChannelRanking(model, images, **settings), images


@pytest.mark.parametrize("name", LINEAR_IN_CHANNELS)
def test_a_sliced_network_computes_what_the_dense_one_does_with_these_channels_at_zero(name):
    model, images = network(name)
    for group in coupled_groups(model, images)[0]:
        units = group[:: max(2, len(group) // 3)]
        with torch.no_grad():
            sliced = cut_out(model, units)(images)
            silenced, _ = network(name)
            for unit in units:
                for dimension, channels in unit.items():
                    for tensor in by_channel(silenced, dimension):
                        tensor[channels] = 0
            assert not torch.allclose(sliced, model(images))
            torch.testing.assert_close(sliced, silenced(images), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("name", ["residual", "Mlp", "PReLU", "joined"])
def test_channels_that_are_all_zero_go_first_and_leave_the_outputs_as_they_are(name, score):
    model, images = network(name)
    count, groups = 0, coupled_groups(model, images)[0]
    with torch.no_grad():
        for group in groups:
            for unit in group[1::2]:
                count += 1
                for dimension, channels in unit.items():
                    for tensor in by_channel(model, dimension):
                        tensor[channels] = 0
    sliced = ChannelRanking(model, images, score=score).cut(count)
    assert sum(channels_by_layer(sliced).values()) < sum(channels_by_layer(model).values())
    with torch.no_grad():
        torch.testing.assert_close(sliced(images), model(images), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", NETWORKS)
def test_ratios_are_reached_with_as_few_channels_as_possible(name):
    ranking, images = small(name)
    for ratio in (0.3, 0.7):
        sliced, removed = ranking.slice(ratio)
        left = multiply_adds(sliced, images)[""]
        assert 1 - left / ranking.dense_multiply_adds == removed
        fewer = max(n for n, fraction in ranking.fractions.items() if fraction < removed)
        assert ranking.fraction(fewer) < ratio <= removed == ranking.fraction(fewer + 1)
        assert sliced(images).shape == (2, 5)


def test_a_ratio_takes_few_counts_of_multiply_adds():
    ranking, _ = small("pyramid")
    known = len(ranking.fractions)
    ranking.slice(0.5)
    assert len(ranking.fractions) - known <= 4 < len(ranking.order).bit_length()


@pytest.mark.parametrize("name", NETWORKS)
def test_no_layer_is_emptied_and_all_outputs_stay(name):
    ranking, images = small(name)
    sliced, removed = ranking.slice(0.9999)
    assert removed == ranking.fraction(len(ranking.order)) < 0.9999
    assert min(channels_by_layer(sliced).values()) >= 1
    assert sliced(images).shape == (2, 5) and sliced(images).isfinite().all()


@pytest.mark.parametrize("name", NETWORKS)
def test_the_dense_network_stays_as_it_is(name):
    model, images = network(name)
    before, outputs = {n: v.clone() for n, v in model.state_dict().items()}, model(images)
    ChannelRanking(model, images).slice(0.5)
    assert all(torch.equal(v, before[n]) for n, v in model.state_dict().items())
    assert torch.equal(model(images), outputs)


def test_what_a_network_keeps_at_a_higher_ratio_it_keeps_at_a_lower_one():
    ranking, _ = small("branches")
    kept = []
    for ratio in (0.2, 0.5, 0.8):
        sliced, _ = ranking.slice(ratio)
        kept.append({bias.item() for bias in sliced.hidden.bias})
    assert all(more >= fewer for more, fewer in pairwise(kept))


def test_uniform_allocation_takes_the_same_fraction_of_every_group():
    ranking, _ = small("residual", allocation="uniform")
    sliced = channels_by_layer(ranking.slice(0.5)[0])
    dense = channels_by_layer(ranking.model)
    left = {sliced[n] / dense[n] for n in dense if n != "7"}
    assert max(left) - min(left) <= 1 / 4  # the narrowest layers have four channels


@pytest.mark.parametrize(("name", "round_to"), [("residual", 3), ("residual", 4), ("joined", 4)])
def test_layers_keep_a_multiple_of_channels_or_all(name, round_to):
    ranking, images = small(name, round_to=round_to)
    dense = channels_by_layer(ranking.model)
    for ratio in (0.3, 0.6, 0.99):
        sliced, removed = ranking.slice(ratio)
        for layer, channels in channels_by_layer(sliced).items():
            assert channels % round_to == 0 or channels == dense[layer], layer
        assert removed >= ratio or removed == ranking.fraction(len(ranking.order))
        assert sliced(images).shape == (2, 5)


def test_all_heads_lose_the_same_dimensions():
    ranking, _ = small("attention", round_to=8)
    attention = ranking.slice(0.5)[0].block.self_attn
    assert (attention.embed_dim, attention.num_heads, attention.head_dim) == (8, 4, 2)
    dense = ranking.model.block.self_attn.in_proj_bias.view(3, 4, 4)
    kept = torch.isin(dense, attention.in_proj_bias)
    assert kept.sum() == 24 and (kept == kept[0, 0]).all()


def test_all_groups_of_a_norm_over_a_concatenation_lose_the_same_channels():
    ranking, _ = small("GroupNorm")
    sliced, _ = ranking.slice(0.5)
    kept = torch.isin(ranking.model.norm.weight, sliced.norm.weight).view(4, 4)
    assert kept.sum() == sliced.norm.num_channels == 8 and (kept == kept[0]).all()
    assert sliced.a.out_channels == sliced.b.out_channels == 4


def test_layer_norm_keeps_the_order_of_its_channels():
    """torch-pruning takes what is left in the order of a Python set."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 999), nn.LayerNorm(999), nn.Linear(999, 2))
    with torch.no_grad():
        model[2].weight.copy_(torch.arange(999))
    (group,), _ = coupled_groups(model, torch.zeros(2, 12))
    sliced = cut_out(model, [unit for i, unit in enumerate(group) if i % 333])
    assert sliced[2].weight.tolist() == [0, 333, 666]


@pytest.mark.parametrize("start", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize(("width", "few_channels"), [(32, False), (16, True)])
def test_the_memory_format_is_that_of_the_loaded_network(width, few_channels, start):
    model = Residual(width).eval()
    ranking = ChannelRanking(model.to(memory_format=start), torch.randn(2, 3, 8, 8), "uniform")
    sliced, _ = ranking.slice(0.3)
    assert (sliced[3].shortcut[0].in_channels < 16) is few_channels
    loaded = copy.deepcopy(sliced).to(memory_format=torch.contiguous_format)
    if start is torch.channels_last:
        loaded = placed(loaded, torch.device("cpu"))
    for one, other in zip(sliced.parameters(), loaded.parameters(), strict=True):
        assert one.stride() == other.stride()


def test_frozen_layers_are_sliced_like_others_and_stay_frozen():
    model, images = network("residual")
    free, _ = ChannelRanking(model, images).slice(0.5)
    model.requires_grad_(False)[7].requires_grad_(True)
    frozen, _ = ChannelRanking(model, images).slice(0.5)
    assert channels_by_layer(frozen) == channels_by_layer(free)
    trained = {name for name, p in frozen.named_parameters() if p.requires_grad}
    assert trained == {"7.weight", "7.bias"}


def test_a_network_that_keeps_what_it_has_computed_is_sliced():
    torch.manual_seed(0)
    ranking = ChannelRanking(Remembering(), torch.randn(2, 3, 8, 8))
    sliced, removed = ranking.slice(0.5)
    assert removed >= 0.5 and sliced(torch.randn(2, 3, 8, 8)).shape == (2, 5)


def test_tracing_ends_where_it_finds_more_than_a_network_has(monkeypatch):
    monkeypatch.setattr("utils.prune.channels.graph.MAX_LINKS", 20)
    with pytest.raises(UserError, match=r"more than 20 pairs of coupled channels.*; prune this"):
        small("Mlp")


def test_an_error_without_a_message_is_named_by_its_place():
    try:
        raise MemoryError
    except MemoryError as error:
        assert re.fullmatch(r"MemoryError: test_slicing\.py, line \d+", reason(error))


@pytest.mark.parametrize(("name", "rel"), [("GroupNorm", 1e-6), ("Mlp", 1e-6), ("attention", 0.2)])
def test_the_squares_of_a_unit_are_what_the_network_loses_with_it(name, rel):
    """But for entries between two channels of one layer, which count for both."""
    model, images = network(name)

    def squares(module):
        return sum(p.double().square().sum().item() for p in module.parameters())

    for group in coupled_groups(model, images)[0]:
        found = squared_norms(model, group).sum(0)
        for unit, expected in list(zip(group, found.tolist(), strict=True))[:5]:
            assert squares(model) - squares(cut_out(model, [unit])) == pytest.approx(
                expected, rel=rel
            )


def test_a_tensor_that_two_layers_share_is_cut_rightly_or_kept_with_a_true_reason(capsys):
    model = SharedTensor().eval()
    images = torch.randn(4, 1, 8, 8)
    ranking = ChannelRanking(model, images)
    sliced, removed = ranking.slice(0.4)
    assert removed >= 0.4 and "zip" not in capsys.readouterr().err
    with torch.no_grad():
        kept = sliced(images)
    assert kept.shape == (4, 5) and sliced.a.weight.equal(sliced.b.weight)
