"""What test_prune.py prints and writes with --granularity N:M."""

import re

import pytest
import torch
from runs import DIGITS, assert_refused, read_csv
from torch import nn

from models import build_model
from test_prune import tell_left_dense
from utils.checkpoints.model_file import model_contents, read_contents, write_contents
from utils.prune.weights.patterns import PatternRanking, has_pattern
from utils.prune.weights.saved import read_weights
from utils.settings.config import Config

PATTERNS = ("--granularity", "N:M")


@pytest.fixture
def run(quick, tmp_path):
    """Runs test_prune.py on an untrained Mlp, whose 64 and 128 inputs fit all usual patterns."""
    config = Config(data="digits", arch="Mlp", epoch_num=2, output_dir=tmp_path)
    torch.manual_seed(0)
    model = build_model("Mlp", 10, 1, 8)
    write_contents(config.files.model, model_contents(model, config, 2, {}))
    return lambda *flags: quick("test_prune.py", *DIGITS, *flags, "--output_dir", tmp_path)


def test_patterns_have_a_row_each_after_the_dense_network(run, tmp_path):
    status, out, err = run(*PATTERNS, "--patterns", "1:4", "4:8", "2:4", "--repair", 50)
    assert (status, err) == (0, "")
    (path,) = tmp_path.rglob("SFW_prune_test/*.csv")
    assert path.stem.endswith("_granularity=N-M_repair=50_patterns=2-4,4-8,1-4")
    weights = 64 * 128 + 128 * 128 + 128 * 10
    rows = {row["pattern"]: row for row in read_csv(path)}
    assert list(rows) == ["dense", "2:4", "4:8", "1:4"]
    assert {row["parameters"] for row in rows.values()} == {str(weights)}
    assert [float(row["removed"]) for row in rows.values()] == [0, 0.5, 0.5, 0.75]
    assert int(rows["1:4"]["remaining"]) == weights // 4
    assert all(row["accuracy"] and row["repaired"] for row in rows.values())
    assert re.findall(r"^ +(\S+) +([\d.]+)% +([\d,]+) ", out, re.M)[1] == ("2:4", "50.0", "12,928")
    log = path.with_suffix(".log").read_text()
    assert "Pruning Granularity: N:M Repair: 50 Patterns: 2:4,4:8,1:4\n" in log
    assert re.findall("^Prune Ratio (.+) Test Accuracy", log, re.M) == list(rows)
    layers = read_csv(next(tmp_path.rglob("layer_sparsity/*.csv")))
    (zeros,) = {r["fraction"] for r in layers if (r["pattern"], r["entries"]) == ("1:4", "16384")}
    assert zeros == "0.75"
    assert len(list(tmp_path.rglob("*.png"))) == 2


def test_saved_files_have_the_pattern_and_say_so(run, tmp_path):
    pytest.importorskip("onnxscript")
    formats = ("--pruned_format", "npz", "state_dict", "onnx")
    status, _, err = run(*PATTERNS, "--save_pruned", "2:8", *formats)
    assert (status, err) == (0, "")
    paths = sorted(tmp_path.rglob("saved_models/*_granularity=N-M_sparsity=2-8.*"))
    assert [path.suffix for path in paths] == [".npz", ".onnx", ".pt"]
    for path in paths:
        weights = read_weights(path)
        assert len(weights) == 3 and all(has_pattern(w, "2:8") for w in weights.values())
    pruning = read_contents(paths[0], "")["pruning"]
    assert (pruning["granularity"], pruning["sparsity"]) == ("N:M", "2:8")


REFUSED = {
    "--patterns 1:3": "--patterns 1:3: no linear layer or convolution that computes with its own",
    "--patterns 4:2": "--patterns 4:2: choose one of 2:4, 1:4, 4:8, 2:8, or N:M",
    "--save_pruned 0.9": "--save_pruned 0.9: does not go with --granularity N:M; give patterns",
    "--allocation lamp": "--allocation: is for --granularity weights or channels; give that",
    "--ratios 0.9": "--ratios: is for --granularity weights or channels; give that",
}


@pytest.mark.parametrize("flags", REFUSED)
def test_what_no_pattern_fits_is_refused(flags, run, tmp_path):
    assert_refused(run(*PATTERNS, *flags.split()), f"error: {REFUSED[flags]}")
    assert not (tmp_path / "saved_logs").exists()


def test_tables_of_patterns_are_compared_with_each_other(run, quick, tmp_path):
    run(*PATTERNS, "--patterns", "1:4", "2:4", "4:8")
    (path,) = tmp_path.rglob("SFW_prune_test/*.csv")
    status, out, err = quick("test_prune.py", "--compare", path, "--output_dir", tmp_path)
    assert (status, err) == (0, "")
    assert "| weights removed | dense | 2:4 | 4:8 | 1:4 |\n" in out


def test_weights_that_do_not_fit_are_named_once_for_their_patterns(capsys):
    model = nn.Sequential(nn.Linear(3, 12), nn.Linear(12, 8), nn.Linear(8, 2))
    tell_left_dense(PatternRanking(model), ["2:4", "4:8", "1:4"])
    assert capsys.readouterr().err.splitlines() == [
        "note: 2:4, 1:4: these weights do not fit and stay dense: 0.weight",
        "note: 4:8: these weights do not fit and stay dense: 0.weight, 1.weight",
    ]
