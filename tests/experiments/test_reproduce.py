"""The paper's comparison, with a network that trains in seconds."""

import pytest
import torch
from runs import assert_refused

import train_prune
from experiments import reproduce
from utils.process.errors import RunError
from utils.process.locks import run_lock
from utils.prune.config import PruneConfig
from utils.reports.comparison import SHOWN, read_accuracies
from utils.settings.config import Config

FLAGS = ["--data", "digits", "--archs", "Mlp", "--epoch_num", "1", "--sfw_init_iters", "2"]


@pytest.fixture
def run(capsys, tmp_path):
    def run_with(*flags):
        status = reproduce.main([*FLAGS, "--output_dir", str(tmp_path), *flags])
        return status, *capsys.readouterr()

    return run_with


def test_all_methods_are_trained_pruned_and_compared(run, tmp_path):
    status, out, err = run("--seeds", "0", "1", "--ratios", "0", "0.5")
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
        "| SGD, schedule decrease_3, weight decay 0.0005, 2 runs",
        "| SFW, 2 runs",
        "| SFW, SFW-Init, 2 runs",
    ]
    assert table.read_text() in out
    assert table.with_suffix(".png").is_file()


def test_results_that_exist_are_kept(run, tmp_path):
    run("--methods", "SGD")
    kept = [*tmp_path.rglob("*.pt"), *tmp_path.rglob("SFW_prune_test/*")]
    before = {path: path.stat().st_mtime_ns for path in kept}
    status, out, _ = run("--methods", "SGD", "SFW")
    assert status == 0 and "Epoch 1/1" in out  # of the method that was missing
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
        assert len(list(tmp_path.rglob("saved_models/*.npz"))) == count
    (settings,) = tmp_path.rglob("SFW_prune_test/*.json")
    settings.unlink()
    assert run("--methods", "SGD")[0] == 0
    assert settings.is_file()


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
            f"{columns[column][ratio].percent:.2f}" + " |" * (ratio == SHOWN[-1]) for ratio in SHOWN
        ]
    assert rows[1].startswith("| digits, Mlp, SFW, K-sparse polytope, allocation lamp, repaired |")
    assert columns["accuracy"] != columns["repaired"]


@pytest.mark.parametrize(
    "flags, message",
    [
        (("--bn_recalibrate", "50"), "--bn_recalibrate: Mlp has no BatchNorm"),
        (("--repair", "5000"), "--repair 5000: there are"),
        (("--granularity", "channels"), "--granularity channels: is not compared"),
        (("--granularity", "N:M", "--patterns", "2:7"), "--patterns 2:7: no linear layer"),
    ],
)
def test_what_the_test_would_refuse_is_refused_before_training(run, tmp_path, flags, message):
    assert_refused(run(*flags), f"error: {message}")
    assert list(tmp_path.iterdir()) == []


def files_of(folder, method):
    settings = reproduce.METHODS[method]
    config = Config(
        data="digits", arch="Mlp", epoch_num=1, sfw_init_iters=2, output_dir=folder, **settings
    )
    return config.files


def comparisons(folder):
    return list((folder / "saved_logs").glob("comparison/*.md"))


def test_a_run_of_another_process_is_left_to_it(run, tmp_path):
    with run_lock(files_of(tmp_path, "SGD").job_lock):
        status, out, err = run("--methods", "SGD", "SFW")
        assert (status, err) == (0, "")
        assert out.endswith("\nRuns that others are doing: 1; who ends last compares all of them\n")
    assert files_of(tmp_path, "SFW").model.exists()
    assert not files_of(tmp_path, "SGD").model.exists() and not comparisons(tmp_path)
    assert run("--methods", "SGD", "SFW")[0] == 0
    assert len(comparisons(tmp_path)) == 1


def test_a_run_that_fails_does_not_keep_the_others_from_being_done(run, tmp_path, monkeypatch):
    def train(config):
        if config.optimizer == "SGD":
            raise RunError("the loss is nan")
        train_prune.train(config)

    monkeypatch.setattr(reproduce, "train", train)
    status, _, err = run("--methods", "SGD", "SFW")
    warning, error = err.splitlines()
    assert status == 1 and warning.startswith("warning: data=digits")
    assert warning.endswith(": the loss is nan")
    assert error == "error: runs that failed: 1 of 2; the warnings above say why"
    assert files_of(tmp_path, "SFW").model.exists() and not comparisons(tmp_path)


def test_the_precision_of_the_training_is_no_other_for_the_test():
    """Otherwise the comparison would look for files of another name than the test writes."""
    asked = PruneConfig(test_precision="fp32")
    assert asked.beside("fp32").in_name() == {}
    assert asked.beside("bf16").in_name() == {"test_precision": "fp32"}
