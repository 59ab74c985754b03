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


@torch.no_grad()
def measured(
    dense: nn.Module, sliced: nn.Module, images: Tensor, precision: str
) -> dict[str, float]:
    """What a table has of a sliced network, by column.

    Times are the median milliseconds of forward passes of both networks, which take turns.
    """
    columns = {
        "channels": sum(channels_by_layer(sliced).values()),
        "parameters": sum(p.numel() for p in sliced.parameters()),
        "bytes": sum(values.nbytes for values in (*sliced.parameters(), *sliced.buffers())),
        "multiply_adds": multiply_adds(sliced, images[:2])[""],
    }
    for batch in BATCHES:
        steps = [partial(model.eval(), images[:batch]) for model in (dense, sliced)]
        with autocast(images.device, precision):
            of_dense, of_sliced = time_in_turns(steps, SECONDS, images.device.type)
        columns[f"milliseconds_{batch}"] = round(1000 * of_sliced, 4)
        columns[f"dense_milliseconds_{batch}"] = round(1000 * of_dense, 4)
    return columns


def training_images(dataset: Dataset) -> Tensor:
    """The largest of BATCHES, of images as in training; some are there twice if there are fewer."""
    count = min(max(BATCHES), len(dataset.train_images))
    images = torch.cat(calibration_batches(dataset, count, "--granularity channels"))
    return images[torch.arange(max(BATCHES), device=images.device) % count]
