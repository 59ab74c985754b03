"""Losses and accuracies of an epoch."""

import torch

from utils.train.progress import EpochProgress


def test_progress_means_losses_over_batches_and_accuracy_over_images():
    right, wrong = torch.tensor([[0.0, 1.0]]), torch.tensor([[1.0, 0.0]])
    ones = torch.ones(3, dtype=torch.int64)
    with EpochProgress("", 2) as progress:
        progress.record(torch.tensor(1.0), right.expand(3, -1), ones)
        progress.record(torch.tensor(4.0), wrong, ones[:1])
    assert progress.losses == [1.0, 4.0] and progress.accuracies == [100.0, 0.0]
    assert progress.loss == 2.5 and progress.accuracy == 75.0
