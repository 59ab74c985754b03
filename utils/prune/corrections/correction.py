"""The correction of a pruned model: what --bn_recalibrate or --repair does to it."""

from collections.abc import Callable

from torch import nn

from utils.datasets import Dataset
from utils.process.errors import UserError
from utils.prune.config import PruneConfig
from utils.prune.corrections.recalibrate import batch_norms, calibration_batches, recalibrate
from utils.prune.corrections.repair import layers_with_weights, measure_signals, repair
from utils.settings.config import Config

Correction = Callable[[nn.Module], None]


def build_correction(
    prune: PruneConfig, model: nn.Module, dataset: Dataset, config: Config
) -> Correction | None:
    """A function that corrects a pruned network in place; None if no correction is on.

    `model` is that network before pruning, which --repair measures. Raises UserError when
    the correction does not fit the network or needs more training images than there are.
    """
    if prune.correction is None:
        return None
    if prune.bn_recalibrate and not batch_norms(model):
        advice = "leave it out" if prune.granularity == "channels" else "use --repair instead"
        raise UserError(
            f"--bn_recalibrate: {config.arch} has no BatchNorm with running statistics; {advice}"
        )
    if prune.repair and batch_norms(model):
        raise UserError(f"--repair: {config.arch} has BatchNorm; use --bn_recalibrate instead")
    count = getattr(prune, prune.correction)
    batches = calibration_batches(dataset, count, f"--{prune.correction}")
    if prune.bn_recalibrate:
        return lambda pruned: recalibrate(pruned, batches, config.precision)
    if not (names := list(layers_with_weights(model))):
        raise UserError(
            f"--repair: {config.arch} has no linear layer or convolution with weights of its own,"
            " which could be scaled; leave it out"
        )
    dense = measure_signals(model, batches, names, config.precision)
    return lambda pruned: repair(pruned, dense, batches, config.precision)
