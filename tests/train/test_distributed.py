"""Data-parallel runs: processes, as torchrun starts them, that share each batch."""

import os
import signal
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from processes import running_means_after_evaluation, train_with
from runs import DIGITS, ROOT, SETTINGS, assert_refused, files_in, flags_of, outcome

import train_prune
from utils.settings.config import Config
from utils.train.distributed import World

SHORT = SETTINGS | {"epoch_num": 3, "train_batchsize": 128}
FLAGS = flags_of(SHORT)
STEPS = 12  # of an epoch


@pytest.fixture(scope="module")
def single(tmp_path_factory):
    """What a run of one process leaves."""
    folder = tmp_path_factory.mktemp("single")
    assert train_prune.main([*FLAGS, "--output_dir", str(folder)]) == 0
    return outcome(folder, SHORT)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """What a run of three processes leaves when nothing happens to it, and what it prints."""
    folder = tmp_path_factory.mktemp("whole")
    done = train_with(3, FLAGS, folder)
    assert done.status == [0, 0, 0], done.err
    return outcome(folder, SHORT | {"processes": 3}), done


def assert_trains_as_one(metrics, expected):
    assert metrics["train_loss"] == pytest.approx(expected["train_loss"], rel=0.02)
    assert metrics["test_accuracy"] == pytest.approx(expected["test_accuracy"], abs=2)
    assert metrics["sfw_init_scales"] == expected["sfw_init_scales"]


def test_torchrun_trains_as_one_process_does(tmp_path, single):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    done = subprocess.run(
        [*command, "train_prune.py", *FLAGS, "--output_dir", tmp_path],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"OMP_NUM_THREADS": "1"},  # otherwise torchrun says that it sets it
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert [line[:9] for line in done.stdout.splitlines() if line.startswith("Epoch")] == [
        f"Epoch {i}/3" for i in range(1, 4)
    ]
    assert_trains_as_one(outcome(tmp_path, SHORT | {"processes": 2})[1], single[1])


def test_a_single_process_of_torchrun_is_an_ordinary_run(quick, tmp_path, monkeypatch, single):
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.setenv("RANK", "0")
    assert quick("train_prune.py", *FLAGS, "--output_dir", tmp_path)[0] == 0
    assert outcome(tmp_path, SHORT) == single


def test_three_processes_train_as_one_does(whole, single):
    assert_trains_as_one(whole[0][1], single[1])


def test_the_main_process_speaks_for_all(whole):
    _, done = whole
    assert done.out[0].count("Epoch 1/3") == 1
    assert done.out[1:] == ["", ""] and done.err == ["", "", ""]


def test_a_run_whose_process_dies_goes_on_as_if_it_had_not(quick, tmp_path, whole):
    done = train_with(3, FLAGS, tmp_path, signalled=(2, STEPS + 5, signal.SIGKILL))
    assert done.status == [1, 1, -signal.SIGKILL]
    message = "another process of this run has ended; the same command goes on after epoch 1"
    assert done.err == [f"error: {message}\n", "", ""]
    before = files_in(tmp_path)
    status, _, err = quick("train_prune.py", *FLAGS, "--output_dir", tmp_path)
    assert status == 2 and "is of a run of another number of processes" in err
    assert files_in(tmp_path) == before
    done = train_with(3, FLAGS, tmp_path)
    assert done.status == [0, 0, 0] and "Going on after epoch 1 of 3" in done.out[0]
    assert outcome(tmp_path, SHORT | {"processes": 3}) == whole[0]


def test_a_signal_to_one_process_stops_all_after_the_same_step(tmp_path, whole):
    done = train_with(3, FLAGS, tmp_path, signalled=(1, STEPS + 5, signal.SIGTERM))
    assert done.status == [143, 143, 143]
    message = "stopped by SIGTERM; the same command goes on after epoch 1 and 5 steps"
    assert done.err == [f"error: {message}\n", "", ""]
    assert train_with(3, FLAGS, tmp_path).status == [0, 0, 0]
    assert outcome(tmp_path, SHORT | {"processes": 3}) == whole[0]


def test_the_gradient_is_that_of_the_whole_batch_however_it_is_divided(quick, tmp_path):
    """Batches of 718 images, which three processes cannot share evenly, and of a single one."""
    flags = [*DIGITS, "--train_batchsize", 718, "--lr_scheme", "keep"]
    flags += ["--pruned_steps", 1]  # every second step
    flags += ["--optimizer", "SGD", "--constraint", "unconstraints", "--mode", "None"]
    assert train_with(3, flags, tmp_path).status == [0, 0, 0]
    assert quick("train_prune.py", *flags, "--output_dir", tmp_path)[0] == 0
    shared, alone = (torch.load(p, weights_only=True) for p in saved_models(tmp_path))
    torch.testing.assert_close(shared["state_dict"], alone["state_dict"], rtol=0, atol=1e-6)
    assert shared["metrics"]["train_loss"] == pytest.approx(alone["metrics"]["train_loss"])
    for name in ("train_accuracy", "test_accuracy"):
        assert shared["metrics"][name] == alone["metrics"][name]


def test_all_processes_evaluate_with_the_running_statistics_of_the_main_one(tmp_path):
    done = running_means_after_evaluation(2, tmp_path)
    assert done.out == ["0.0\n", "0.0\n"], done.err


def saved_models(folder):
    """That of several processes first."""
    return sorted((folder / "saved_models").glob("*.pt"), key=lambda p: "processes" not in p.name)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--data", "mnist", "--data_dir", "/nowhere"), "mnist"),
        pytest.param(
            ("--gpu", 0),
            "--gpu 0: PyTorch finds no CUDA device",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU"),
        ),
        (("--sync_bn",), "--sync_bn: is for several processes of torchrun, on GPUs"),
        (("--processes", 4), "--processes 4: train_prune.py has 2; start as many by torchrun"),
    ],
)
def test_bad_input_is_told_once_and_ends_all_processes(flags, message, tmp_path):
    done = train_with(2, [*FLAGS, *flags], tmp_path)
    assert done.status == [2, 2]
    assert_refused((2, done.out[0], done.err[0]), message)
    assert (done.out[1], done.err[1]) == ("", "")


def test_processes_without_torchrun_are_refused(quick, tmp_path):
    result = quick("train_prune.py", *FLAGS, "--processes", 2, "--output_dir", tmp_path)
    assert_refused(result, "--processes 2: train_prune.py has 1; start as many by torchrun")


def test_a_run_of_one_process_keeps_its_name():
    name = Config(**SHORT).run_name
    assert "processes" not in name and "sync_bn" not in name
    assert Config(**SHORT, processes=2).run_name == f"{name}_processes=2"


@settings(max_examples=30)
@given(st.integers(0, 100), st.integers(1, 9))
def test_parts_are_even_and_cover_all(count, size):
    covered = []
    for rank in range(size):
        mine = range(count)[World(rank, size).part(count)]
        covered += mine
        assert len(mine) in (count // size, -(-count // size))
    assert covered == list(range(count))
