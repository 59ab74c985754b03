"""Losses and accuracies of an epoch."""

import pytest
import torch

from utils.process.errors import RunError
from utils.train.progress import EpochProgress


def progress_of(results, sizes, earlier=None, sparsities=None):
    rows = [[*row, *[0.0] * (3 - len(row))] for row in results]  # mean alpha 0
    return EpochProgress("Epoch 1/2", torch.tensor(rows), sizes, earlier, sparsities=sparsities)


def test_losses_are_means_over_batches_and_the_accuracy_is_over_images():
    with progress_of([[1.0, 3], [4.0, 0]], [3, 1]) as progress:
        progress.advance()
        assert not progress.complete
        progress.advance()
    assert progress.complete
    assert progress.losses == [1.0, 4.0] and progress.accuracies == [100.0, 0.0]
    assert progress.loss == 2.5 and progress.accuracy == 75.0


@pytest.mark.parametrize(
    ("sparsities", "loss", "accuracy"), [([0.0, 0.9, 0.0], 2.0, 80.0), ([0.8, 0.9, 0.8], 4.0, 50.0)]
)
def test_means_leave_pruned_steps_out_unless_all_are(sparsities, loss, accuracy):
    rows = [[1.0, 3], [8.0, 0], [3.0, 1]]
    with progress_of(rows, [3, 3, 2], sparsities=sparsities) as progress:
        for _ in rows:
            progress.advance()
    assert progress.losses == [1.0, 8.0, 3.0]
    assert (progress.loss, progress.accuracy) == (loss, accuracy)


def test_progress_goes_on_from_the_state_of_another():
    first = progress_of([[1.0, 3], [0.0, 0]], [3, 1])
    first.advance()
    with progress_of([[0.0, 0], [4.0, 1]], [3, 1], first.state()) as second:
        assert second.steps_done == 1
        second.advance()
    assert second.losses == [1.0, 4.0] and second.accuracies == [100.0, 100.0]


def test_the_effective_weight_decay_is_the_mean_over_all_steps_also_when_stopped():
    first = progress_of([[1.0, 3, 0.25], [0.0, 0, 9.0]], [3, 1])
    first.advance()
    with progress_of([[0.0, 0, 9.0], [4.0, 1, 0.75]], [3, 1], first.state()) as second:
        second.advance()
    assert second.effective_weight_decay == 0.5


def test_the_seconds_of_an_epoch_are_those_before_and_after_it_was_stopped():
    first = progress_of([[1.0, 3], [0.0, 0]], [3, 1])
    first.started -= 100
    first.advance()
    with progress_of([[0.0, 0], [4.0, 1]], [3, 1], first.state()) as second:
        second.started -= 20
        assert 120 <= second.seconds < 130


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_ends_the_run_with_its_step(loss):
    message = r"Epoch 1/2, step 2: the loss is (nan|inf), the last finite one was 0\.5"
    with (
        pytest.raises(RunError, match=message),
        progress_of([[0.5, 1], [loss, 0]], [2, 2]) as progress,
    ):
        progress.advance()
        progress.advance()


def test_the_bar_is_closed_when_the_last_losses_are_not_finite(monkeypatch):
    progress = progress_of([[float("nan"), 0]], [2])
    closed = []
    monkeypatch.setattr(progress._bar, "close", lambda: closed.append(True))
    with pytest.raises(RunError), progress:
        progress.advance()
    assert closed == [True]


def test_a_loss_that_is_not_finite_is_seen_before_the_end_of_the_epoch(monkeypatch):
    monkeypatch.setattr("utils.train.progress.READ_BACK_SECONDS", -1)
    progress = progress_of([[float("nan"), 0], [0.5, 1]], [2, 2])
    with pytest.raises(RunError, match="step 1: the loss is nan"):
        progress.advance()
