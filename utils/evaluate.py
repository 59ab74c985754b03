"""Accuracy on a set of images."""

import torch
from torch import nn

from utils.batches import Batches
from utils.device import autocast


@torch.no_grad()
def evaluate(model: nn.Module, batches: Batches, precision: str = "fp32") -> float:
    """The percentage of the images in `batches` that the model, in evaluation mode, gets right."""
    model.eval()
    device = batches.images.device
    correct = torch.zeros((), dtype=torch.int64, device=device)
    with autocast(device, precision):
        for inputs, targets in batches:
            correct += (model(inputs).argmax(1) == targets).sum()
    return 100 * correct.item() / len(batches.images)
