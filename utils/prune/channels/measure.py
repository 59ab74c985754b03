"""What is measured of a sliced network: its size, its work and its speed."""

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from utils.compute.device import autocast
from utils.compute.measure import Accuracy, channels_by_layer, multiply_adds
from utils.compute.timing import time_in_turns
from utils.datasets import Dataset
from utils.prune.corrections.recalibrate import calibration_batches

BATCHES = (1, 128)  # images in a batch that is timed
SECONDS = 2.0  # how long each of them is timed


@dataclass(frozen=True)
class SlicedResult:
    """A network sliced at one ratio."""

    ratio: float
    removed: float  # the fraction of the multiply-adds that it has lost
    channels: dict[str, int]  # by layer
    parameters: int
    bytes: int  # of its parameters and buffers
    multiply_adds: int  # for one image
    seconds: dict[int, tuple[float, float]]  # by batch: of the dense network and of this one
    accuracies: dict[str, Accuracy]  # by column: as sliced and, if there is one, corrected
    sizes: dict[str, int]  # of its files, in bytes, by format


def sizes_of(model: nn.Module, images: Tensor) -> tuple[dict[str, int], int, int, int]:
    """The channels by layer, parameters, bytes and multiply-adds, as SlicedResult has them."""
    parameters = sum(p.numel() for p in model.parameters())
    count = sum(values.nbytes for values in model.state_dict().values())
    return channels_by_layer(model), parameters, count, multiply_adds(model, images[:2])


def training_images(dataset: Dataset) -> Tensor:
    """The largest of BATCHES, of images as in training; some are there twice if there are fewer."""
    count = min(max(BATCHES), len(dataset.train_images))
    images = torch.cat(calibration_batches(dataset, count, "--granularity channels"))
    return images[torch.arange(max(BATCHES), device=images.device) % count]


@torch.no_grad()
def compare_speed(
    dense: nn.Module, sliced: nn.Module, images: Tensor, precision: str
) -> dict[int, tuple[float, float]]:
    """By batch, the median seconds of a forward pass of both networks, which take turns."""
    seconds, device = {}, images.device
    with autocast(device, precision):
        for batch in BATCHES:
            steps = [partial(model.eval(), images[:batch]) for model in (dense, sliced)]
            one, other = time_in_turns(steps, SECONDS, device.type)
            seconds[batch] = one, other
    return seconds
