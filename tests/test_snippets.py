"""The Python programs on the pages of documentation run, and do what the pages say."""

import os
import subprocess
import sys

import pytest
import torch
from pages import PAGES, blocks
from runs import DIGITS, ROOT

from utils.datasets import DATASETS, read_own

(NPZ,) = blocks(PAGES["docs/own_data.md"], "python")
(NETWORK,) = blocks(PAGES["docs/own_networks.md"], "python")
(ADDITIONS,) = blocks(PAGES["docs/own_regions.md"], "python")
(PRUNING_LOOP,) = blocks(PAGES["docs/own_loops.md"], "python")
(TRAINING_LOOP,) = blocks(PAGES["README.md"], "python")
PATTERNS, LOADING = blocks(PAGES["docs/pruning.md"], "python")
(FORMATS,) = blocks(PAGES["docs/deployment.md"], "python")
(SHARDED,) = blocks(PAGES["docs/sharded.md"], "python")


def test_the_npz_of_ones_own_is_a_data_set(tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    monkeypatch.chdir(tmp_path)
    exec(NPZ, {})
    own = read_own("shades", tmp_path / "data")[1]
    assert own.classes == ("dark", "bright") and own.side == 24


def test_every_snippet_is_run_by_a_test():
    run = {NPZ, NETWORK, ADDITIONS, TRAINING_LOOP, PRUNING_LOOP, LOADING, FORMATS, SHARDED}
    run.add(PATTERNS)
    assert {block for page in PAGES.values() for block in blocks(page, "python")} == run


def test_a_program_with_sharded_parameters_runs(tmp_path):
    """In one process; tests/sharded has more."""
    path = tmp_path / "program.py"
    path.write_text(SHARDED)
    alone = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "0"}
    done = subprocess.run(
        [sys.executable, str(path)],
        env=os.environ | alone | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert 0 < float(done.stdout.split()[-1]) < 2


def test_the_network_of_ones_own_in_the_docs_is_trained(quick, tmp_path, monkeypatch):
    (tmp_path / "nets.py").write_text(NETWORK)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "nets", raising=False)
    flags = ("--data", "digits", "--arch", "nets:small_vit", "--epoch_num", 1)
    status, _, err = quick("train_prune.py", *flags)
    assert status == 0, err
    monkeypatch.delitem(sys.modules, "nets")


def test_each_format_is_loaded_in_a_program_of_ones_own(quick, trained, monkeypatch):
    pytest.importorskip("onnxruntime")
    formats = ("--pruned_format", "npz", "state_dict", "onnx", "--ratios", 0.9)
    flags = (*DIGITS, "--save_pruned", 0.9, *formats, "--output_dir", trained)
    status, _, err = quick("test_prune.py", *flags)
    assert status == 0, err
    monkeypatch.chdir(trained)
    names = {}
    exec(FORMATS, names)
    info = DATASETS["digits"]
    inputs = (torch.from_numpy(names["images"]) - info.mean[0]) / info.std[0]
    with torch.no_grad():
        for network in (names["sparse"], names["plain"]):
            assert (network(inputs) - torch.from_numpy(names["logits"])).abs().max() < 1e-4


def test_the_example_of_an_own_training_loop_runs_and_learns():
    names = {}
    torch.manual_seed(0)
    exec(TRAINING_LOOP, names)
    with torch.no_grad():
        x = torch.randn(4096, 20)
        y = x[:, 0] * x[:, 1]
        error = (names["model"](x).squeeze(1) - y).square().mean()
    assert error < 0.9 * y.square().mean()
    assert all(p.isfinite().all() for p in names["model"].parameters())


def test_the_loop_of_ones_own_prunes_recalibrates_and_slices(capsys):
    pytest.importorskip("torch_pruning")
    names = {}
    exec(PRUNING_LOOP, names)
    assert names["as_pruned"] > 0.9 and names["removed"] >= 0.5
    networks = [names[name] for name in ("model", "sparse", "small")]
    assert min(map(names["accuracy"], networks)) > 0.9
    parameters = torch.cat([p.flatten() for p in names["sparse"].parameters()])
    assert int((parameters == 0).sum()) >= int(0.9 * len(parameters))
    assert len(names["small"][0].weight) < 16


def test_additions_of_ones_own_train_and_are_pruned(tmp_path):
    (tmp_path / "own.py").write_text(ADDITIONS)
    done = subprocess.run(
        [sys.executable, "own.py"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    (path,) = (tmp_path / "saved_models").glob("*.pt")
    model = torch.load(path, weights_only=True)
    assert "constraint=box_constraints" in path.name and "lr_scheme=square_root" in path.name
    assert model["metrics"]["test_accuracy"][-1] > 80
    assert len(list((tmp_path / "saved_logs" / "SFW_prune_test").glob("*.png"))) == 1
    told = subprocess.run(
        [sys.executable, ROOT / "test_weight_distribution.py", "--model_path", path],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert told.returncode == 0 and f"picture: {path.stem}.png" in told.stdout, told.stderr


def test_a_pruned_network_is_loaded(quick, trained, monkeypatch):
    flags = (*DIGITS, "--save_pruned", 0.9, "--ratios", 0.9, "--output_dir", trained)
    status, _, err = quick("test_prune.py", *flags)
    assert status == 0, err
    monkeypatch.chdir(trained)
    names = {}
    exec(LOADING.replace("data=mnist", "data=digits"), names)
    parameters = dict(names["model"].named_parameters())
    assert all(torch.equal(names["state"][name], p) for name, p in parameters.items())
    zeros = sum(int((p == 0).sum()) for p in parameters.values())
    assert zeros == int(0.9 * sum(p.numel() for p in parameters.values()))


def test_the_pattern_of_a_file_is_proven(quick, trained, monkeypatch, capsys):
    flags = (*DIGITS, "--granularity", "N:M", "--save_pruned", "2:4", "--output_dir", trained)
    status, _, err = quick("test_prune.py", *flags)
    assert status == 0, err
    monkeypatch.chdir(trained)
    exec(PATTERNS, {})
    assert [line.split()[-1] for line in capsys.readouterr().out.splitlines()] == ["True"] * 3
