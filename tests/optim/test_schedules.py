"""Learning-rate schemes."""

import math

import pytest
import torch

from optim import LR_SCHEMES, warm_up


def learning_rates(name, epochs, losses, steps=1):
    """The multiple of the initial rate at every step of a run."""
    return [
        rate
        for epoch in range(epochs)
        for rate in LR_SCHEMES[name](epoch, epochs, steps, losses[:epoch])
    ]


def test_every_scheme_gives_each_step_a_rate_and_starts_at_the_initial_one():
    for scheme in LR_SCHEMES.values():
        rates = scheme(0, 3, 7, [])
        assert len(rates) == 7
        assert rates[0] == 1.0


def test_keep_keeps():
    assert learning_rates("keep", 40, [1.0] * 40) == [1.0] * 40


@pytest.mark.parametrize(
    ("epochs", "drops"), [(180, (60, 120)), (20, (6, 13)), (3, (1, 2)), (2, (1,)), (1, ())]
)
def test_decrease_3_divides_by_ten_at_each_third_but_never_in_the_first_epoch(epochs, drops):
    rates = learning_rates("decrease_3", epochs, [1.0] * epochs)
    expected = [0.1 ** sum(epoch >= drop for drop in drops) for epoch in range(epochs)]
    assert rates == pytest.approx(expected)


def test_dynamic_change_follows_the_trend_of_the_loss_every_five_epochs():
    falling = [1 / (1 + epoch) for epoch in range(60)]
    rates = learning_rates("dynamic_change", 180, falling + [0.0] * 120)
    assert rates[24] == 1.0
    assert rates[25] == pytest.approx(1.06) == rates[29]
    assert rates[30] == pytest.approx(1.06**2)


def test_dynamic_change_slows_down_when_the_loss_rises():
    rates = learning_rates("dynamic_change", 180, [float(epoch) for epoch in range(180)])
    assert rates[25] == pytest.approx(0.7)
    assert rates[30] == pytest.approx(0.7**2)


def test_dynamic_change_keeps_a_flat_loss_and_looks_at_whole_windows():
    assert learning_rates("dynamic_change", 180, [1.0] * 180)[59] == 1.0
    # One high loss nine epochs back lifts only the longer mean.
    losses = [1.0] * 16 + [2.0] + [1.0] * 163
    assert learning_rates("dynamic_change", 180, losses)[25] == 1.06


def test_dynamic_change_also_divides_at_each_third():
    rates = learning_rates("dynamic_change", 90, [1.0] * 90)
    assert rates[29] == 1.0
    assert rates[30] == pytest.approx(0.1)
    assert rates[60] == pytest.approx(0.01)


def test_cosine_is_pytorchs_annealing_to_zero_by_the_step():
    epochs, steps = 3, 5
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    peer = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * steps)
    expected = []
    for _ in range(epochs * steps):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        peer.step()
    assert learning_rates("cosine", epochs, [1.0] * epochs, steps) == pytest.approx(expected)


def test_linear_falls_by_the_same_amount_at_every_step_and_reaches_zero_after_the_last():
    rates = learning_rates("linear", 4, [1.0] * 4, steps=8)
    assert rates == pytest.approx([1 - step / 32 for step in range(32)])
    assert not math.isclose(rates[-1], 0)


@pytest.mark.parametrize("warmup_steps", [2, 7, 100])
def test_warm_up_is_pytorchs_linear_one_whatever_the_epochs_are(warmup_steps):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    peer = torch.optim.lr_scheduler.LinearLR(optimizer, 1 / warmup_steps, 1, warmup_steps - 1)
    rates, expected = [], []
    for first in range(0, 20, 5):
        rates += warm_up([1.0] * 5, first, warmup_steps)
    for _ in rates:
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        peer.step()
    assert rates == pytest.approx(expected)


@pytest.mark.parametrize("warmup_steps", [0, 1])
def test_without_a_warm_up_the_rates_of_the_scheme_stay(warmup_steps):
    assert warm_up([1.0, 0.5, 0.25], 0, warmup_steps) == [1.0, 0.5, 0.25]


def test_a_warm_up_multiplies_the_rates_of_the_scheme():
    assert warm_up([1.0, 0.5, 0.1], 1, 4) == pytest.approx([0.5, 0.375, 0.1])
