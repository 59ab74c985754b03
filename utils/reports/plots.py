"""The pictures that the scripts write beside their logs.

matplotlib takes half a second to import, so each function imports what it needs of it.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from utils.compute.measure import BINS_PER_DECADE, log_magnitudes, zeros_by_parameter
from utils.prune.channels.measure import BATCHES
from utils.reports.figures import (
    MARKERS,
    Curves,
    draw_accuracies,
    name_rows,
    new_figure,
    save_figure,
)
from utils.reports.headings import Heading
from utils.settings.names import shown

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plot_training(path: Path, table: dict[str, Sequence[float | None]], heading: Heading) -> None:
    """Loss and accuracies against epochs, from the columns of a training's table."""
    figure = new_figure(10, 4.2)
    panels = zip(
        figure.subplots(1, 2),
        ("training loss", "accuracy, %"),
        ({"loss": None}, {"train_accuracy": "training", "test_accuracy": "test"}),
        strict=True,
    )
    for axes, title, columns in panels:
        for column, label in columns.items():
            axes.plot(table["epoch"], table[column], "o-", markersize=3, label=label)
        axes.set_xlabel("epoch")
        axes.set_ylabel(title)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
    figure.axes[1].legend()
    save_figure(figure, path, heading)


def plot_accuracies(
    path: Path,
    curves: Curves,
    heading: Heading,
    removed: str = "weights",
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Accuracy against how much is removed, in one panel, of one network or of several methods."""
    figure = new_figure(10, 4 + 0.1 * len(curves))
    draw_accuracies(figure.subplots(), curves, removed)
    save_figure(figure, path, heading, metadata)


def plot_slicing(
    path: Path, curves: Curves, measures: Sequence[Mapping[str, float]], heading: Heading
) -> None:
    """Accuracy against the multiply-adds that are removed, and against measured time.

    `measures` has what was measured of each sliced network. The last of the `curves`, which are of
    one run each, is drawn against time.
    """
    figure = new_figure(12, 4.4)
    by_removed, by_time = figure.subplots(1, 2, sharey=True)
    draw_accuracies(by_removed, curves, "multiply-adds")
    (_, column), (accuracies,) = list(curves.items())[-1]
    y = np.array([accuracies[row["removed"]] for row in measures], dtype=float)
    for batch, marker in zip(BATCHES, MARKERS, strict=False):
        name = f"milliseconds_{batch}"
        percents = [100 * row[name] / row[f"dense_{name}"] for row in measures]
        by_time.plot(percents, y, marker, markersize=4, label=f"{column}, batch of {batch}")
    by_time.set_xlabel("measured time, % of the dense network's")
    by_time.set_xlim(left=0)
    by_time.invert_xaxis()  # the dense network is on the left of both panels
    by_time.grid(alpha=0.3)
    by_time.legend(fontsize=8)
    save_figure(figure, path, heading)


def plot_layer_sparsity(
    path: Path, ratios: Sequence[float], left: dict[str, Sequence[float]], heading: Heading
) -> None:
    """A heat map: the fraction of its entries that each parameter tensor keeps at each ratio.

    A cross marks a tensor that keeps none. `left` maps names of parameters to these fractions.
    """
    from matplotlib.colors import LogNorm

    values = np.array(list(left.values()))
    figure = new_figure(9, 1.8 + 0.16 * len(left))
    axes = figure.subplots()
    least = min(values[values > 0].min(initial=0.1), 0.1)
    mesh = axes.pcolormesh(values, cmap="viridis", norm=LogNorm(least, 1))
    rows, columns = np.nonzero(values == 0)
    axes.plot(columns + 0.5, rows + 0.5, "x", color="black", markersize=4)
    ticks = [shown(ratio) for ratio in ratios]
    axes.set_xticks(np.arange(len(ratios)) + 0.5, ticks, fontsize=7, rotation=90)
    axes.set_xlabel("weights removed from the network")
    name_rows(axes, list(left))
    figure.colorbar(mesh, ax=axes, label="fraction left (cross: none)", pad=0.01)
    save_figure(figure, path, heading)


def plot_distribution(path: Path, model: nn.Module, heading: Heading) -> None:
    """Histograms of log10 of magnitude: one of all parameters, and a row for each tensor."""
    tensors = dict(model.named_parameters())
    logs = {name: log_magnitudes(p.cpu()) for name, p in tensors.items()}
    present = [values for values in logs.values() if len(values)]
    low = min((v.min().floor().item() for v in present), default=-1)
    high = max(max((v.max().ceil().item() for v in present), default=0), low + 1)
    bins = int(high - low) * BINS_PER_DECADE
    rows = torch.stack([torch.histc(values, bins, low, high) for values in logs.values()])
    zeros = sum(zeros_by_parameter(model).values())

    figure = new_figure(9, 4 + 0.16 * len(tensors))
    overall, layers = figure.subplots(
        2, 1, sharex=True, height_ratios=(3, max(1, 0.16 * len(tensors)))
    )
    edges = torch.linspace(low, high, bins + 1).numpy()
    overall.stairs(rows.sum(0).numpy(), edges, fill=True, alpha=0.7)
    overall.set_ylabel("parameters")
    total = sum(p.numel() for p in tensors.values())
    overall.set_title(f"all {total:,} parameters, of which {zeros:,} are exactly 0", fontsize=9)
    _draw_rows(layers, rows, edges, list(tensors))
    layers.set_xlabel("log10 of magnitude")
    save_figure(figure, path, heading)


def plot_scales(path: Path, scales: dict[str, float], heading: Heading) -> None:
    """A bar for each parameter tensor's SFW-Init scale, in the order of the network."""
    figure = new_figure(7, 1.6 + 0.16 * len(scales))
    axes = figure.subplots()
    colours = ["C1" if "bias" in name else "C0" for name in scales]
    axes.barh(list(scales), list(scales.values()), color=colours)
    axes.axvline(1, color="0.5", linestyle="--")
    axes.tick_params(axis="y", labelsize=6)
    axes.set_ylim(len(scales) - 0.5, -0.5)
    axes.set_xlabel("scale of the initial values (blue: weights, orange: biases)")
    save_figure(figure, path, heading)


def _draw_rows(axes: "Axes", rows: Tensor, edges: np.ndarray, names: list[str]) -> None:
    shares = (rows / rows.sum(1, keepdim=True).clamp(min=1)).numpy()
    mesh = axes.pcolormesh(edges, range(len(names) + 1), shares, cmap="viridis")
    name_rows(axes, names)
    axes.figure.colorbar(mesh, ax=axes, label="share", pad=0.01)
