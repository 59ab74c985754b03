"""What is recorded of steps and epochs; the table and the picture of a training."""

import math

import pytest
import torch
from runs import DIGITS, RUN, files_in, read_csv
from torch import nn

from utils.datasets.batches import Batches
from utils.process.errors import RunError
from utils.settings.config import Config
from utils.train import recording
from utils.train.distributed import World
from utils.train.recording import Recorder

COLUMNS = [
    "epoch",
    "loss",
    "train_accuracy",
    "test_accuracy",
    "lr",
    "seconds",
    "effective_weight_decay",
]


@pytest.fixture
def recorder(tmp_path):
    return Recorder(Config(data="digits", arch="Mlp", epoch_num=2, output_dir=tmp_path), World())


def batches_of(sizes):
    count, size = sum(sizes), max(sizes)
    return Batches(torch.zeros(count, 1, 1, 1), torch.zeros(count), size, (0.0,), (1.0,))


def record(recorder, rows, sizes, sparsities=None, start=0):
    """The steps of an epoch, from `start` on: each of `rows` has loss, right images and alpha."""
    batches = batches_of(sizes)
    batches._order, batches.taken, batches._goes_on = batches._new_order(), start, start > 0
    for i, (_, targets) in recorder.watched(batches):
        sparsity = sparsities[i] if sparsities else 0.0
        recorder.add(torch.tensor([*rows[i], 0.0][:3]), len(targets), sparsity)
        if i + 1 == len(rows) < len(sizes):
            recorder.read_back()
            return


def end_epoch(recorder):
    recorder.end_epoch(nn.Linear(2, 2), 50.0, 0.1)
    return {name: values[-1] for name, values in recorder.metrics.items()}


def test_losses_are_means_over_batches_and_the_accuracy_is_over_images(recorder):
    record(recorder, [[1.0, 3, 0.25], [4.0, 0, 0.75]], [3, 1])
    assert [step.accuracy for step in recorder.steps] == [100.0, 0.0]
    metrics = end_epoch(recorder)
    assert (metrics["train_loss"], metrics["train_accuracy"]) == (2.5, 75.0)
    assert (metrics["test_accuracy"], metrics["lr"]) == (50.0, 0.1)
    assert metrics["effective_weight_decay"] == 0.5
    assert recorder.epoch == 1 and recorder.steps == []


@pytest.mark.parametrize(
    ("sparsities", "loss", "accuracy"), [([0.0, 0.9, 0.0], 2.0, 80.0), ([0.8, 0.9, 0.8], 4.0, 50.0)]
)
def test_means_leave_pruned_steps_out_unless_all_are(sparsities, loss, accuracy, recorder):
    record(recorder, [[1.0, 3], [8.0, 0], [3.0, 1]], [3, 3, 2], sparsities)
    metrics = end_epoch(recorder)
    assert (metrics["train_loss"], metrics["train_accuracy"]) == (loss, accuracy)


def test_an_epoch_goes_on_from_the_state_of_another_recorder(recorder, tmp_path):
    rows, sizes = [[1.0, 3, 0.25], [4.0, 1, 0.75]], [3, 1]
    record(recorder, rows[:1], sizes)
    recorder._started -= 100
    other = Recorder(recorder.config, World())
    other.load_state_dict(recorder.state_dict())
    record(other, rows, sizes, start=1)
    other._started -= 20
    metrics = end_epoch(other)
    assert (metrics["train_loss"], metrics["train_accuracy"]) == (2.5, 100.0)
    assert metrics["effective_weight_decay"] == 0.5
    assert 120 <= other.seconds[0] < 130


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_ends_the_run_with_its_step(loss, recorder):
    message = r"Epoch 1/2, step 2: the loss is (nan|inf), the last finite one was 0\.5"
    with pytest.raises(RunError, match=message):
        record(recorder, [[0.5, 1], [loss, 0]], [2, 2])
    assert recorder._bar.disable  # it is closed


def test_a_loss_that_is_not_finite_is_seen_before_the_end_of_the_epoch(recorder, monkeypatch):
    monkeypatch.setattr(recording, "READ_BACK_SECONDS", -1)
    steps = recorder.watched(batches_of([2, 2]))
    next(steps)
    with pytest.raises(RunError, match="step 1: the loss is nan"):
        recorder.add(torch.tensor([math.nan, 0.0, 0.0]), 2)


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
    assert all(0 < float(row["seconds"]) < 600 for row in rows)


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


def test_a_picture_that_cannot_be_written_ends_no_run(quick, tmp_path, monkeypatch):
    def fail(*_):
        raise RunError("cannot write the picture")

    monkeypatch.setattr(recording, "plot_training", fail)
    monkeypatch.setattr("utils.train.checkpointing.SAVE_SECONDS", 600)  # the last epoch alone
    status, _, err = quick("train_prune.py", *DIGITS, "--output_dir", tmp_path)
    assert status == 0
    assert err == "warning: cannot write the picture; training goes on without that picture\n"
    assert len(table_in(tmp_path)) == 2
