"""Learning-rate schemes."""

import pytest

from optim import LR_SCHEMES


def learning_rates(name, epochs, losses):
    lr, rates = 1.0, []
    for epoch in range(epochs):
        lr *= LR_SCHEMES[name](epoch, epochs, losses[:epoch])
        rates.append(lr)
    return rates


def test_keep_keeps():
    assert learning_rates("keep", 40, [1.0] * 40) == [1.0] * 40


@pytest.mark.parametrize(("epochs", "drops"), [(180, (60, 120)), (20, (6, 13)), (3, (1, 2))])
def test_decrease_3_divides_by_ten_at_each_third(epochs, drops):
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
    assert LR_SCHEMES["dynamic_change"](25, 180, losses[:25]) == 1.06


def test_dynamic_change_also_divides_at_each_third():
    rates = learning_rates("dynamic_change", 90, [1.0] * 90)
    assert rates[29] == 1.0
    assert rates[30] == pytest.approx(0.1)
    assert rates[60] == pytest.approx(0.01)
