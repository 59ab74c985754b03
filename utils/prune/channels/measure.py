"""What is measured of a sliced network: its size, its work and its speed."""

from functools import partial

import torch
from torch import Tensor, nn

from utils.compute.device import autocast
from utils.compute.measure import channels_by_layer, multiply_adds
from utils.compute.timing import time_in_turns
from utils.datasets import Dataset
from utils.prune.corrections.recalibrate import calibration_batches

BATCHES = (1, 128)  # images in a batch that is timed
SECONDS = 2.0  # how long each of them is timed


def measured(
    dense: nn.Module, sliced: nn.Module, images: Tensor, precision: str
) -> dict[str, float]:
    """What a table has of a sliced network, by column; times are in milliseconds."""
    columns = {
        "channels": sum(channels_by_layer(sliced).values()),
        "parameters": sum(p.numel() for p in sliced.parameters()),
        "bytes": sum(values.nbytes for values in (*sliced.parameters(), *sliced.buffers())),
        "multiply_adds": multiply_adds(sliced, images[:2])[""],
    }
    for batch, (of_dense, of_sliced) in compare_speed(dense, sliced, images, precision).items():
        columns[f"milliseconds_{batch}"] = round(1000 * of_sliced, 4)
        columns[f"dense_milliseconds_{batch}"] = round(1000 * of_dense, 4)
    return columns


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
