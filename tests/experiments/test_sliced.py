"""Slicing the proxy's networks: choice, tests, and the smaller network from scratch."""

import json
from dataclasses import replace

import numpy as np
import pytest

from experiments import proxy, sliced
from experiments.proxy import Run

pytest.importorskip("torch_pruning")


def test_what_does_best_on_held_out_images_is_chosen(tmp_path):
    for strength in sliced.METHODS["SGD"].strengths:
        file = sliced.result_of(Run("SGD", strength, 0, tmp_path), "held_out")
        file.parent.mkdir(parents=True, exist_ok=True)
        found = {
            f"{score} {allocation}": {
                str(ratio): {
                    "sliced": 1000 * strength,  # must not count
                    "recalibrated": 60 * (strength == 2e-3) + 9 * (allocation == "uniform"),
                }
                for ratio in sliced.RATIOS
            }
            for score, allocation in sliced.WAYS
        }
        file.write_text(json.dumps(found))
    choice = sliced.choose(["SGD"], tmp_path)
    assert (choice.strength, choice.allocation) == (2e-3, "uniform")


def test_networks_are_sliced_tested_and_trained_from_scratch(tmp_path, monkeypatch):
    draw = np.random.default_rng(0).integers
    arrays = {f"x_{s}": draw(256, size=(40, 32, 32, 3), dtype=np.uint8) for s in ("train", "test")}
    arrays |= {f"y_{s}": np.arange(40) % 10 for s in ("train", "test")}
    np.savez(tmp_path / "cifar10.npz", **arrays)
    small = {"WIDTH": 4, "EPOCHS": 1, "TRAIN_IMAGES": 24, "HELD_OUT_IMAGES": 16, "SEEDS": (0,)}
    for name, value in (small | {"CALIBRATION_IMAGES": 16, "PRECISION": "fp32"}).items():
        monkeypatch.setattr(proxy, name, value)
    monkeypatch.setattr(sliced, "RATIOS", (0.0, 0.5))
    monkeypatch.setattr(sliced, "ProcessPoolExecutor", InThisProcess)
    for method in ("SGD", "SFW K-sparse"):
        one = sliced.METHODS[method].strengths[:1]
        monkeypatch.setitem(sliced.METHODS, method, replace(sliced.METHODS[method], strengths=one))
    flags = ["--methods", "SGD", "SFW K-sparse", "--data_dir", str(tmp_path)]
    assert sliced.main([*flags, "--output_dir", str(tmp_path)]) == 0
    table = (tmp_path / "saved_logs" / "sliced" / "sliced.md").read_text().splitlines()
    assert [line.split(",")[0] for line in table[2:4]] == ["| SGD", "| SFW K-sparse"]
    cells = [line.split("|")[3].strip() for line in table[3:]]
    assert cells[0].split("; ")[1] == cells[1].split("; ")[1]  # the same widths
    monkeypatch.setattr(proxy, "train", None)  # nothing is left to do
    assert sliced.main([*flags, "--output_dir", str(tmp_path)]) == 0


class InThisProcess:
    """A pool that runs its tasks at once."""

    def __init__(self, *_):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def submit(self, task, *arguments):
        result = task(*arguments)
        return type("Done", (), {"result": lambda self: result})()
