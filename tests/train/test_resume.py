"""Runs that were stopped or killed, and go on as if nothing had happened."""

import errno
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import contextmanager

import pytest
import torch
from processes import train_killed_at
from runs import DIGITS, FLAGS, ROOT, RUN, SETTINGS, assert_refused, flags_of, outcome

import train_prune
from utils.settings.config import Config
from utils.train.checkpointing import RunState

KILLS = int(os.environ.get("KILLS", 1))  # at random instants; more by hand


@pytest.mark.parametrize("epochs", [0, 5])
def test_a_stopped_run_ends_as_if_it_had_not_been(
    epochs, quick, tmp_path, stop_after, uninterrupted
):
    stop_after(epochs)
    status, _, err = quick("train_prune.py", *FLAGS, "--output_dir", tmp_path)
    message = f"error: stopped by SIGTERM; the same command goes on after epoch {epochs}\n"
    assert (status, err) == (143, message)
    status, out, err = quick("train_prune.py", *FLAGS, "--output_dir", tmp_path)
    assert (status, err) == (0, "")
    assert f"Going on after epoch {epochs} of 5 epochs" in out
    assert "SFW-Init" not in out  # it is not done again
    assert outcome(tmp_path) == uninterrupted


@pytest.mark.parametrize("steps", [30, 2 * 23])  # an epoch has 23
def test_a_run_stopped_within_an_epoch_goes_on_within_it(
    steps, quick, tmp_path, stop_within, uninterrupted
):
    calls = stop_within(steps, signal.SIGINT)
    status, _, err = quick("train_prune.py", *FLAGS, "--output_dir", tmp_path)
    epochs, rest = divmod(steps - 1, 23)
    assert status == 130
    assert err == (
        f"error: stopped by SIGINT; the same command goes on after epoch {epochs} and"
        f" {rest + 1} steps\n"
    )
    status, _, err = quick("train_prune.py", *FLAGS, "--output_dir", tmp_path)
    assert (status, err) == (0, "") and len(calls) == 5 * 23
    assert outcome(tmp_path) == uninterrupted


def test_the_comparison_sees_a_generator_that_was_not_restored(
    quick, stopped, monkeypatch, uninterrupted
):
    restore = RunState.restore

    def forgetful(self, saved, path):
        fresh = saved["batches"] | {"generator": torch.Generator().get_state()}
        restore(self, saved | {"batches": fresh}, path)

    monkeypatch.setattr(RunState, "restore", forgetful)
    assert quick("train_prune.py", *FLAGS, "--output_dir", stopped.output_dir)[0] == 0
    assert outcome(stopped.output_dir) != uninterrupted


def test_a_finished_run_is_not_trained_again(quick, trained):
    before = {path: path.read_bytes() for path in trained.rglob("*.*") if path.is_file()}
    flags = ("--data", "digits", "--arch", "Mlp", "--epoch_num", "2", "--output_dir", trained)
    status, out, _ = quick("train_prune.py", *flags)
    assert status == 0 and "Trained already; --resume never" in out
    assert {path: path.read_bytes() for path in before} == before
    status, out, _ = quick("train_prune.py", *flags, "--resume", "never")
    assert status == 0 and "Epoch 2/2" in out


def test_a_finished_model_in_a_folder_that_cannot_be_written_is_no_error(
    quick, trained, monkeypatch
):
    def refuse(*_, **__):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr("utils.process.writing.tempfile.TemporaryFile", refuse)
    status, out, err = quick("train_prune.py", *DIGITS, "--output_dir", trained)
    assert (status, err) == (0, "") and "Trained already" in out
    status, _, err = quick("train_prune.py", *DIGITS, "--lr", 0.5, "--output_dir", trained)
    assert status == 2 and "Read-only file system" in err


def test_a_model_that_another_process_finishes_meanwhile_is_not_trained_again(
    quick, trained, tmp_path, monkeypatch
):
    @contextmanager
    def finished_meanwhile(config):
        hidden.rename(model)
        yield

    model = trained / "saved_models" / f"{RUN}.pt"
    hidden = model.rename(tmp_path / "hidden.pt")
    monkeypatch.setattr("utils.train.checkpointing._own_files", finished_meanwhile)
    status, out, _ = quick("train_prune.py", *DIGITS, "--output_dir", trained)
    assert status == 0 and "Trained already" in out and "Epoch" not in out


def test_a_run_that_was_stopped_in_its_first_epoch_is_tested_as_it_is(quick, tmp_path, stop_after):
    stop_after(0)
    quick("train_prune.py", *FLAGS, "--output_dir", tmp_path)
    (resume,) = tmp_path.rglob("*.resume.pt")
    flags = ("--model_path", resume, "--output_dir", tmp_path, "--ratios", 0)
    status, out, err = quick("test_prune.py", *flags)
    assert (status, err) == (0, "") and "0%" in out


def test_resume_with_other_versions_says_that_results_differ(quick, stopped):
    saved = torch.load(stopped.resume, weights_only=True)
    torch.save(saved | {"versions": {"torch": "1.0"}}, stopped.resume)
    status, _, err = quick("train_prune.py", *FLAGS, "--output_dir", stopped.output_dir)
    assert status == 0 and "was saved with other versions of Python or its libraries" in err


def test_resume_never_starts_over(quick, stopped, uninterrupted):
    flags = (*FLAGS, "--output_dir", stopped.output_dir, "--resume", "never")
    status, out, _ = quick("train_prune.py", *flags)
    assert status == 0 and "Going on" not in out
    assert outcome(stopped.output_dir)[:3] == uninterrupted[:3]  # the log names --resume


def test_a_resume_file_is_at_most_twice_the_model(quick, stopped):
    size = stopped.resume.stat().st_size
    quick("train_prune.py", *FLAGS, "--output_dir", stopped.output_dir)
    assert size <= 2.1 * stopped.model.stat().st_size


def test_a_log_that_is_gone_is_told_and_ends_no_run(quick, stopped):
    stopped.train_log.unlink()
    status, _, err = quick("train_prune.py", *FLAGS, "--output_dir", stopped.output_dir)
    assert status == 0 and err.startswith(f"warning: {stopped.train_log}: is gone or changed")
    epochs = [
        line.split()[2].strip(":")
        for line in stopped.train_log.read_text().splitlines()
        if line.startswith("Test Epoch")
    ]
    assert epochs == ["3", "4", "5"]


@pytest.mark.parametrize(
    ("name", "ending", "at", "when"),
    [
        ("fsync", ".resume.pt", 2, "before"),  # it is written, but to a temporary name
        ("replace", ".resume.previous.pt", 1, "after"),  # the former has made room for the newest
        ("replace", ".pt", 1, "after"),  # the model is there, and the resume file too
    ],
)
def test_a_run_killed_as_it_saves_ends_as_if_it_had_not_been(
    name, ending, at, when, quick, tmp_path, uninterrupted
):
    ending = Config(**SETTINGS).run_name + ending
    flags = [*FLAGS, "--output_dir", tmp_path]
    assert train_killed_at(name, ending, at, when, flags) == -signal.SIGKILL
    status, _, err = quick("train_prune.py", *flags)
    assert (status, err) == (0, "")
    assert outcome(tmp_path) == uninterrupted


LONG = SETTINGS | {"epoch_num": 12, "sfw_init_iters": 10}
LONG_FLAGS = flags_of(LONG)


SAVING = """
import sys, train_prune, utils.train.checkpointing
utils.train.checkpointing.SAVE_SECONDS = 0
sys.exit(train_prune.main(sys.argv[1:]))
"""


def start(folder):
    """The process of a run that saves every epoch."""
    command = [sys.executable, "-c", SAVING, *LONG_FLAGS, "--output_dir", folder]
    return subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_a_run_killed_at_random_instants_ends_as_if_it_had_not_been(quick, tmp_path):
    """`KILLS=50 pytest -k random_instants` is the long form."""
    whole = tmp_path / "whole"
    began = time.monotonic()
    assert start(whole).wait() == 0
    expected = outcome(whole, LONG)
    seconds, killed, runs = time.monotonic() - began, 0, 0
    instants = random.Random(time.time_ns())
    while killed < KILLS:
        runs += 1
        folder, status = tmp_path / str(runs), None
        while status != 0:
            process = start(folder)
            try:
                status = process.wait(instants.uniform(0.4, 1) * seconds)
            except subprocess.TimeoutExpired:
                process.kill()
                status = process.wait()
                killed += 1
        assert process.stderr.read() == ""
        assert outcome(folder, LONG) == expected, f"run {runs}"
    print(f"killed {killed} times in {runs} runs")


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_a_signal_ends_the_step_and_says_how_to_go_on(number, status, tmp_path):
    process = start(tmp_path)
    for line in process.stdout:
        if line.startswith("Epoch 2/"):
            break
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == status
    name = signal.Signals(number).name
    assert err.startswith(f"error: stopped by {name}; the same command goes on after epoch ")
    assert err.count("\n") == 1
    files = Config(**LONG, output_dir=tmp_path).files
    assert files.resume.exists() and not files.lock.exists()


def test_a_signal_after_the_last_step_is_told_once_the_model_is_complete(
    quick, tmp_path, monkeypatch
):
    stop = lambda *_: os.kill(os.getpid(), signal.SIGTERM)  # noqa: E731
    monkeypatch.setattr(train_prune, "note_stale_statistics", stop)
    status, _, err = quick("train_prune.py", *DIGITS, "--output_dir", tmp_path)
    assert (status, err) == (143, "error: stopped by SIGTERM; the model is complete\n")
    assert (tmp_path / "saved_models" / f"{RUN}.pt").is_file()


def test_a_second_run_of_the_same_settings_is_refused(quick, tmp_path):
    process = start(tmp_path)
    for line in process.stdout:
        if line.startswith("Epoch 1/"):
            break
    process.send_signal(signal.SIGSTOP)  # it shall not end too early
    result = quick("train_prune.py", *LONG_FLAGS, "--output_dir", tmp_path)
    process.kill()
    process.wait()
    assert_refused(result, ": another process is training with these settings")
    flags = [*LONG_FLAGS, "--output_dir", tmp_path, "--resume", "never"]
    status, _, err = quick("train_prune.py", *flags)  # a lock dies with its owner
    assert (status, err) == (0, "")
