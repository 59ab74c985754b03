"""Regions and schedules of one's own: tried at the start, and refused in one line."""

import math

import pytest
import torch
from runs import DIGITS, assert_refused_unchanged
from torch import nn

from constraints import CONSTRAINTS, LpBall, Region, build_constraints
from optim import LR_SCHEMES
from utils.process.errors import UserError
from utils.settings.config import Config
from utils.train.trials import check_regions, check_schedule, feasible_regions, learning_rates


class Box(Region):
    """No weight is larger than the radius in magnitude."""

    def __init__(self, n, k, *, radius=None, diameter=None):
        self.n, per_radius = n, 2 * n**0.5
        self.radius = diameter / per_radius if radius is None else radius
        self.diameter = self.radius * per_radius

    def lmo(self, g):
        return -self.radius * g.sign()

    def shift_inside(self, x):
        return x.clamp(-self.radius, self.radius)

    euclidean_project = shift_inside

    def gauge(self, x):
        return x.abs().max() / self.radius


class Row:
    """The number of entries alone, without what an LMO needs."""


@pytest.fixture
def box(monkeypatch):
    """box(**methods) is a kind of region whose methods are changed, registered as "box"."""

    def register(**methods):
        kind = type("Changed", (Box,), methods)
        monkeypatch.setitem(CONSTRAINTS, "box", kind)
        return kind

    return register


WRONG_REGIONS = {
    "lmo gives shape (16,) for a tensor of shape (2, 8)": dict(lmo=lambda s, g: g.flatten()),
    "lmo gives NoneType for a tensor": dict(lmo=lambda s, g: None),
    "lmo gives torch.float64 for a tensor of torch.float32": dict(
        lmo=lambda s, g: -s.radius * g.double().sign()
    ),
    "lmo gives numbers that are not finite": dict(lmo=lambda s, g: -g / 0),
    "lmo gives a point of gauge 2": dict(lmo=lambda s, g: -2 * s.radius * g.sign()),
    "lmo gives vertices 24 apart, in a region of diameter 12": dict(
        lmo=lambda s, g: -2 * s.radius * g.sign(), gauge=None
    ),
    "lmo(g) gives a v with <g, v> > 0": dict(lmo=lambda s, g: s.radius * g.sign()),
    "shift_inside gives a point of gauge ": dict(shift_inside=lambda s, x: x),
    "lmo changes what it is given": dict(lmo=lambda s, g: g.mul_(0)),
    "n is 3, and the parameter has 16 entries": dict(n=property(lambda s: 3, lambda s, n: None)),
    "IndexError: too large (test_trials.py, line ": dict(lmo=lambda s, g: fail()),
    "has no attribute": dict(shift_inside=lambda s, x: x.nothing()),
}


def fail():
    raise IndexError("too large")


def tried(kind, **settings):
    config = Config(constraint="box", **settings)
    model = nn.Linear(8, 2)
    check_regions(config, model, build_constraints(model, kind, tau=12, mode="diameter"))


@pytest.mark.parametrize("message", WRONG_REGIONS)
def test_a_region_that_is_wrong_is_refused(message, box):
    kind = box(**WRONG_REGIONS[message])
    with pytest.raises(UserError) as refused:
        tried(kind)
    text = str(refused.value)
    assert text.startswith("--constraint box, parameter weight: ") and message in text
    assert text.endswith("see docs/own_regions.md")


def test_a_projection_is_tried_where_it_is_used(box):
    kind = box(euclidean_project=lambda s, x: x)
    tried(kind)
    with pytest.raises(UserError, match="euclidean_project gives a point of gauge"):
        tried(kind, optimizer="SGD")


@pytest.mark.parametrize("optimizer", ["SFW", "SGD"])
@pytest.mark.parametrize("p", [1, 2, 3, math.inf])
def test_regions_that_are_right_are_accepted(optimizer, p, box):
    box()
    for kind in (Box, "k_sparse_constraints", lambda n, k, **size: LpBall(n, p, **size)):
        tried(kind, optimizer=optimizer)


def test_initial_weights_that_are_not_finite_are_refused():
    model = nn.Linear(64, 10)
    nn.init.constant_(model.weight, math.nan)
    with pytest.raises(UserError, match="--arch Mlp: the parameter 'weight' has NaN or infinite"):
        feasible_regions(Config(data="digits", arch="Mlp", mode="radius"), model)


def of_length(steps, rate=1.0):
    return lambda *position: [rate] * steps


WRONG_SCHEDULES = {
    "epoch 1: gives [1.0, 1.0, 1.0] ..., and not a finite multiple of --lr": of_length(4),
    "epoch 1: TypeError: ": lambda *position: None,
    "epoch 1: ValueError: could not convert": lambda *position: ["a"] * 3,
    "epoch 1: ZeroDivisionError: division by zero": lambda *position: [1 / 0] * 3,
    "epoch 1: gives [-1.0, -1.0, -1.0] ..., and not a finite": of_length(3, -1),
    "epoch 1: gives [nan, nan, nan] ..., and not": of_length(3, math.nan),
    "epoch 9: gives [inf, inf, inf] ..., and not": lambda e, *_: [math.inf if e == 8 else 1.0] * 3,
    "epoch 1: gives a learning rate of 2, and SFW takes at most 1": of_length(3, 2),
    "epoch 9: gives a learning rate of 1.6,": lambda e, *_: [e / 5] * 3,
}


@pytest.mark.parametrize("message", WRONG_SCHEDULES)
def test_a_schedule_that_is_wrong_is_refused(message, monkeypatch):
    monkeypatch.setitem(LR_SCHEMES, "own", WRONG_SCHEDULES[message])
    with pytest.raises(UserError) as refused:
        check_schedule(Config(lr_scheme="own", epoch_num=9), steps=3)
    assert f"--lr_scheme own, {message}" in str(refused.value)


def test_a_rate_above_1_is_for_sgd_and_for_a_small_lr(monkeypatch):
    monkeypatch.setitem(LR_SCHEMES, "own", of_length(3, 2))
    for settings in ({"optimizer": "SGD", "lr": 1.0}, {"lr": 0.5}):
        check_schedule(Config(lr_scheme="own", **settings), steps=3)


@pytest.mark.parametrize("epochs", [1, 2, 180])
@pytest.mark.parametrize("name", LR_SCHEMES)
def test_the_schedules_here_are_accepted(name, epochs):
    check_schedule(Config(lr_scheme=name, epoch_num=epochs), steps=3)


def test_a_learning_rate_is_the_multiple_of_lr_after_the_warm_up():
    config = Config(lr_scheme="keep", lr=0.5, warmup_steps=4)
    assert learning_rates(config, 1, 3, [1.0]) == [0.5, 0.5, 0.5]
    assert learning_rates(config, 0, 3, []) == [0.125, 0.25, 0.375]


def test_the_scripts_refuse_them_before_anything_is_written(box, quick, tmp_path, monkeypatch):
    box(shift_inside=lambda s, x: x[0])
    result = quick("train_prune.py", *DIGITS, "--constraint", "box", "--output_dir", tmp_path)
    assert_refused_unchanged(result, "shift_inside gives shape", tmp_path)
    monkeypatch.setitem(CONSTRAINTS, "box", Row)
    result = quick("train_prune.py", *DIGITS, "--constraint", "box", "--output_dir", tmp_path)
    assert_refused_unchanged(result, "--constraint box: TypeError: Row() takes no", tmp_path)
    monkeypatch.setitem(LR_SCHEMES, "own", of_length(1))
    result = quick("train_prune.py", *DIGITS, "--lr_scheme", "own", "--output_dir", tmp_path)
    assert_refused_unchanged(result, "for each of 12 steps", tmp_path)


def test_a_schedule_that_fails_later_ends_the_run_in_one_line(quick, tmp_path, monkeypatch):
    def by_loss(epoch, epochs, steps, losses):
        return [1.0] * (steps if sum(losses) == epoch else 1)

    monkeypatch.setitem(LR_SCHEMES, "own", by_loss)
    flags = (*DIGITS, "--lr_scheme", "own", "--output_dir", tmp_path)
    status, _, err = quick("train_prune.py", *flags)
    assert status == 1 and err.count("\n") == 1
    assert "error: --lr_scheme own, epoch 2: gives [1.0] ..., and not a finite" in err
    (saved,) = tmp_path.rglob("*.resume.pt")
    assert torch.load(saved, weights_only=True)["epoch"] == 1
