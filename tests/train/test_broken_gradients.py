"""A training whose gradients break ends with the name of the parameter, and saves no such model."""

import itertools
import math

import pytest
from runs import DIGITS

import train_prune

STEPS = 12  # an epoch of DIGITS


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("optimizer", ["SFW", "SGD"])
def test_a_gradient_that_breaks_in_the_last_step_names_its_parameter(
    optimizer, value, quick, tmp_path, monkeypatch
):
    """Earlier ones end in a loss that is not a number."""
    build = train_prune.build_optimizer

    def build_and_break(config, model, regions):
        optimizer, steps = build(config, model, regions), itertools.count(1)

        def break_gradient(*_):
            if next(steps) == STEPS:
                model.linear_layer_1.bias.grad[3] = value

        optimizer.register_step_pre_hook(break_gradient)
        return optimizer

    monkeypatch.setattr(train_prune, "build_optimizer", build_and_break)
    flags = (*DIGITS, "--optimizer", optimizer, "--output_dir", tmp_path)
    status, _, err = quick("train_prune.py", *flags)
    assert status == 1
    assert f"the weights of linear_layer_1.bias are not finite after step {STEPS}" in err
    assert [path.suffixes[-2:] for path in tmp_path.rglob("*.pt")] == [[".resume", ".pt"]]
