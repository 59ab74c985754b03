"""SFW-Init as part of a run: its progress bar, its lines in the log and its picture."""

import re

import torch
from torch import nn
from tqdm import tqdm

from constraints import Region
from optim import sfw_init
from optim.sfw_init import Report
from utils.compute.device import autocast, network_generator
from utils.datasets import Dataset
from utils.process.errors import RunError, UserError, say
from utils.reports.logs import SCALE, SFW_INIT, TextLog
from utils.reports.plots import plot_scales
from utils.settings.config import Config
from utils.train.recording import draw

# What PyTorch says of an operation whose gradient has no gradient.
NOT_TWICE = re.compile(
    "derivative for .* is not implemented|differentiate twice|double backward", re.I
)


def learn_initial_scales(
    config: Config, model: nn.Module, dataset: Dataset, regions: list[Region], log: TextLog
) -> dict[str, float]:
    """Scale the model's initial weights by SFW-Init, and return the scales by parameter name.

    Raises RunError for a loss that is not finite, UserError for a model without second gradients.
    """
    device, iterations = dataset.train_images.device, config.sfw_init_iters
    # Generators of its own: training sees the same batches and dropout with and without.
    generator = torch.Generator(device).manual_seed(config.seed + 1)
    network_generator(device).manual_seed(config.seed + 1)
    halves = dataset.train_batches((config.train_batchsize + 1) // 2, generator)
    bar = tqdm(desc="SFW-Init", total=iterations, unit="iteration", leave=False, disable=None)

    def show(report: Report) -> None:
        log.add(SFW_INIT.format(report))
        bar.set_postfix_str(f"loss {report.loss_before:.4f} -> {report.loss_after:.4f}", False)
        bar.update(report.iteration - bar.n)

    try:
        with bar, autocast(device, config.precision):
            scales = sfw_init(model, halves, regions, config.lr, iterations, report=show)
    except FloatingPointError as error:
        raise RunError(f"SFW-Init: {error}; lower --tau or --lr") from None
    except RuntimeError as error:
        if not NOT_TWICE.search(reason := str(error).partition("\n")[0]):
            raise
        raise UserError(
            "--sfw_init 1: an operation of the network cannot be differentiated twice"
            f" ({reason}); leave this flag out"
        ) from None
    for name, scale in scales.items():
        log.add(SCALE.format(name, scale))
    draw(plot_scales, config.files.scales_plot, scales, config)
    sizes = scales.values()
    say(f"SFW-Init: {iterations} iterations, scales {min(sizes):.3f} to {max(sizes):.3f}")
    return scales
