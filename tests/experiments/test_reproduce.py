"""The paper's comparison, with a network that trains in seconds."""

import pytest
import torch

from benchmarks import reproduce
from utils.prune.comparison import SHOWN, read_table

FLAGS = ["--data", "digits", "--archs", "Mlp", "--epoch_num", "2", "--sfw_init_iters", "2"]


@pytest.fixture
def compare(capsys, tmp_path):
    def run(*flags):
        status = reproduce.main([*FLAGS, "--output_dir", str(tmp_path), *flags])
        return status, *capsys.readouterr()

    return run


def test_all_methods_are_trained_pruned_and_compared(compare, tmp_path):
    status, out, err = compare("--seeds", "0", "1")
    assert status == 0, err
    configs = [
        torch.load(path, weights_only=True)["config"]
        for path in tmp_path.rglob("saved_models/*.pt")
    ]
    assert sorted((c["optimizer"], c["sfw_init"], c["seed"]) for c in configs) == [
        (optimizer, init, seed)
        for optimizer, init in (("SFW", 0), ("SFW", 1), ("SGD", 0)) for seed in (0, 1)
    ]  # fmt: skip
    (table,) = (tmp_path / "saved_logs" / "comparison").glob("*.md")
    rows = [line.split(" | ")[0] for line in table.read_text().splitlines()[2:]]
    assert rows == ["| Mlp, SGD", "| Mlp, SFW", "| Mlp, SFW with SFW-Init"]
    assert table.read_text() in out
    assert table.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


def test_what_is_there_is_not_run_again(compare, tmp_path):
    compare("--methods", "SGD")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.pt")}
    status, out, _ = compare()
    assert status == 0 and "Epoch 1/2" in out  # of the methods that were missing
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_what_is_trained_anew_is_tested_anew(compare, tmp_path):
    compare("--methods", "SGD")
    (table,) = tmp_path.rglob("SFW_prune_test/*.csv")
    before = table.stat().st_mtime_ns
    assert compare("--methods", "SGD", "--resume", "never")[0] == 0
    assert table.stat().st_mtime_ns > before


def test_a_pruned_file_that_is_not_there_yet_is_written(compare, tmp_path):
    for flags, count in (((), 0), (("--save_pruned", "0.9", "0.95"), 2)):
        assert compare("--methods", "SGD", *flags)[0] == 0
        assert len(list(tmp_path.rglob("*.safetensors"))) == count


def test_a_flag_that_tells_the_methods_apart_is_refused(compare):
    status, _, err = compare("--lr", "0.5")
    assert status == 2 and err.startswith("error: --lr: is set by the comparison")


def test_a_correction_gets_a_comparison_of_its_own(compare, tmp_path):
    status, _, err = compare("--methods", "SFW", "--repair", "50", "--allocation", "lamp")
    assert status == 0, err
    pruned, repaired = sorted(
        (tmp_path / "saved_logs" / "comparison").glob("*.md"), key=lambda path: len(path.name)
    )
    assert pruned.stem.endswith("_allocation=lamp")
    assert repaired.stem == f"{pruned.stem}_repair=50"
    (csv,) = (tmp_path / "saved_logs" / "SFW_prune_test").glob("*_allocation=lamp_repair=50.csv")
    columns = read_table(csv)
    for table, column in ((pruned, "accuracy"), (repaired, "repaired")):
        accuracies = [f"{columns[column][ratio]:.2f}" for ratio in SHOWN]
        assert table.read_text().splitlines()[2] == f"| Mlp, SFW | {' | '.join(accuracies)} |"
        assert table.with_suffix(".png").is_file()
    assert columns["accuracy"] != columns["repaired"]


@pytest.mark.parametrize(
    "flags, message",
    [
        (("--bn_recalibrate", "50"), "--bn_recalibrate: Mlp has no BatchNorm"),
        (("--repair", "5000"), "--repair 5000: there are"),
    ],
)
def test_a_correction_that_cannot_be_is_refused_before_training(compare, tmp_path, flags, message):
    status, _, err = compare(*flags)
    assert status == 2 and err.startswith(f"error: {message}")
    assert list(tmp_path.iterdir()) == []
