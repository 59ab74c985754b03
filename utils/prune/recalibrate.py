"""BatchNorm's running statistics, measured anew for weights that have changed."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from utils.compute.device import autocast
from utils.datasets import Dataset
from utils.process.errors import UserError

SEED = 0  # of the choice of images, whatever the run's
BATCH_SIZE = 128  # statistics depend on it, so that --test_batchsize is not to change it


def calibration_batches(dataset: Dataset, count: int, flag: str) -> list[Tensor]:
    """`count` of the training images, always the same, in batches, augmented as in training.

    On a GPU the augmentation draws otherwise than on a CPU. Raises UserError, naming `flag`, when
    there are not as many.
    """
    there, device = len(dataset.train_images), dataset.train_images.device
    if count > there:
        raise UserError(f"{flag} {count}: there are {there} training images; choose fewer")
    order = torch.randperm(there, generator=torch.Generator().manual_seed(SEED))
    chosen = order[:count].to(device)
    some = replace(
        dataset, train_images=dataset.train_images[chosen],
        train_labels=dataset.train_labels[chosen],
    )  # fmt: skip
    generator = torch.Generator(device).manual_seed(SEED)
    return [inputs for inputs, _ in some.train_batches(BATCH_SIZE, generator)]


def batch_norms(model: nn.Module) -> list[_BatchNorm]:
    """The layers of a model that keep running statistics."""
    layers = (m for m in model.modules() if isinstance(m, _BatchNorm))
    return [layer for layer in layers if layer.track_running_stats]


@torch.no_grad()
def recalibrate(model: nn.Module, batches: Sequence[Tensor], precision: str = "fp32") -> None:
    """Replace BatchNorm's running means and variances by those of the inputs in `batches`.

    They are averages over the batches, weighted by their sizes. Takes no labels and no gradients;
    dropout is off.
    """
    norms = batch_norms(model)
    momenta = [norm.momentum for norm in norms]
    model.eval()
    seen = 0
    try:
        with autocast(batches[0].device, precision):
            for inputs in batches:
                seen += len(inputs)
                for norm in norms:
                    norm.train()
                    norm.momentum = len(inputs) / seen
                model(inputs)
    finally:
        model.eval()
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
