"""Pruned networks whose outputs are not numbers: everything that tells their accuracy says so."""

import re

import pytest
import torch
from runs import read_csv

from models import build_model
from utils.checkpoints.model_file import read_contents


def cosine():
    """No feature is active, and the classifier divides by their norm."""
    model = build_model("own_networks:cosine", 10, 1, 8)
    model.hidden.weight.mul_(1e-3)  # pruned first
    model.hidden.bias.fill_(-1)
    return model


def infinite():
    """Its channels can be cut out, other than those of a network that divides by their norm."""
    model = build_model("Mlp", 10, 1, 8)
    model.linear_layer_2.bias.fill_(torch.inf)
    return model


@pytest.mark.parametrize(
    ("arch", "build", "layer", "flags"),
    [
        ("own_networks:cosine", cosine, "head", "--repair 20"),
        ("Mlp", infinite, "linear_layer_2", "--granularity channels"),
    ],
)
def test_outputs_that_are_not_finite_are_no_accuracy(arch, build, layer, flags, quick, tmp_path):
    pytest.importorskip("torch_pruning")
    torch.manual_seed(0)
    with torch.no_grad():
        torch.save(build().state_dict(), tmp_path / "model.pt")
    own = ("--data", "digits", "--arch", arch, "--model_path")
    own += (tmp_path / "model.pt", "--output_dir", tmp_path, "--ratios", 0.9, *flags.split())
    status, out, err = quick("test_prune.py", *own, "--save_pruned", 0.9)
    assert status == 0, err
    told = f"accuracy: outputs of 360 images are not finite, first in layer {layer}"
    assert re.search(rf"^ +90% .* none .*{told}", out, re.M)
    (table,) = tmp_path.rglob("SFW_prune_test/*.csv")
    (row,) = read_csv(table)
    assert (row["accuracy"], row["accuracy_not_finite"]) == ("", "360")
    told = f"Test Accuracy nan Not_Finite 360 Layer {layer}"
    assert told in table.with_suffix(".log").read_text()
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
