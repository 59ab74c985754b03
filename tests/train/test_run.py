"""A training run that nobody watches, that learns nothing, or that has a shorter sibling."""

import re
import subprocess
import sys

import torch
from runs import DIGITS, ROOT, RUN

from constraints import KSparsePolytope
from utils.train import checkpointing
from utils.train.checkpointing import Checkpointer

SAVE_SECONDS = checkpointing.SAVE_SECONDS  # before a fixture saves every epoch


def command(folder):
    return [sys.executable, str(ROOT / "train_prune.py"), *DIGITS, "--output_dir", str(folder)]


def weights(folder):
    return torch.load(folder / "saved_models" / f"{RUN}.pt", weights_only=True)["state_dict"]


def assert_same_weights(folder, other):
    for name, values in weights(other).items():
        assert torch.equal(weights(folder)[name], values)


def test_training_goes_on_when_the_reader_of_its_output_has_gone(tmp_path, trained):
    process = subprocess.Popen(
        command(tmp_path / "unwatched"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    process.stdout.close()  # as `head` does, here before the first line
    err = process.stderr.read()
    assert process.wait() == 0
    assert err.startswith("warning: standard output cannot be written (Broken pipe)")
    assert err.count("\n") == 1
    assert_same_weights(tmp_path / "unwatched", trained)


def test_a_test_goes_on_when_the_reader_of_its_output_has_gone(trained):
    flags = [*DIGITS, "--ratios", "0", "0.5", "--output_dir", str(trained)]
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "test_prune.py"), *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    process.stdout.close()
    assert process.stderr.read().startswith("warning: standard output cannot be written")
    assert process.wait() == 0
    assert (trained / "saved_logs" / "SFW_prune_test" / f"{RUN}_ratios=0,0.5.csv").is_file()


def test_training_goes_on_with_standard_error_closed(tmp_path, trained):
    line = " ".join(["exec", *command(tmp_path / "unwatched"), "2>&-"])
    process = subprocess.run(["sh", "-c", line], capture_output=True, text=True)
    assert process.returncode == 0
    assert "Epoch 2/2" in process.stdout
    assert_same_weights(tmp_path / "unwatched", trained)


def test_a_run_that_ends_far_above_the_loss_of_guessing_warns(quick, tmp_path):
    flags = ("--optimizer", "SGD", "--constraint", "unconstraints", "--mode", "None", "--lr", "50")
    status, _, err = quick("train_prune.py", *DIGITS, *flags, "--output_dir", tmp_path)
    assert status == 0
    assert err.startswith("warning: the training has probably diverged: its loss is ")
    assert "guessing has 2.303; lower --lr" in err


def test_a_run_of_sfw_begins_with_how_much_of_its_regions_the_network_fills(quick, trained):
    _, out, _ = quick("train_prune.py", *DIGITS, "--resume", "never", "--output_dir", trained)
    log = (trained / "saved_logs" / "SFW_one_shot_prune" / f"{RUN}.log").read_text()
    _, largest, tensor, mean = log.splitlines()[1].split(": ")
    largest, tensor = largest.split()[0], tensor.split()[0]
    assert f"Gauge: the weights fill {mean} of their regions on average" in out
    assert f"at most {largest} ({tensor})" in out
    # Uniform entries, of which K is 5 %, at tau 15: (1 / 2) / (15 sqrt(0.05 / 3)).
    assert 0.25 < float(mean) <= float(largest) < 0.27


def test_frozen_parameters_are_neither_in_the_gauge_nor_looked_at_for_what_is_not_finite(
    quick, tmp_path
):
    flags = (*DIGITS[:2], "--arch", "own_networks:masks_alone", "--epoch_num", 1)
    status, out, _ = quick("train_prune.py", *flags, "--output_dir", tmp_path)
    largest, tensor = re.search(r"at most (\S+) \((\S+)\); a region", out).groups()
    assert status == 0 and float(largest) < 0.3 and tensor.startswith("2.")


def test_a_region_of_ones_own_without_a_gauge_and_sgd_report_none(quick, tmp_path, monkeypatch):
    flags = (*DIGITS[:4], "--epoch_num", "1", "--resume", "never", "--output_dir", tmp_path)
    assert "Gauge" not in quick("train_prune.py", *flags, "--optimizer", "SGD")[1]
    monkeypatch.setattr(KSparsePolytope, "gauge", None)
    assert "Gauge" not in quick("train_prune.py", *flags)[1]


def test_an_epoch_is_saved_when_half_a_minute_has_passed_and_so_is_the_last(
    quick, tmp_path, monkeypatch
):
    """A clock on which an epoch takes 12 seconds: every third is saved."""
    now, epochs_saved, save = [0.0], [], Checkpointer.save

    def noted(checkpoints, state):
        save(checkpoints, state)
        epochs_saved.append(state.recorder.epoch)

    def count(model):
        now[0] += 12.0
        return []

    monkeypatch.setattr(checkpointing, "SAVE_SECONDS", SAVE_SECONDS)
    monkeypatch.setattr(checkpointing.time, "monotonic", lambda: now[0])
    monkeypatch.setattr("utils.train.recording.not_finite", count)
    monkeypatch.setattr(Checkpointer, "save", noted)
    flags = ("--data", "digits", "--arch", "Mlp", "--epoch_num", "7", "--output_dir", tmp_path)
    assert quick("train_prune.py", *flags)[0] == 0
    assert epochs_saved == [0, 3, 6, 7]
