"""SFW-Init as part of a run: its batches, its bar, its lines in the log and its picture."""

import torch
from torch import nn
from tqdm import tqdm

from constraints import Region
from optim import sfw_init
from optim.initialisation import Report
from utils.config import Config
from utils.datasets import Dataset
from utils.device import autocast
from utils.errors import RunError, warn
from utils.logs import TextLog, init_line, scale_line
from utils.plots import plot_scales


def learn_initial_scales(
    config: Config, model: nn.Module, dataset: Dataset, constraints: list[Region], log: TextLog
) -> dict[str, float]:
    """Scale the model's initial weights by SFW-Init, and return the scales by parameter name.

    Its batches are half as large as a training batch and drawn from a generator of their own, so
    that training sees the same batches as without it. Raises RunError when the loss is not finite.
    """
    device = dataset.train_images.device
    generator = torch.Generator(device).manual_seed(config.seed + 1)  # not training's order
    halves = dataset.train_batches((config.train_batchsize + 1) // 2, generator)
    bar = tqdm(total=config.sfw_init_iters, desc="SFW-Init", unit="iteration", leave=False,
               disable=None)  # fmt: skip

    def show(report: Report) -> None:
        log.add(init_line(report))
        bar.update(report.iteration - bar.n)
        bar.set_postfix_str(f"loss {report.loss_before:.4f} -> {report.loss_after:.4f}")

    try:
        with bar, autocast(device, config.precision):
            scales = sfw_init(
                model, halves, constraints, config.lr, config.sfw_init_iters, report=show
            )
    except FloatingPointError as error:
        raise RunError(f"SFW-Init: {error}; lower --tau or --lr") from None
    for name, scale in scales.items():
        log.add(scale_line(name, scale))
    try:
        plot_scales(config.files.scales_plot, scales, config.run_name)
    except RunError as error:
        warn(f"{error}; training goes on without that picture")
    smallest, largest = min(scales.values()), max(scales.values())
    print(f"SFW-Init: {config.sfw_init_iters} iterations, scales {smallest:.3f} to {largest:.3f}")
    return scales
