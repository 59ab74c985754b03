"""Resume files that are damaged or do not fit, and disks that take nothing."""

import os
import pickle
import shutil
import zipfile

import pytest
import torch
from runs import FLAGS, assert_refused, outcome

from utils.train.checkpointing import Checkpointer


def go_on(quick, stopped):
    return quick("train_prune.py", *FLAGS, "--output_dir", stopped.output_dir)


def change(path, **items):
    torch.save(torch.load(path, weights_only=True) | items, path)


def flip_a_byte(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x55
    path.write_bytes(content)


def make_a_folder(path):
    path.unlink()
    path.mkdir()


def compress(path):
    with zipfile.ZipFile(path) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, record in records.items():
            archive.writestr(name, record)


class Runs:
    def __reduce__(self):
        return os.system, ("touch /tmp/a_resume_file_ran_code",)


def of_another_network(path):
    state = torch.load(path, weights_only=True)["state_dict"]
    change(path, state_dict={name: torch.zeros(3) for name in state})


def reorder(path):
    optimizer = torch.load(path, weights_only=True)["optimizer"]
    optimizer["param_groups"][0]["param_names"].reverse()
    change(path, optimizer=optimizer)


def of_other_data(path):
    recorder = torch.load(path, weights_only=True)["recorder"]
    recorder["metrics"]["sha256"]["train"] = "0"
    change(path, recorder=recorder)


DAMAGE = {
    "empty": (lambda path: path.write_bytes(b""), "is no model file"),
    "truncated": (lambda path: path.write_bytes(path.read_bytes()[:5000]), "is truncated"),
    "flipped": (flip_a_byte, "is damaged: some of its bytes have changed"),
    "compressed": (compress, "holds compressed data"),
}
MISFITS = {
    "folder": (make_a_folder, "is a folder, not a file"),
    "text": (lambda path: path.write_text("text"), "is no model file"),
    "pickle": (lambda path: path.write_bytes(pickle.dumps(Runs())), "is no model file"),
    "code": (lambda path: torch.save(Runs(), path), "is no model file"),
    "list": (lambda path: torch.save([1], path), "is no model file"),
    "model": (lambda path: torch.save({"state_dict": {}}, path), "is no resume file"),
    "version": (lambda path: change(path, format=1), "is no resume file of this version"),
    "settings": (lambda path: change(path, config={"lr": 0.5}), "is of --lr 0.5, not 1"),
    "device": (lambda path: change(path, device="cuda"), "another kind of device"),
    "network": (of_another_network, "does not fit this run"),
    "reordered": (reorder, "or of these in another order"),
    "batches": (lambda path: change(path, batches={"taken": 1}), "does not fit this run"),
    "data": (of_other_data, "its data are others than those in --data_dir"),
    "optimizer": (lambda path: change(path, optimizer={}), "does not fit this run"),
}


@pytest.mark.parametrize("case", [*DAMAGE, *MISFITS])
def test_a_resume_file_that_cannot_be_used_is_named_and_kept(case, quick, stopped):
    spoil, message = (DAMAGE | MISFITS)[case]
    stopped.previous_resume.unlink()
    spoil(stopped.resume)
    before = stopped.resume.is_dir() or stopped.resume.read_bytes()
    status, out, err = go_on(quick, stopped)
    assert out.count("\n") <= 1  # the heading, at most
    assert_refused((status, "", err), message)
    assert str(stopped.resume) in err
    assert before == (stopped.resume.is_dir() or stopped.resume.read_bytes())
    assert not os.path.exists("/tmp/a_resume_file_ran_code")


DAMAGE |= {
    "zeroed": (lambda path: path.write_bytes(bytes(5000)), "is no model file, or a damaged one"),
    "text": (lambda path: path.write_text("text"), "is no model file, or a damaged one"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_the_file_before_is_used_when_the_newest_is_damaged(case, quick, stopped, uninterrupted):
    spoil, message = DAMAGE[case]
    spoil(stopped.resume)
    damaged = stopped.resume.read_bytes()
    status, out, err = go_on(quick, stopped)
    assert status == 0 and "Going on after epoch 1 of 5" in out
    assert err.startswith("warning: ") and message in err and err.count("\n") == 1
    assert stopped.resume.with_suffix(".damaged.pt").read_bytes() == damaged
    assert outcome(stopped.output_dir) == uninterrupted


def test_a_run_between_two_files_goes_on_from_the_former(quick, stopped, uninterrupted):
    stopped.resume.unlink()
    status, out, err = go_on(quick, stopped)
    assert (status, err) == (0, "") and "Going on after epoch 1 of 5" in out
    assert outcome(stopped.output_dir) == uninterrupted


def test_a_resume_file_is_tested_like_a_model_under_a_name_of_its_own(quick, stopped):
    flags = ("--model_path", stopped.resume, "--output_dir", stopped.output_dir)
    status, _, err = quick("test_prune.py", *flags, "--save_pruned", 0.5)
    assert (status, err) == (0, "")
    written = [*stopped.output_dir.rglob("SFW_prune_test/*"), *stopped.output_dir.rglob("*.npz")]
    assert len(written) == 5 and all(".resume_sha256=" in path.name for path in written)


@pytest.mark.parametrize("script", ["test_prune.py", "test_weight_distribution.py"])
def test_a_test_of_a_run_that_was_stopped_names_the_file_to_go_on_from(script, quick, stopped):
    stopped.previous_resume.unlink()
    result = quick(script, *FLAGS, "--output_dir", stopped.output_dir)
    assert_refused(result, f"goes on, and --model_path {stopped.resume} tests what it has reached")
    stopped.resume.rename(stopped.previous_resume)  # between the two renames of a save
    result = quick(script, *FLAGS, "--output_dir", stopped.output_dir)
    assert_refused(result, f"--model_path {stopped.previous_resume} tests what it has reached")


def test_a_run_that_goes_on_with_another_number_of_threads_says_so(quick, stopped, monkeypatch):
    threads = torch.get_num_threads()
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads + 1)
    status, _, err = go_on(quick, stopped)
    assert status == 0
    assert err.startswith(f"note: {stopped.resume}: is of a run with {threads} threads, and this")
    assert err.count("\n") == 1 and f"OMP_NUM_THREADS={threads} keeps them" in err


def test_a_disk_that_is_full_for_a_while_costs_nothing(quick, tmp_path, fill_disk, uninterrupted):
    fill_disk(lambda n: n == 5)  # the log, after the scales and three files
    status, _, err = quick("train_prune.py", *FLAGS, "--output_dir", tmp_path)
    assert status == 0
    assert err.count("\n") == 1 and "No space left on device" in err
    assert err.endswith("; the next save tries again\n")
    assert outcome(tmp_path) == uninterrupted
    assert not list(tmp_path.rglob("*.tmp"))


@pytest.mark.parametrize("spoil", ["vanished", "file", "folder"])
def test_a_folder_that_changes_in_mid_run_is_told_or_made_anew(spoil, quick, tmp_path, monkeypatch):
    save, models = Checkpointer.save, tmp_path / "saved_models"

    def spoil_and_save(checkpoints, state):
        if state.recorder.epoch == 3:
            if spoil == "folder":
                checkpoints.newest.unlink()
                (checkpoints.newest / "inside").mkdir(parents=True)
            else:
                shutil.rmtree(models)
            if spoil == "file":
                models.write_text("in the way")
        if state.recorder.epoch == 4 and spoil == "file":
            models.unlink()
        save(checkpoints, state)

    monkeypatch.setattr(Checkpointer, "save", spoil_and_save)
    status, _, err = quick("train_prune.py", *FLAGS, "--output_dir", tmp_path)
    assert "Traceback" not in err
    told = {"vanished": 0, "file": 1, "folder": 3}[spoil]  # each save
    assert [line[:9] for line in err.splitlines()] == ["warning: "] * told
    assert status == 0 and len(list(models.glob("*epoch_num=5*init=1.pt"))) == 1


def test_a_run_that_starts_over_and_is_killed_leaves_nothing_of_the_former_one(
    quick, stopped, monkeypatch
):
    former = stopped.resume.read_bytes()
    monkeypatch.setattr("train_prune.train_epochs", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        quick("train_prune.py", *FLAGS, "--resume", "never", "--output_dir", stopped.output_dir)
    assert stopped.resume.read_bytes() != former and not stopped.previous_resume.exists()


def test_a_model_is_not_tested_while_a_stopped_run_is_to_replace_it(quick, stopped):
    stopped.model.write_bytes(stopped.resume.read_bytes())
    result = quick("test_prune.py", *FLAGS, "--output_dir", stopped.output_dir)
    assert_refused(result, "the training was stopped before its end; train_prune.py with the same")


def test_what_a_killed_write_left_is_removed(quick, stopped):
    leftover = stopped.resume.with_name(f".{stopped.resume.name}.12345.tmp")
    leftover.write_bytes(b"half")
    go_on(quick, stopped)
    assert not leftover.exists()


def test_a_picture_that_cannot_be_written_does_not_lose_sfw_init(quick, tmp_path, fill_disk):
    fill_disk(lambda n: n == 1)
    status, _, err = quick("train_prune.py", *FLAGS, "--output_dir", tmp_path)
    assert status == 0 and "scales.png" in err and err.startswith("warning: ")


def test_a_disk_that_is_full_from_the_start_ends_the_run_with_an_error(quick, tmp_path, fill_disk):
    fill_disk()
    status, _, err = quick("train_prune.py", *FLAGS, "--output_dir", tmp_path)
    *warnings, error = err.splitlines()
    assert status == 1 and all(line.startswith("warning: cannot write ") for line in warnings)
    assert error.endswith("No space left on device); the same command starts again, once it can")


def test_a_full_disk_after_a_complete_save_ends_the_run_at_once(
    quick, tmp_path, fill_disk, uninterrupted
):
    fill_disk(lambda n: n == 20)  # the model: after the scales, and six times three files
    status, _, err = quick("train_prune.py", *FLAGS, "--output_dir", tmp_path)
    assert status == 1 and err.count("\n") == 1
    assert err.endswith("the same command goes on after epoch 5, once it can\n")
    assert "saved_models" in err and "No space left on device" in err
    status, out, _ = quick("train_prune.py", *FLAGS, "--output_dir", tmp_path)
    assert status == 0 and "Going on after epoch 5 of 5 epochs" in out
    assert outcome(tmp_path) == uninterrupted
