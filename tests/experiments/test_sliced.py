"""Slicing the proxy's networks: choice, tests, and the smaller network from scratch."""

import json
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from experiments import proxy, sliced
from experiments.proxy import Run
from utils.compute.measure import Accuracy

pytest.importorskip("torch_pruning")


def write_held_out(folder, accuracy):
    """Results of all SGD runs; accuracy(strength, score, allocation, ratio), recalibrated."""
    for strength in sliced.METHODS["SGD"].strengths:
        for score, allocation in sliced.WAYS:
            way = f"{score} {allocation}"
            file = sliced.result_of(Run("SGD", strength, 0, folder), "held_out", way)
            file.parent.mkdir(parents=True, exist_ok=True)
            rows = {
                str(ratio): {
                    "sliced": 1000 * strength,  # must not count
                    "recalibrated": accuracy(strength, score, allocation, ratio),
                }
                for ratio in sliced.RATIOS
            }
            file.write_text(json.dumps(rows))


def test_what_does_best_on_held_out_images_is_chosen(tmp_path):
    def accuracy(strength, score, allocation, ratio):
        return 60 * (strength == 2e-3) + 9 * (allocation == "uniform") + 3 * (score == "l2")

    write_held_out(tmp_path, accuracy)
    choice = sliced.choose(["SGD"], tmp_path)
    assert (choice.strength, choice.way) == (2e-3, "l2 uniform")
    judged = sliced.by_strength("SGD", tmp_path)
    assert judged == {5e-4: 12, 1e-3: 12, 2e-3: 72, 5e-3: 12, 1e-2: 12}


def test_a_choice_can_be_made_for_one_ratio(tmp_path):
    def accuracy(strength, score, allocation, ratio):
        return 50 * (strength == 1e-3) + 60 * (strength == 5e-3 and ratio == 0.5)

    write_held_out(tmp_path, accuracy)
    assert sliced.choose(["SGD"], tmp_path).strength == 1e-3
    assert sliced.choose(["SGD"], tmp_path, [0.5]).strength == 5e-3


class TwoConvolutions(nn.Sequential):
    """A network that is sliced much faster than ResNet18."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 128, 3, stride=3, bias=False)
        self.bn1 = nn.BatchNorm2d(128)
        self.relu = nn.ReLU()
        self.conv2 = nn.Conv2d(128, 64, 3)
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(4096, 10)


@pytest.fixture
def small_proxy(tmp_path, monkeypatch):
    """Three methods with one strength, a small network, few images; a comparison's flags."""
    draw = np.random.default_rng(0).integers
    arrays = {f"x_{s}": draw(256, size=(40, 32, 32, 3), dtype=np.uint8) for s in ("train", "test")}
    arrays |= {f"y_{s}": np.arange(40) % 10 for s in ("train", "test")}
    np.savez(tmp_path / "cifar10.npz", **arrays)
    small = {
        "new_network": TwoConvolutions,
        "EPOCHS": 1,
        "TRAIN_IMAGES": 24,
        "HELD_OUT_IMAGES": 16,
        "SEEDS": (0, 1),
    }
    for name, value in (small | {"CALIBRATION_IMAGES": 16, "PRECISION": "fp32"}).items():
        monkeypatch.setattr(proxy, name, value)
    monkeypatch.setattr(sliced, "RATIOS", (0.0, 0.5))
    monkeypatch.setattr(sliced, "workers", in_this_process)
    for method in ("SGD", "SFW K-sparse", "SFW L2"):
        one = sliced.METHODS[method].strengths[:1]
        monkeypatch.setitem(sliced.METHODS, method, replace(sliced.METHODS[method], strengths=one))
    return ["--data_dir", str(tmp_path), "--output_dir", str(tmp_path)]


def rows_of(folder):
    """The lines of sliced.md that show results, as cells."""
    lines = (folder / "saved_logs" / "sliced" / "sliced.md").read_text().splitlines()
    results = lines[lines.index("") + 3 :]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in results]


def test_networks_are_sliced_tested_and_trained_from_scratch(tmp_path, small_proxy, monkeypatch):
    flags = ["--methods", "SGD", "SFW K-sparse", *small_proxy]
    assert sliced.main(flags) == 0
    rows = rows_of(tmp_path)
    assert [row[0].split(",")[0] for row in rows[:2]] == ["SGD", "SFW K-sparse"]
    assert rows[2][0] == f"the network of {rows[1][0]}, from scratch by SGD, 0.0005"
    assert rows[1][2].split("; ")[1] == rows[2][2].split("; ")[1]  # the same sizes
    monkeypatch.setattr(proxy, "train", None)  # nothing is left to do
    assert sliced.main(flags) == 0


def test_a_network_from_scratch_is_trained_anew_for_other_widths(tmp_path, small_proxy):
    for method in ("SFW K-sparse", "SFW L2"):
        assert sliced.main(["--methods", method, *small_proxy]) == 0
        ours, rival = rows_of(tmp_path)
        assert ours[2].split("; ")[1] == rival[2].split("; ")[1]


def test_choices_are_made_on_held_out_images_alone(tmp_path, small_proxy, monkeypatch):
    def count(model, batches, precision):
        return Accuracy(float(sum(len(targets) for _, targets in batches)))

    monkeypatch.setattr(sliced, "evaluate", count)
    assert sliced.main(["--methods", "SFW K-sparse", *small_proxy]) == 0
    found = [path for path in tmp_path.rglob("*.json") if "sliced" in path.parts]
    for path in found:
        rows = json.loads(path.read_text())
        tested = {row["recalibrated"] for row in (rows.values() if "0.5" in rows else [rows])}
        assert tested == {16.0 if "held_out" in path.name else 40.0}, path
    assert sum("from_scratch" in str(path) for path in found) == 3


def test_a_network_from_scratch_starts_as_its_seed_draws_it(small_proxy, monkeypatch):
    train, starts = proxy.train, []

    def recorded(run, data, model=None):
        if model is not None:
            starts.append((run.seed, model.conv1.weight.detach().clone()))
        return train(run, data, model)

    monkeypatch.setattr(proxy, "train", recorded)
    assert sliced.main(["--methods", "SFW K-sparse", *small_proxy]) == 0
    assert {seed for seed, _ in starts} == {0, 1}
    for seed, weight in starts:
        torch.manual_seed(seed)
        fresh = nn.Conv2d(3, len(weight), weight.shape[2:], bias=False).weight
        assert torch.equal(weight, fresh)


@contextmanager
def in_this_process(processes, threads):
    """Runs tasks one after another."""
    yield lambda task, arguments: [task(*one) for one in arguments]
