"""The correction of a pruned model: what --bn_recalibrate or --repair does to it."""

from collections.abc import Callable

from torch import nn

from utils.datasets import Dataset
from utils.process.errors import UserError
from utils.prune.config import CORRECTIONS, PruneConfig
from utils.prune.recalibrate import batch_norms, calibration_batches, recalibrate
from utils.prune.repair import layers_with_weights, measure_signals, repair
from utils.settings.config import Config


def check_correction(prune: PruneConfig, model: nn.Module, arch: str) -> None:
    """Raise UserError unless the correction, if any, is one for this network."""
    if prune.bn_recalibrate and not batch_norms(model):
        raise UserError(f"--bn_recalibrate: {arch} has no BatchNorm; --repair is for such networks")
    if prune.repair and batch_norms(model):
        raise UserError(f"--repair: {arch} has BatchNorm, for which --bn_recalibrate does more")


def correction(
    prune: PruneConfig, model: nn.Module, dataset: Dataset, config: Config
) -> Callable[[], None] | None:
    """A function that corrects `model` in place once it is pruned; None without a correction.

    Call this with the dense model: --repair measures it here. Raises UserError when the correction
    needs more training images than there are.
    """
    if prune.corrected is None:
        return None
    flag = CORRECTIONS[prune.corrected]
    count = getattr(prune, flag)
    batches = calibration_batches(dataset, count, f"--{flag}")
    if prune.bn_recalibrate:
        return lambda: recalibrate(model, batches, config.precision)
    dense = measure_signals(model, batches, list(layers_with_weights(model)), config.precision)
    return lambda: repair(model, dense, batches, config.precision)
