"""Pruned networks whose outputs are not numbers: everything that tells their accuracy says so."""

import re

import pytest
import torch
from runs import read_csv

from models import build_model
from utils.checkpoints.model_file import read_contents


@pytest.mark.parametrize("flags", ["--repair 20", "--granularity channels"])
def test_outputs_that_are_not_finite_are_no_accuracy(flags, quick, tmp_path):
    """No feature is active, and the classifier divides by their norm."""
    pytest.importorskip("torch_pruning")
    torch.manual_seed(0)
    model = build_model("own_networks:cosine", 10, 1, 8)
    with torch.no_grad():
        model.hidden.weight.mul_(1e-3)  # pruned first
        model.hidden.bias.fill_(-1)
    torch.save(model.state_dict(), tmp_path / "cosine.pt")
    own = ("--data", "digits", "--arch", "own_networks:cosine", "--model_path")
    own += (tmp_path / "cosine.pt", "--output_dir", tmp_path, "--ratios", 0.9, *flags.split())
    status, out, err = quick("test_prune.py", *own, "--save_pruned", 0.9)
    assert status == 0, err
    told = "accuracy: outputs of 360 images are not finite, first in layer head"
    assert re.search(rf"^ +90% .* none .*{told}", out, re.M)
    (table,) = tmp_path.rglob("SFW_prune_test/*.csv")
    (row,) = read_csv(table)
    assert (row["accuracy"], row["accuracy_not_finite"]) == ("", "360")
    assert "Test Accuracy nan Not_Finite 360 Layer head" in table.with_suffix(".log").read_text()
    (saved,) = tmp_path.rglob("saved_models/*.npz")
    pruning = read_contents(saved, "")["pruning"]
    assert (pruning["accuracy"], pruning["not_finite"]) == (None, 360)
    status, _, err = quick("test_prune.py", *own[:5], saved, "--output_dir", tmp_path / "again")
    assert status == 0, err
    assert "Not_Finite: 360" in next((tmp_path / "again").rglob("*.log")).read_text()
    if "repair" in flags:
        assert (row["repaired"], row["repaired_not_finite"]) == ("", "360")
        status, out, _ = quick("test_prune.py", "--compare", table, "--output_dir", tmp_path)
        assert status == 0 and out.count("| not finite |") == 2
