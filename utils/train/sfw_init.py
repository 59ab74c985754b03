"""SFW-Init as part of a run: its progress bar, its lines in the log and its picture."""

import re
from collections.abc import Iterable

from torch import Tensor, nn
from tqdm import tqdm

from constraints import Region
from optim import sfw_init
from optim.sfw_init import Report
from utils.compute.device import autocast, network_generator
from utils.process.errors import RunError, UserError, warn
from utils.process.terminal import say
from utils.reports.headings import heading
from utils.reports.logs import TextLog, init_line, scale_line
from utils.reports.plots import plot_scales
from utils.settings.config import Config
from utils.settings.fields import identifying_settings

# What PyTorch says of an operation whose gradient has no gradient.
NOT_TWICE = re.compile(
    "derivative for .* is not implemented|differentiate twice|double backward", re.I
)


def learn_initial_scales(
    config: Config,
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    constraints: list[Region],
    log: TextLog,
) -> dict[str, float]:
    """Scale the model's initial weights by SFW-Init, and return the scales by parameter name.

    `batches` yields pairs (inputs, targets) of half a training batch, on the model's device, and
    is iterated over as often as necessary. Raises RunError when the loss is not finite, and
    UserError when an operation of the model cannot be differentiated twice.
    """
    device = next(model.parameters()).device
    network_generator(device).manual_seed(config.seed + 1)  # of dropout
    iterations = config.sfw_init_iters
    bar = tqdm(desc="SFW-Init", total=iterations, unit="iteration", leave=False, disable=None)

    def show(report: Report) -> None:
        log.add(init_line(report))
        bar.set_postfix_str(f"loss {report.loss_before:.4f} -> {report.loss_after:.4f}", False)
        bar.update(report.iteration - bar.n)

    try:
        with bar, autocast(device, config.precision):
            scales = sfw_init(model, batches, constraints, config.lr, iterations, report=show)
    except FloatingPointError as error:
        raise RunError(f"SFW-Init: {error}; lower --tau or --lr") from None
    except RuntimeError as error:
        reason = str(error).partition("\n")[0]
        if not NOT_TWICE.search(reason):
            raise
        raise UserError(
            "--sfw_init 1: an operation of the network cannot be differentiated twice"
            f" ({reason}); leave this flag out"
        ) from None
    for name, scale in scales.items():
        log.add(scale_line(name, scale))
    try:
        plot_scales(config.files.scales_plot, scales, heading(identifying_settings(config)))
    except RunError as error:
        warn(f"{error}; training goes on without that picture")
    smallest, largest = min(scales.values()), max(scales.values())
    say(f"SFW-Init: {iterations} iterations, scales {smallest:.3f} to {largest:.3f}")
    return scales
