"""What the scripts refuse, each in one line, before anything is written."""

import math
import resource
import signal

import numpy as np
import pytest
import torch
from runs import (
    DIGITS,
    RUN,
    SCRIPTS,
    assert_refused_unchanged,
    files_in,
    result_of,
)
from torch import nn

BAD_FLAGS = {
    "--data nothing": "--data nothing: choose one of cifar10, cifar100, mnist",
    "--arch nothing": "--arch nothing: choose one of ResNet18",
    "--optimizer Adam": "--optimizer Adam: choose one of SFW, SGD",
    "--constraint l7": "--constraint l7: choose one of k_sparse_constraints",
    "--lr_scheme up": "--lr_scheme up: choose one of dynamic_change",
    "--mode size": "--mode size: choose one of initialization",
    "--rescale size": "--rescale size: choose one of gradient",
    "--precision fp8": "--precision fp8: choose one of fp32, bf16",
    "--image_size 0": "--image_size 0: must be at least 1 and at most 4096",
    "--image_size 48 --arch VGG16": "--image_size 48: VGG16 takes images of 32; give that",
    "--augment rotate": "--augment rotate: choose one of none, crop_flip, resized_crop_flip",
    "--color_channel 2": "--color_channel 2: choose one of 1, 3",
    "--sfw_init 2": "--sfw_init 2: choose one of 0, 1",
    "--sfw_init_iters 0": "--sfw_init_iters 0: must be at least 1",
    "--sfw_init 1 --optimizer SGD --constraint unconstraints": "--sfw_init 1: needs a bounded",
    "--optimizer SGD --sfw_init 1": "--sfw_init 1: needs a bounded region",
    "--optimizer SGD --tau 5": "--tau 5: is of a region, and SGD has none unless --constraint",
    "--lr 0": "--lr 0: must be greater than 0",
    "--lr -0.1": "--lr -0.1: must be greater than 0",
    "--lr 1.01": "--lr 1.01: SFW takes a learning rate of at most 1",
    "--lr nan": "--lr nan: must be greater than 0",
    "--lr inf --optimizer SGD": "--lr inf: must be greater than 0",
    "--lr much": "--lr: invalid float value: 'much'",
    "--momentum 1": "--momentum 1: must be at least 0 and less than 1",
    "--momentum -0.1": "--momentum -0.1: must be",
    "--weight_decay -1": "--weight_decay -1: must be at least 0",
    "--k_frac 0": "--k_frac 0: must be greater than 0 and at most 1",
    "--k_frac 1.5": "--k_frac 1.5: must be greater than 0 and at most 1",
    "--k_sparseness 0": "--k_sparseness 0: must be at least 1",
    "--k_sparseness 1.5": "--k_sparseness: invalid int value: '1.5'",
    "--tau 0": "--tau 0: must be greater than 0",
    "--tau -3": "--tau -3: must be greater than 0",
    "--train_batchsize 0": "--train_batchsize 0: must be at least 1",
    "--test_batchsize 0": "--test_batchsize 0: must be at least 1",
    "--epoch_num 0": "--epoch_num 0: must be at least 1",
    "--epoch_num 99999999999": "--epoch_num 99999999999: must be at least 1 and at most",
    "--seed -1": "--seed -1: must be at least 0",
    "--gpu -2": "--gpu -2: must be at least -1",
    "--gpu 99": "--gpu 99: PyTorch finds",
    "--constraint unconstraints": "--constraint unconstraints: SFW needs a bounded region",
    "--mode None": "--mode None: a region needs a size; choose initialization",
    "--epochs 3": "unrecognized arguments: --epochs 3",
    "--epoch 3": "unrecognized arguments: --epoch 3",
    "--lr": "--lr: expected one argument",
    "--seed 0 1 2": "unrecognized arguments: 1 2; --help lists the flags",
    "--compile yes": "unrecognized arguments: yes",
}


def assert_failed(result, message, warnings=0):
    status, _, err = result
    assert status == 1
    *before, last = err.splitlines()
    assert last.startswith("error: ") and message in last
    assert [line[:9] for line in before] == ["warning: "] * warnings


@pytest.mark.parametrize("flags", BAD_FLAGS)
def test_bad_flags_are_refused_in_one_line(flags, quick, tmp_path):
    result = quick("train_prune.py", *DIGITS, "--output_dir", tmp_path, *flags.split())
    assert_refused_unchanged(result, BAD_FLAGS[flags], tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_tilde_that_the_shell_left_is_the_home_folder(quick, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    status, _, err = quick("train_prune.py", *DIGITS, "--output_dir=~/out")
    assert status == 0, err
    assert (tmp_path / "out" / "saved_models" / f"{RUN}.pt").is_file()
    path = f"--model_path=~/out/saved_models/{RUN}.pt"
    assert quick("test_weight_distribution.py", path, "--output_dir=~/out")[0] == 0


@pytest.mark.parametrize("name", SCRIPTS)
def test_several_processes_on_one_device_are_refused(name, quick, trained, monkeypatch):
    """As torchrun starts them; one process works as without it."""
    before = files_in(trained)
    monkeypatch.setenv("WORLD_SIZE", "2")
    flags = (*DIGITS, "--resume", "never", "--output_dir", trained)
    message = "WORLD_SIZE=2: "
    assert_refused_unchanged(quick(name, *flags), message, trained, before)
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert quick(name, *flags)[0] == 0


def test_pruned_steps_that_never_come_are_refused(quick, tmp_path):
    flags = [*DIGITS[:-1], 1, "--pruned_steps", 0.01, "--output_dir", tmp_path]
    result = quick("train_prune.py", *flags)
    assert_refused_unchanged(result, "--pruned_steps: no step of this training", tmp_path)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_refused(quick, tmp_path):
    result = quick("train_prune.py", *DIGITS, "--gpu", 0, "--output_dir", tmp_path)
    assert_refused_unchanged(
        result, "--gpu 0: PyTorch finds no CUDA device; --gpu -1 runs", tmp_path
    )


def test_a_data_set_that_is_absent_offline_is_refused(script, tmp_path):
    done = script(
        "train_prune.py", "--data", "mnist", "--data_dir", tmp_path / "d", "--output_dir", tmp_path
    )
    assert_refused_unchanged(
        result_of(done), "is absent, incomplete or damaged, and could not be downloaded", tmp_path
    )


def test_damaged_data_are_refused(quick, tmp_path, write_npz):
    path = write_npz(tmp_path, "mnist", y_test=np.full(20, 11))
    flags = ("--data", "mnist", "--data_dir", tmp_path, "--output_dir", tmp_path)
    message = "mnist.npz: y_test must hold labels 0 ... 9"
    assert_refused_unchanged(quick("train_prune.py", *flags), message, tmp_path, [path])


@pytest.mark.parametrize("flag", ["--output_dir", "--data_dir", "--model_path"])
def test_an_over_long_name_is_refused(flag, quick, tmp_path):
    flags = ("--data", "mnist", "--arch", "Mlp", "--output_dir", tmp_path, flag, "x" * 300)
    name = "test_prune.py" if flag == "--model_path" else "train_prune.py"
    assert_refused_unchanged(quick(name, *flags), flag, tmp_path)


@pytest.mark.parametrize("name", SCRIPTS)
def test_an_output_folder_that_cannot_be_written_is_refused(name, quick, trained, tmp_path):
    flags = [*DIGITS, "--output_dir", trained / "file"]
    if name != "train_prune.py":
        flags += ["--model_path", trained / "saved_models" / f"{RUN}.pt"]
    (trained / "file").write_text("not a folder")
    before = files_in(trained)
    result = quick(name, *flags)
    assert_refused_unchanged(
        result, f"--output_dir: cannot write in {trained / 'file'}", trained, before
    )


def test_a_folder_in_place_of_an_output_file_is_refused(quick, trained):
    path = trained / "saved_logs" / "SFW_prune_test" / f"{RUN}.csv"
    path.mkdir(parents=True)
    result = quick("test_prune.py", *DIGITS, "--output_dir", trained)
    assert_refused_unchanged(result, f"{RUN}.csv is a folder", trained, files_in(trained))


def test_a_full_disk_ends_the_run_in_one_line_and_keeps_the_old_model(quick, trained, fill_disk):
    path = trained / "saved_models" / f"{RUN}.pt"
    before = path.read_bytes()
    fill_disk()
    result = quick("train_prune.py", *DIGITS, "--output_dir", trained, "--resume", "never")
    assert_failed(result, "No space left on device", warnings=3)
    assert path.read_bytes() == before
    assert not list(trained.rglob("*.tmp"))


def test_a_model_that_does_not_fit_ends_the_run_in_one_line(quick, tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(
        resource.RLIMIT_FSIZE, (60_000, limits[1])
    )  # log and table fit, the model not
    try:
        result = quick("train_prune.py", *DIGITS, "--output_dir", tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    message = f"cannot write {tmp_path}/saved_models/{RUN}.pt (File too large)"
    assert_failed(result, message, warnings=3)
    assert [path.suffix for path in files_in(tmp_path)] == [".csv", ".log"]


def test_a_loss_that_is_not_finite_ends_the_run_in_one_line_and_saves_no_model(quick, tmp_path):
    flags = ("--optimizer", "SGD", "--constraint", "unconstraints", "--lr", 1e9)
    result = quick("train_prune.py", *DIGITS, *flags, "--output_dir", tmp_path)
    assert_failed(result, "Epoch 1/2, step 3: the loss is nan, the last finite one was 8.9")
    assert result[2].endswith("; lower --lr or --weight_decay\n")  # there is no region
    assert [path.suffixes[-2:] for path in tmp_path.rglob("*.pt")] == [[".resume", ".pt"]]


def test_an_sfw_init_that_diverges_ends_the_run_in_one_line(quick, tmp_path, monkeypatch):
    def spoil(model, constraints):  # no settings that pass the checks lead there
        nn.init.constant_(model.linear_layer_2.weight, math.nan)

    monkeypatch.setattr("utils.train.trials.make_feasible", spoil)
    result = quick("train_prune.py", *DIGITS, "--sfw_init", 1, "--output_dir", tmp_path)
    assert_failed(result, "SFW-Init: the loss is nan")
    assert files_in(tmp_path) == []


def test_training_goes_on_when_standard_output_is_full_and_says_so_in_one_line(script, tmp_path):
    with open("/dev/full", "w") as full:
        done = script("train_prune.py", *DIGITS, "--output_dir", tmp_path, stdout=full)
    assert done.returncode == 0
    assert done.stderr.startswith("warning: standard output cannot be written (No space left")
    assert done.stderr.count("\n") == 1
    assert (tmp_path / "saved_models" / f"{RUN}.pt").is_file()
