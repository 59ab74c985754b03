"""The paper's comparison, with a network that trains in seconds."""

import pytest
import torch
from runs import assert_refused

from experiments import reproduce
from utils.prune.tables import SHOWN, read_accuracies

FLAGS = ["--data", "digits", "--archs", "Mlp", "--epoch_num", "2", "--sfw_init_iters", "2"]


@pytest.fixture
def run(capsys, tmp_path):
    def run_with(*flags):
        status = reproduce.main([*FLAGS, "--output_dir", str(tmp_path), *flags])
        return status, *capsys.readouterr()

    return run_with


def test_all_methods_are_trained_pruned_and_compared(run, tmp_path):
    status, out, err = run("--seeds", "0", "1")
    assert status == 0, err
    configs = [
        torch.load(path, weights_only=True)["config"]
        for path in tmp_path.rglob("saved_models/*.pt")
    ]
    assert sorted((c["optimizer"], c["sfw_init"], c["seed"]) for c in configs) == [
        (optimizer, init, seed)
        for optimizer, init in (("SFW", 0), ("SFW", 1), ("SGD", 0))
        for seed in (0, 1)
    ]
    (table,) = (tmp_path / "saved_logs" / "comparison").glob("*.md")
    rows = [line.split(" | ")[0] for line in table.read_text().splitlines()[2:]]
    assert rows == [
        "| SGD unconstraints lr=0.1 lr_scheme=decrease_3 weight_decay=0.0005 mode=None, 2 seeds",
        "| SFW k_sparse_constraints, 2 seeds",
        "| SFW k_sparse_constraints sfw_init=1, 2 seeds",
    ]
    assert table.read_text() in out
    assert table.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


def test_results_that_exist_are_kept(run, tmp_path):
    run("--methods", "SGD")
    kept = [*tmp_path.rglob("*.pt"), *tmp_path.rglob("SFW_prune_test/*")]
    before = {path: path.stat().st_mtime_ns for path in kept}
    status, out, _ = run("--methods", "SGD", "SFW")
    assert status == 0 and "Epoch 1/2" in out  # of the method that was missing
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_a_model_that_is_trained_again_is_tested_again(run, tmp_path):
    run("--methods", "SGD")
    (table,) = tmp_path.rglob("SFW_prune_test/*.csv")
    before = table.stat().st_mtime_ns
    assert run("--methods", "SGD", "--resume", "never")[0] == 0
    assert table.stat().st_mtime_ns > before


def test_results_that_are_missing_are_written(run, tmp_path):
    """A pruned file of a ratio that is new, and the settings beside a table of an older version."""
    for flags, count in (((), 0), (("--save_pruned", "0.9", "0.95"), 2)):
        assert run("--methods", "SGD", *flags)[0] == 0
        assert len(list(tmp_path.rglob("*.safetensors"))) == count
    (settings,) = tmp_path.rglob("SFW_prune_test/*.json")
    settings.unlink()
    assert run("--methods", "SGD")[0] == 0
    assert settings.is_file()


def test_methods_are_compared_at_own_ratios(run, tmp_path):
    status, out, err = run("--methods", "SGD", "SFW", "--ratios", "0.5", "0.999")
    assert status == 0, err
    assert "| weights removed | 50% | 99.9% |\n" in out
    names = [path.name for path in tmp_path.rglob("SFW_prune_test/*.csv")]
    assert len(names) == 2 and all(name.endswith("_ratios=0.5,0.999.csv") for name in names)


def test_a_flag_in_which_the_methods_differ_is_refused(run):
    assert_refused(run("--lr", "0.5"), "error: --lr: varies in this comparison")


def test_a_correction_is_compared_with_the_uncorrected_networks(run, tmp_path):
    status, _, err = run("--methods", "SFW", "--repair", "50", "--allocation", "lamp")
    assert status == 0, err
    (csv,) = (tmp_path / "saved_logs" / "SFW_prune_test").glob("*_allocation=lamp_repair=50.csv")
    (table,) = (tmp_path / "saved_logs" / "comparison").glob("*.md")
    rows = table.read_text().splitlines()[2:]
    columns = read_accuracies(csv)
    for row, column in zip(rows, ("accuracy", "repaired"), strict=True):
        assert row.split(" | ")[1:] == [
            f"{columns[column][ratio]:.2f}" + " |" * (ratio == SHOWN[-1]) for ratio in SHOWN
        ]
    assert rows[1].startswith("| repair=50 |")
    assert columns["accuracy"] != columns["repaired"]


@pytest.mark.parametrize(
    "flags, message",
    [
        (("--bn_recalibrate", "50"), "--bn_recalibrate: Mlp has no BatchNorm"),
        (("--repair", "5000"), "--repair 5000: there are"),
    ],
)
def test_a_correction_that_cannot_be_is_refused_before_training(run, tmp_path, flags, message):
    assert_refused(run(*flags), f"error: {message}")
    assert list(tmp_path.iterdir()) == []
