"""The table and the picture of a training."""

import pytest
import torch
from runs import DIGITS, FLAGS, RUN, files_in, read_csv

from utils.process.errors import RunError
from utils.settings.config import Config
from utils.train import history
from utils.train.history import History

COLUMNS = [
    "epoch",
    "loss",
    "train_accuracy",
    "test_accuracy",
    "lr",
    "seconds",
    "effective_weight_decay",
]


def table_in(folder):
    (path,) = (p for p in files_in(folder / "saved_logs") if p.suffix == ".csv")
    return read_csv(path)


def test_the_table_has_a_row_for_each_epoch(trained):
    rows = table_in(trained)
    metrics = torch.load(trained / "saved_models" / f"{RUN}.pt", weights_only=True)["metrics"]
    assert [list(row) for row in rows] == [COLUMNS] * 2
    assert [row["epoch"] for row in rows] == ["1", "2"]
    for column, name in zip(COLUMNS[1:5], metrics, strict=False):
        assert [float(row[column]) for row in rows] == pytest.approx(metrics[name], rel=1e-5)
    assert all(0 < float(row["seconds"]) < 60 for row in rows)


def test_the_effective_weight_decay_is_told_for_sfw_alone(quick, trained, tmp_path):
    rows = table_in(trained)
    assert all(0 < float(row["effective_weight_decay"]) < 1 for row in rows)
    log = (trained / f"saved_logs/SFW_one_shot_prune/{RUN}.log").read_text()
    for row in rows:
        expected = f"Epoch: {row['epoch']} Mean_Alpha: {row['effective_weight_decay']}\n"
        assert f"Effective_Weight_Decay {expected}" in log
    folder = tmp_path / "sgd"
    flags = (*DIGITS, "--optimizer", "SGD", "--output_dir", folder)
    assert "effective weight decay" not in quick("train_prune.py", *flags)[1]
    assert list(table_in(folder)[0]) == COLUMNS[:-1]


def test_epochs_before_a_resume_file_of_an_earlier_version_have_gaps(quick, stopped):
    saved = torch.load(stopped.resume, weights_only=True)
    del saved["seconds"], saved["metrics"]["lr"], saved["metrics"]["effective_weight_decay"]
    torch.save(saved, stopped.resume)
    assert quick("train_prune.py", *FLAGS, "--output_dir", stopped.output_dir)[0] == 0
    rows = read_csv(stopped.train_table)
    assert len(rows) == 5 and all(row["loss"] for row in rows)
    assert [bool(row["lr"] and row["seconds"]) for row in rows] == [False] * 2 + [True] * 3


@pytest.fixture
def drawn(monkeypatch):
    """The number of epochs in each picture that History.draw draws, which takes 0.4 s of `now`."""
    drawn, now = [], [0.0]

    def draw(path, table, heading):
        drawn.append(len(table["epoch"]))
        now[0] += 0.4

    monkeypatch.setattr(history, "plot_training", draw)
    monkeypatch.setattr(history.time, "monotonic", lambda: now[0])
    return drawn, now


@pytest.mark.parametrize(
    ("seconds", "expected"), [(60, [1, 2, 3, 4, 5, 6]), (4, [5, 6]), (1, [6]), (0.1, [6])]
)
def test_drawing_takes_a_small_share_of_the_time_and_the_last_epoch_is_drawn(
    seconds, expected, drawn
):
    pictures, now = drawn
    epochs = History(Config(epoch_num=6))
    for _ in range(6):
        now[0] += seconds
        for values in epochs.metrics.values():
            values.append(1.0)
        epochs.seconds.append(seconds)
        epochs.draw()
    assert pictures == expected


def test_a_picture_that_cannot_be_written_ends_no_run(quick, tmp_path, monkeypatch):
    def fail(*_):
        raise RunError("cannot write the picture")

    monkeypatch.setattr(history, "plot_training", fail)
    status, _, err = quick("train_prune.py", *DIGITS, "--output_dir", tmp_path)
    assert status == 0
    assert err == "warning: cannot write the picture; training goes on without that picture\n"
    assert len(table_in(tmp_path)) == 2
