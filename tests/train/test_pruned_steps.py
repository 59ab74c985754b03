"""Pruned steps: gradients are those of what pruning leaves, and the model stays as it was."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from utils.settings.config import Config
from utils.train.pruned_steps import SPARSITIES, pruned, step_sparsities


@pytest.fixture
def model():
    torch.manual_seed(0)
    return network()


def network():
    """A small network with ties, a BatchNorm smaller than any weight, and other buffers."""
    norm, tracking = nn.BatchNorm2d(4), nn.InstanceNorm2d(4, track_running_stats=True)
    layers = nn.Conv2d(2, 4, 3), norm, nn.ReLU(), nn.Flatten(), nn.Linear(16, 3)
    model = nn.Sequential(*layers[:2], tracking, *layers[2:])
    with torch.no_grad():
        model[0].weight.mul_(8).round_().div_(8)
        norm.weight.fill_(1e-6)
    return model


def loss_of(model):
    return model(torch.randn(6, 2, 4, 4, generator=torch.Generator().manual_seed(1))).exp().sum()


def state_of(model):
    return {name: values.clone() for name, values in model.state_dict().items()}


def assert_same(model, state):
    for name, values in state_of(model).items():
        assert torch.equal(values, state[name]), name


@given(st.integers(0, 1000), st.sampled_from([0.01, 0.3, 0.8, 0.98]))
def test_gradients_are_those_of_the_weights_that_are_left(seed, sparsity):
    torch.manual_seed(seed)
    model, plain = network(), network()
    plain.load_state_dict(model.state_dict())
    weights = [p for p in plain.parameters() if p.dim() > 1]
    magnitudes = torch.cat([p.detach().abs().flatten() for p in weights]).sort().values
    threshold = magnitudes[max(1, int(sparsity * len(magnitudes))) - 1]
    masks = [p.detach().abs() > threshold if p.dim() > 1 else 1 for p in plain.parameters()]
    with torch.no_grad():
        for p, mask in zip(plain.parameters(), masks, strict=True):
            p.mul_(mask)
    loss_of(plain).backward()
    with pruned(model, sparsity):
        loss_of(model).backward()
    for p, q, mask in zip(model.parameters(), plain.parameters(), masks, strict=True):
        assert torch.equal(p.grad, q.grad * mask)


@pytest.mark.parametrize("fails", [False, True])
def test_the_model_is_as_before_even_if_the_step_fails(fails, model):
    before = state_of(model)
    try:
        with pruned(model, 0.9):
            assert (model[5].weight == 0).any()
            loss_of(model)
            if fails:
                raise KeyboardInterrupt
    except KeyboardInterrupt:
        pass
    assert_same(model, before)


def test_a_sparsity_of_0_changes_nothing(model):
    plain = network()
    plain.load_state_dict(model.state_dict())
    with pruned(model, 0.0):
        loss_of(model).backward()
    loss_of(plain).backward()
    assert_same(model, state_of(plain))  # running statistics, too
    for p, q in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.equal(p.grad, q.grad)


def test_a_weight_that_takes_no_part_has_no_gradient(model):
    model.extra = nn.Linear(2, 2)
    with pruned(model, 0.5):
        loss_of(model[:6]).backward()
    assert model.extra.weight.grad is None
    assert model[0].weight.grad is not None


@pytest.mark.parametrize("fraction", [0.0, 0.25, 1 / 3, 0.7, 1.0])
def test_every_second_step_of_the_last_fraction_is_pruned_to_a_drawn_sparsity(fraction):
    epochs, steps = 6, 55  # 0.7 of them begin at step 99, whatever the rounding
    config, other = (Config(pruned_steps=fraction, seed=s, epoch_num=epochs) for s in (3, 4))
    rows = [step_sparsities(config, epoch, steps) for epoch in range(epochs)]
    drawn = [sparsity for row in rows for sparsity in row]
    pruned = [i for i, sparsity in enumerate(drawn) if sparsity]
    start = 330 - round(fraction * 330)
    assert pruned == [i for i in range(330) if i % 2 and i >= start]
    if fraction:
        assert set(drawn) == {0.0, *SPARSITIES}
        assert rows[5] == step_sparsities(config, 5, steps)
        assert rows[5] != step_sparsities(other, 5, steps)
    if fraction == 1:
        assert rows[5] != rows[4]
