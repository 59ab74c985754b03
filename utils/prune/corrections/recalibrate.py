"""Re-estimating BatchNorm's running statistics after the weights have changed."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from utils.checkpoints.model_file import new_model
from utils.compute.device import autocast, placed
from utils.compute.measure import evaluate
from utils.datasets import Dataset
from utils.process.errors import UserError, notify
from utils.settings.config import Config

SEED = 0  # chooses the images, independently of the run's seed
BATCH_SIZE = 128  # fixed, since the statistics depend on it
# Where test accuracy is so many points below training accuracy, it is measured again with the
# statistics of so many training images. A gain of so many points is told.
FAR_BELOW, IMAGES, GAIN = 10.0, 1000, 5.0


def calibration_batches(dataset: Dataset, count: int, flag: str) -> list[Tensor]:
    """`count` training images in batches, each (images, channels, side, side).

    They are augmented as in training. Every call returns the same images; their augmentation
    differs between CPU and GPU. Raises UserError, which names `flag`, if there are fewer images.
    """
    available, device = len(dataset.train_images), dataset.train_images.device
    if count > available:
        way = "choose fewer" if available else "leave it out, or add some to the data"
        raise UserError(f"{flag} {count}: there are {available} training images; {way}")
    order = torch.randperm(available, generator=torch.Generator().manual_seed(SEED))
    chosen = order[:count].to(device)
    images, labels = dataset.train_images[chosen], dataset.train_labels[chosen]
    subset = replace(dataset, train_images=images, train_labels=labels)
    generator = torch.Generator(device).manual_seed(SEED)
    batches = [inputs for inputs, _ in subset.train_batches(BATCH_SIZE, generator)]
    if len(batches) > 1 and len(batches[-1]) == 1:  # of a single image BatchNorm has no variance
        batches[-2:] = [torch.cat(batches[-2:])]
    return batches


def batch_norms(model: nn.Module) -> list[_BatchNorm]:
    """The BatchNorm layers of a model that have running statistics."""
    return [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]


@torch.no_grad()
def recalibrate(model: nn.Module, batches: Sequence[Tensor], precision: str = "fp32") -> None:
    """Replace BatchNorm's running means and variances by those of `batches`, a list of inputs.

    They become averages over all calls of a layer, weighted by batch size. Weights, labels and
    gradients are not involved, and dropout is off. Afterwards the model is in evaluation mode.
    """
    norms = batch_norms(model)
    momenta = [norm.momentum for norm in norms]
    model.eval()
    images, seen = 0, Counter()

    def weigh(norm: _BatchNorm, inputs: tuple[Tensor, ...], named: dict[str, Tensor]) -> None:
        count = len(inputs[0] if inputs else named["input"])
        seen[norm] += count
        norm.momentum = count / seen[norm]

    hooks = [norm.train().register_forward_pre_hook(weigh, with_kwargs=True) for norm in norms]
    try:
        with autocast(batches[0].device, precision):
            for inputs in batches:
                images += len(inputs)
                for norm in norms:  # of one that is not called, but whose `forward` is
                    norm.momentum = len(inputs) / images
                model(inputs)
    finally:
        model.eval()
        for hook in hooks:
            hook.remove()
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum


def note_stale_statistics(
    config: Config, model: nn.Module, dataset: Dataset, training: float | None, test: float | None
) -> None:
    """Tell people where BatchNorm's running statistics, and not the weights, cost accuracy.

    `training` and `test` are the accuracies of the network of these settings, in percent; if one is
    not known, nothing is told. A copy of the network is recalibrated and tested: the model and all
    random states stay as they are.
    """
    if not batch_norms(model) or None in (training, test) or test > training - FAR_BELOW:
        return
    if len(dataset.train_images) < 2:  # test images alone
        return
    copy = placed(new_model(config), dataset.train_images.device, config.image_shape)
    copy.load_state_dict(model.state_dict())
    count = min(IMAGES, len(dataset.train_images))
    recalibrate(copy, calibration_batches(dataset, count, "--bn_recalibrate"), config.precision)
    batches = dataset.test_batches(config.test_batchsize)
    recalibrated = evaluate(copy, batches, config.precision).percent
    if recalibrated is not None and recalibrated >= test + GAIN:
        steps = config.epoch_num * -(-len(dataset.train_images) // config.train_batchsize)
        notify(
            f"test_prune.py --bn_recalibrate {count} gives a test accuracy of {recalibrated:.2f} %"
            f" instead of {test:.2f} %: BatchNorm's running statistics do not fit the weights,"
            f" probably since the training had few steps ({steps:,})"
        )
