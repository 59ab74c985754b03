"""What --tensorboard writes, as TensorBoard's own reader sees it."""

import math

import pytest
import torch
from runs import DIGITS, FLAGS, SETTINGS, assert_refused, files_in, read_csv
from torch import nn

from utils.settings.config import Config
from utils.train.recording import HISTOGRAM, Board

pytest.importorskip("tensorboard")
from torch.utils.tensorboard import SummaryWriter


def read(folder):
    """What TensorBoard shows of a run: its scalars and its histograms, by epoch."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={"scalars": 0, "histograms": 0})
    events.Reload()
    tags = events.Tags()
    scalars = {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in tags["scalars"]}
    histograms = events.Histograms(HISTOGRAM) if tags["histograms"] else []
    return scalars, {e.step: e.histogram_value for e in histograms}


def assert_is_the_table(files, epochs):
    """The board has each of these epochs once, with the values of the table."""
    scalars, histograms = read(files.tensorboard)
    rows = read_csv(files.train_table)
    assert {"epoch", *scalars} == set(rows[0])
    for name, points in scalars.items():
        assert [step for step, _ in points] == epochs
        expected = [float(rows[epoch - 1][name]) for epoch in epochs]
        assert [value for _, value in points] == pytest.approx(expected, rel=1e-5)
    return list(histograms)


def train(quick, folder, *more):
    return quick("train_prune.py", *FLAGS, "--tensorboard", "--output_dir", folder, *more)


@pytest.fixture
def files(tmp_path):
    return Config(**SETTINGS, output_dir=tmp_path).files


def test_the_board_has_the_scalars_of_the_table_and_a_histogram_for_each_epoch(
    quick, tmp_path, files
):
    status, _, err = train(quick, tmp_path)
    assert (status, err) == (0, "")
    assert assert_is_the_table(files, [1, 2, 3, 4, 5]) == [1, 2, 3, 4, 5]
    state = torch.load(files.model, weights_only=True)["state_dict"]
    logs = torch.cat([p[p != 0].abs().log10() for p in state.values()])
    last = read(files.tensorboard)[1][5]
    assert (last.num, sum(last.bucket)) == (len(logs), len(logs))
    assert (last.min, last.max) == pytest.approx((logs.min().item(), logs.max().item()))
    for limit, below in zip(last.bucket_limit, torch.tensor(last.bucket).cumsum(0), strict=True):
        assert below == pytest.approx((logs < limit).sum(), abs=3)  # entries on an edge


def test_a_run_without_the_flag_writes_no_events_and_has_the_same_name(trained):
    assert not (trained / "saved_logs" / "tensorboard").exists()
    assert Config(tensorboard=True).run_name == Config().run_name


def test_epochs_that_were_not_saved_are_replaced_when_they_are_trained_again(
    quick, tmp_path, files, stop_after
):
    stop_after(2)
    assert train(quick, tmp_path)[0] == 143
    lost = Board(files.tensorboard)
    for epochs in (3, 4):  # as if the process had been killed before it saved these
        lost.add({"epoch": range(1, epochs + 1), "loss": [9.0] * epochs}, nn.Linear(2, 2))
    assert read(files.tensorboard)[0]["loss"][-1] == (4, 9.0)
    assert train(quick, tmp_path)[0] == 0
    assert assert_is_the_table(files, [1, 2, 3, 4, 5]) == [1, 2, 3, 4, 5]


def test_a_run_that_starts_over_leaves_nothing_of_the_former_one(quick, tmp_path, files):
    former = Board(files.tensorboard)
    for epochs in range(1, 8):
        former.add({"epoch": range(1, epochs + 1), "loss": [9.0] * epochs}, nn.Linear(2, 2))
    assert train(quick, tmp_path, "--resume", "never")[0] == 0
    assert assert_is_the_table(files, [1, 2, 3, 4, 5]) == [1, 2, 3, 4, 5]


def test_a_disk_that_takes_nothing_ends_no_run(quick, tmp_path, files, monkeypatch):
    flush, calls = SummaryWriter.flush, []

    def full_in_epoch_2(writer):
        calls.append(1)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        flush(writer)

    monkeypatch.setattr(SummaryWriter, "flush", full_in_epoch_2)
    status, _, err = train(quick, tmp_path)
    assert status == 0
    assert err == (
        f"warning: cannot write in {files.tensorboard} (No space left on device); it lacks"
        " epoch 2\n"
    )
    assert [step for step, _ in read(files.tensorboard)[0]["loss"]][-3:] == [3, 4, 5]


def test_a_folder_that_cannot_be_made_is_refused_before_work(quick, tmp_path):
    (tmp_path / "saved_logs").mkdir()
    (tmp_path / "saved_logs" / "tensorboard").write_text("a file")
    flags = (*DIGITS, "--tensorboard", "--output_dir", tmp_path)
    assert_refused(quick("train_prune.py", *flags), "--output_dir: cannot write in ")


def test_a_missing_requirement_is_refused_with_what_to_install(quick, tmp_path, monkeypatch):
    monkeypatch.setattr("utils.process.errors.find_spec", lambda name: None)
    result = train(quick, tmp_path)
    needs = "--tensorboard: needs tensorboard; pip install -r requirements-optional.txt"
    assert_refused(result, needs)
    assert files_in(tmp_path) == []


def test_a_network_whose_entries_are_all_zero_has_no_histogram(tmp_path):
    model = nn.Linear(2, 2)
    for p in model.parameters():
        nn.init.zeros_(p)
    Board(tmp_path).add({"epoch": [1], "loss": [math.log(10)]}, model)
    assert read(tmp_path) == ({"loss": [(1, pytest.approx(math.log(10)))]}, {})
