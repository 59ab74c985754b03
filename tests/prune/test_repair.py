"""Outputs of a pruned network's layers, brought back to the dense network's mean and deviation."""

import copy

import pytest
import torch
from torch import nn

from models import build_model
from utils.datasets import load_dataset
from utils.process.errors import UserError
from utils.prune import global_prune
from utils.prune.config import PruneConfig
from utils.prune.corrections.correction import build_correction
from utils.prune.corrections.repair import layers_with_weights, measure_signals, repair
from utils.prune.weights.ranking import MagnitudeRanking
from utils.settings.config import Config


def network(convolutional):
    torch.manual_seed(0)
    if convolutional:
        layers = nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 4)
    else:
        layers = nn.Flatten(), nn.Linear(192, 30), nn.ReLU(), nn.Linear(30, 4, bias=False)
    return nn.Sequential(*layers)


def some_batches():
    torch.manual_seed(1)
    return [1 + torch.randn(size, 3, 8, 8) for size in (40, 40, 7)]


@pytest.mark.parametrize("convolutional", [True, False])
def test_signals_are_the_mean_and_deviation_of_each_channel(convolutional):
    model, batches = network(convolutional), some_batches()
    signals = measure_signals(model, batches, list(layers_with_weights(model)))
    first, outputs = next(iter(signals)), torch.cat(batches)
    for module in model[: int(first) + 1]:
        outputs = module(outputs)
    values = outputs.transpose(0, 1).flatten(1).double()
    torch.testing.assert_close(signals[first][0], values.mean(1))
    torch.testing.assert_close(signals[first][1], values.std(1, correction=0))


class Standardised(nn.Linear):
    """Computes with other weights than its own, which a factor does not change."""

    def forward(self, x):
        return nn.functional.linear(x, self.weight / self.weight.std(), self.bias)


@pytest.mark.parametrize("bias", [True, False])
def test_layers_whose_weight_is_computed_or_shared_are_left_alone(bias):
    first, second, last = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 6, bias=bias)
    second.weight = first.weight
    computed = nn.utils.parametrizations.spectral_norm(nn.Linear(6, 6))
    model = nn.Sequential(first, second, computed, Standardised(6, 6), last)
    assert list(layers_with_weights(model)) == ["4"]


def test_a_network_in_which_nothing_can_be_scaled_is_refused(tmp_path):
    config, data = Config(data="digits", arch="Mlp"), load_dataset("digits", tmp_path)
    with pytest.raises(UserError, match=r"--repair: Mlp has no linear layer or convolution with"):
        build_correction(PruneConfig(repair=10), Standardised(64, 10), data, config)


def test_a_channel_that_is_never_finite_stays_and_costs_the_others_nothing():
    model, batches = network(False), some_batches()
    name = next(iter(layers_with_weights(model)))
    layer = model.get_submodule(name)
    with torch.no_grad():
        layer.bias[0] = -torch.inf  # before a ReLU
        dense = measure_signals(model, batches, [name])
        layer.weight.mul_(0.5)
    repair(model, dense, batches)
    mean, deviation = measure_signals(model, batches, [name])[name]
    assert layer.bias[0] == -torch.inf and mean[0].isnan()
    torch.testing.assert_close(deviation[1:], dense[name][1][1:], rtol=1e-4, atol=1e-5)


def test_an_image_whose_outputs_are_not_finite_does_not_count():
    model, (images, *_) = network(False), some_batches()
    names, last = list(layers_with_weights(model)), images.clone()
    last[0] = torch.nan
    one, other = (measure_signals(model, [x], names) for x in (images[1:], last))
    for name in names:
        torch.testing.assert_close(one[name], other[name])


@pytest.mark.parametrize("convolutional", [True, False])
def test_repaired_layers_put_out_what_the_dense_ones_do(convolutional):
    model, batches = network(convolutional), some_batches()
    names = list(layers_with_weights(model))
    dense = measure_signals(model, batches, names)
    MagnitudeRanking(model, scope="weights").prune(0.7)
    zeros = [p == 0 for p in model.parameters()]
    repair(model, dense, batches)
    assert all(torch.equal(p == 0, z) for p, z in zip(model.parameters(), zeros, strict=True))
    for name, (mean, deviation) in measure_signals(model, batches, names).items():
        torch.testing.assert_close(deviation, dense[name][1], rtol=1e-4, atol=1e-5)
        if layers_with_weights(model)[name].bias is not None:
            torch.testing.assert_close(mean, dense[name][0], rtol=1e-4, atol=1e-5)


def test_entries_that_pruning_removed_stay_0_and_emptied_channels_stay_finite():
    model, batches = network(True), some_batches()
    dense = measure_signals(model, batches, list(layers_with_weights(model)))
    with torch.no_grad():
        model[0].weight[0] = 0
        model[0].weight[1] *= 1e-9  # puts out its bias and rounding errors
        model[0].bias[2] = 0
    weak = model[0].weight[1].clone()
    repair(model, dense, batches)
    assert (model[0].weight[0] == 0).all() and model[0].bias[2] == 0
    assert torch.equal(model[0].weight[1], weak)
    assert all(p.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize(("factor", "scaled"), [(1e-2, True), (1e-5, False)])
def test_a_channel_that_hardly_varies_any_more_is_not_scaled(factor, scaled):
    """Its variation is then in part rounding errors, which scaling would bring to full size."""
    model, batches = network(True), some_batches()
    names = list(layers_with_weights(model))
    dense = measure_signals(model, batches, names)
    with torch.no_grad():
        model[0].weight[1] *= factor
    pruned = measure_signals(model, batches, names)
    repair(model, dense, batches)
    repaired = measure_signals(model, batches, names)
    deviations = dense if scaled else pruned
    torch.testing.assert_close(repaired["0"][1][1], deviations["0"][1][1], rtol=1e-3, atol=0)


def test_a_channel_that_is_constant_in_the_dense_network_keeps_its_weights():
    model, batches = network(False), some_batches()
    names = list(layers_with_weights(model))
    weight = model[1].weight.detach().clone()
    with torch.no_grad():
        model[1].weight[0] = 0
    dense = measure_signals(model, batches, names)
    with torch.no_grad():
        model[1].weight.copy_(weight)
    repair(model, dense, batches)
    assert (model[1].weight[0] != 0).all()


def test_an_unpruned_network_stays_as_it_is():
    model, batches = network(False), some_batches()
    before = copy.deepcopy(model.state_dict())
    repair(model, measure_signals(model, batches, list(layers_with_weights(model))), batches)
    for name, values in model.state_dict().items():
        torch.testing.assert_close(values, before[name])


@pytest.mark.cuda
def test_repair_on_a_gpu_gives_the_weights_that_a_cpu_does():
    inputs = [torch.randn(64, 1, 8, 8, generator=torch.Generator().manual_seed(0))]
    weights = []
    for device in ("cpu", "cuda"):
        torch.manual_seed(0)
        model = build_model("Mlp", 10, 1, 8).to(device)
        batches = [x.to(device) for x in inputs]
        dense = measure_signals(model, batches, list(layers_with_weights(model)))
        global_prune(model, 0.8)
        repair(model, dense, batches)
        weights.append([p.detach().cpu() for p in model.parameters()])
    for on_cpu, on_gpu in zip(*weights, strict=True):
        torch.testing.assert_close(on_gpu, on_cpu, rtol=1e-3, atol=1e-3)


class Tokens(nn.Module):
    """A linear layer over tokens, whose channels come last, and attention, which calls no layer."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(24, 8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(8, 4)

    def forward(self, images):
        x = self.embed(images.flatten(2))
        return self.head(self.attention(x, x, x, need_weights=False)[0].mean(1))


def test_channels_of_tokens_come_last_and_layers_that_are_not_called_are_left_out():
    torch.manual_seed(0)
    model, batches = Tokens(), [torch.randn(9, 3, 3, 8) for _ in range(3)]
    names = list(layers_with_weights(model))
    dense = measure_signals(model, batches, names)
    assert list(dense) == ["embed", "head"] and dense["embed"][0].shape == (8,)
    values = model.embed(torch.cat(batches).flatten(2)).flatten(0, 1).double()
    torch.testing.assert_close(dense["embed"][1], values.std(0, correction=0))
    MagnitudeRanking(model, scope="weights").prune(0.5)
    repair(model, dense, batches)
    torch.testing.assert_close(measure_signals(model, batches, names)["head"][1], dense["head"][1])
