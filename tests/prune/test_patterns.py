"""Patterns N:M: which weights stay, and the proof of it in a file."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from utils.checkpoints.formats import encode_npz, encode_state_dict, write_pruned
from utils.checkpoints.onnx_file import InputImages, encode_onnx
from utils.prune.weights.patterns import (
    DENSE,
    PatternRanking,
    fits,
    has_pattern,
    is_pattern,
    pruned_to,
)
from utils.prune.weights.saved import check_pattern, read_weights

IMAGES = InputImages(3, 6, mean=(0.1, 0.2, 0.3), std=(0.2, 0.3, 0.4))


def one_group_at_a_time(weight, n, m):
    """The rule of TensorRT's documentation, as loops over a weight (outputs, inputs, r, s)."""
    pruned = weight.clone()
    outputs, inputs, rows, columns = weight.shape
    for k in range(outputs):
        for r in range(rows):
            for s in range(columns):
                for first in range(0, inputs, m):
                    group = pruned[k, first : first + m, r, s]  # a view
                    order = sorted(range(m), key=lambda i, group=group: (abs(group[i].item()), i))
                    group[order[: m - n]] = 0
    return pruned


@given(
    seed=st.integers(0, 99),
    pattern=st.sampled_from([(2, 4), (1, 4), (4, 8), (1, 2)]),
    ties=st.booleans(),
    channels_last=st.booleans(),
)
def test_of_each_m_inputs_at_a_position_the_n_largest_stay(seed, pattern, ties, channels_last):
    weight = torch.randn(2, 8, 3, 2, generator=torch.Generator().manual_seed(seed))
    weight = (weight * 2).round() if ties else weight
    kind = torch.channels_last if channels_last else torch.contiguous_format
    pruned = pruned_to(weight.to(memory_format=kind), "{}:{}".format(*pattern))
    assert torch.equal(pruned, one_group_at_a_time(weight, *pattern))


def test_of_a_linear_layer_of_equal_weights_the_later_inputs_stay():
    assert pruned_to(torch.ones(1, 8), "1:4").tolist() == [[0, 0, 0, 1, 0, 0, 0, 1]]


class Scaled(nn.Linear):
    """Computes with other weights than its own, in which zeros may be none."""

    def forward(self, x):
        return nn.functional.linear(x, self.weight - self.weight.mean())


class Layers(nn.Module):
    """Weights that 2:4 prunes, and those that it leaves: 3 inputs, 1 a group, no such layer."""

    def __init__(self):
        super().__init__()
        self.first, self.fits = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, groups=2)
        self.depthwise, self.up = nn.Conv2d(8, 8, 1, groups=8), nn.ConvTranspose2d(8, 8, 1)
        self.computed = nn.utils.parametrizations.weight_norm(nn.Linear(32, 8))
        self.block, self.out = (
            nn.TransformerEncoderLayer(8, 2, 12, 0.0, batch_first=True),
            nn.Linear(8, 5),
        )
        self.words, self.scaled = nn.Embedding(4, 8), Scaled(8, 8)

    def forward(self, x):
        x = self.up(self.depthwise(self.fits(self.first(x)))).flatten(1)
        return self.out(self.block(self.computed(x)[:, None])[:, 0])


def test_the_weights_of_other_layers_stay_dense_and_are_named():
    model = Layers()
    before = {name: p.clone() for name, p in model.named_parameters()}
    ranking = PatternRanking(model)
    removed = ranking.prune("2:4")
    pruned = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    fitting = [
        "self_attn.in_proj_weight",
        "self_attn.out_proj.weight",
        "linear1.weight",
        "linear2.weight",
    ]
    assert pruned == {"fits.weight", "out.weight", *(f"block.{name}" for name in fitting)}
    assert removed == sum(before[name].numel() for name in pruned) // 2
    weights = {name for name, p in model.named_parameters() if p.dim() > 1}
    assert set(ranking.left_dense("2:4")) == weights - pruned
    assert set(ranking.left_dense("4:8")) == weights - pruned | {
        "fits.weight",
        "block.linear2.weight",
    }


def test_the_next_pattern_begins_from_the_dense_weights():
    model, once = Layers(), Layers()
    once.load_state_dict(model.state_dict())
    before, ranking = once.out.weight.clone(), PatternRanking(model)
    ranking.prune("1:4")
    ranking.prune("2:4")
    PatternRanking(once).prune("2:4")
    assert torch.equal(model.out.weight, once.out.weight)
    assert ranking.prune(DENSE) == 0
    assert torch.equal(model.out.weight, before)


@pytest.mark.parametrize("text", ["4:2", "4:4", "0:4", "02:4", "2:4:8", "2", "-2:4", "2: 4"])
def test_only_n_of_more_than_n_is_a_pattern(text):
    assert not is_pattern(text) and is_pattern("2:4") and is_pattern("16:32")


def test_a_weight_without_the_pattern_is_told_apart():
    weight = torch.ones(4, 8)
    assert not has_pattern(weight, "2:4")
    assert has_pattern(pruned_to(weight, "1:4"), "2:4")
    assert not has_pattern(torch.zeros(4, 6), "2:4") and not fits(torch.zeros(4, 6), "2:4")


FORMS = {".npz": encode_npz, ".pt": encode_state_dict, ".onnx": encode_onnx}


@pytest.fixture
def pruned():
    """A convolution behind which BatchNorm is folded in, and linear layers that ONNX transposes."""
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 12, 3), nn.BatchNorm2d(12), nn.Flatten(2)
    model = nn.Sequential(*layers, nn.Linear(4, 8), nn.Flatten(), nn.Linear(96, 5)).eval()
    PatternRanking(model).prune("2:4")
    return model


@pytest.mark.parametrize("suffix", FORMS)
def test_a_file_is_proven_to_have_the_pattern(suffix, pruned, tmp_path):
    if suffix == ".onnx":
        pytest.importorskip("onnxscript")
    path = tmp_path / f"a{suffix}"
    path.write_bytes(FORMS[suffix](pruned, IMAGES, {}))
    check_pattern(path, pruned, "2:4")
    weights = read_weights(path)
    shapes = sorted(tuple(w.shape) for w in weights.values() if has_pattern(w, "2:4"))
    assert shapes == [(5, 96), (8, 4), (12, 8, 3, 3)] and len(weights) == 4
    with torch.no_grad():
        pruned[4].weight.fill_(1)
    path.write_bytes(FORMS[suffix](pruned, IMAGES, {}))
    with pytest.raises(ValueError, match="no 2:4 in a weight of shape 8x4"):
        check_pattern(path, pruned, "2:4")


def test_a_file_that_does_not_pass_its_check_is_not_kept(pruned, tmp_path):
    def check(path):
        assert path.is_file()
        raise ValueError("no pattern")

    with pytest.raises(ValueError, match="no pattern"):
        write_pruned(tmp_path / "a.onnx", "onnx", pruned, IMAGES, {}, check)
    assert not list(tmp_path.iterdir())
