"""Slicing: channels that stay, since nothing shows that they can be cut out."""

import re

import pytest
import torch
from networks import (
    Detached,
    FixedSizes,
    FixedStream,
    OneUnit,
    PaddedShortcut,
    Recurrent,
    Reordered,
)
from torch import nn

from utils.compute.measure import channels_by_layer
from utils.process.errors import UserError
from utils.prune.channels.slicing import ChannelRanking

pytest.importorskip("torch_pruning")


def test_channels_whose_number_the_code_fixes_stay(capsys):
    torch.manual_seed(0)
    ranking = ChannelRanking(FixedSizes(), torch.randn(2, 3, 8, 8))
    sliced, _ = ranking.slice(0.99)
    assert channels_by_layer(sliced) == {"a": 6, "b": 1, "out": 5}
    note = "note: all channels stay of a, b: the network does not run with fewer of them (RuntimeEr"
    assert capsys.readouterr().err.startswith(note)


def test_a_network_without_hidden_channels_is_refused():
    why = "no channels can be cut out: all stay of its last layer: they are the network's outputs; "
    with pytest.raises(UserError, match=f"--granularity channels: {why}"):
        ChannelRanking(nn.Sequential(nn.Flatten(), nn.Linear(12, 2)), torch.zeros(2, 3, 2, 2))


def test_a_network_without_channels_to_cut_is_refused_with_the_first_layers_and_the_cause():
    why = r"no channels can be cut out: all stay of blocks\.\d, [^:]+ and 4 more: the network does "
    with pytest.raises(UserError, match=why):
        ChannelRanking(FixedStream(), torch.randn(2, 3, 8, 8))


@pytest.mark.parametrize(
    ("build", "fixed", "free", "cause"),
    [
        (PaddedShortcut, "a", "c", "their weights are not found (IndexError: index 8"),
        (Recurrent, "lstm", "hidden", "their weights are not found (AttributeError: 'LSTM'"),
        (OneUnit, "a", "hidden", "they all go together"),
        (Detached, "a", "hidden", "no gradient leads to them"),
    ],
)
def test_channels_that_cannot_be_followed_stay(build, fixed, free, cause, capsys):
    torch.manual_seed(0)
    ranking = ChannelRanking(build().eval(), torch.randn(2, 3, 8, 8))
    sliced, _ = ranking.slice(0.99)
    shapes = [[p.shape for p in getattr(m, fixed).parameters()] for m in (ranking.model, sliced)]
    assert shapes[0] == shapes[1]
    assert re.search(
        rf"^note: all channels stay of [^:]*\b{fixed}\b", err := capsys.readouterr().err
    )
    assert f": {cause}" in err
    assert channels_by_layer(sliced)[free] == 1


@pytest.mark.parametrize("kind", Reordered.KINDS)
def test_channels_stay_where_others_depend_on_them_than_torch_pruning_finds(kind, capsys):
    torch.manual_seed(0)
    ranking = ChannelRanking(Reordered(kind).eval(), torch.randn(2, 3, 8, 8))
    sliced, _ = ranking.slice(0.99)
    assert sliced.a.weight.shape == ranking.model.a.weight.shape
    assert channels_by_layer(sliced)["hidden"] == 1
    note = (
        r"note: all channels stay of (a, b|a, b, second): other channels depend on them than .*\n"
    )
    assert re.fullmatch(note, capsys.readouterr().err)
