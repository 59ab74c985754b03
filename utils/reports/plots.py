"""The pictures that the scripts write beside their logs.

matplotlib takes half a second to import, so each function imports what it needs of it.
"""

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from utils.compute.measure import BINS_PER_DECADE, log_magnitudes, zeros_by_parameter
from utils.reports.figures import (
    name_rows,
    new_figure,
    save_figure,
    set_accuracy_limits,
    sparsity_panels,
)
from utils.reports.headings import Heading
from utils.settings.names import percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# For each label its runs, each of which maps pruning ratios to accuracies, or to None.
Curves = dict[str, list[dict[float, float | None]]]


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


def plot_pruning(
    path: Path, ratios: Sequence[float], curves: dict[str, Sequence[float | None]], heading: Heading
) -> None:
    """Accuracy against sparsity, both in percent, as `sparsity_panels` divides it.

    `curves` maps labels to accuracies, one for each of `ratios`, which are ascending; None leaves a
    gap. A line shows the accuracy of the unpruned network if 0 is among these.
    """
    figure = new_figure(10, 4.4)
    dense = [a for a in next(iter(curves.values()))[:1] if ratios[0] == 0 and a is not None]
    for axes, shown in sparsity_panels(figure, ratios):
        for accuracy in dense:
            label = f"at 0 %: {accuracy:.2f} %"
            axes.axhline(accuracy, color="0.5", linestyle="--", label=label)
        accuracies = list(dense)
        for label, values in curves.items():
            points = [(100 * r, a) for r, a in zip(ratios, values, strict=True) if r in shown]
            label = _with_gaps(label, values)
            axes.plot(*zip(*points, strict=True), "o-", markersize=4, label=label)
            accuracies += [accuracy for _, accuracy in points]
        set_accuracy_limits(axes, accuracies)
    figure.axes[0].legend()
    save_figure(figure, path, heading)


def plot_slicing(
    path: Path,
    multiply_adds: Sequence[float],
    curves: dict[str, Sequence[float | None]],
    times: dict[str, Sequence[float]],
    heading: Heading,
) -> None:
    """Accuracy against multiply-adds and against time, both in percent of the dense network's.

    Each sequence has a value for each of the sliced networks. `curves` maps labels to accuracies in
    percent; the last of them is drawn against each of the `times`.
    """
    figure = new_figure(10, 4.4)
    by_multiply_adds, by_time = figure.subplots(1, 2, sharey=True)
    curves = {_with_gaps(label, values): values for label, values in curves.items()}
    for label, accuracies in curves.items():
        by_multiply_adds.plot(multiply_adds, accuracies, "o-", markersize=4, label=label)
    label, accuracies = list(curves.items())[-1]
    for batch, values in times.items():
        by_time.plot(values, accuracies, "o", markersize=4, label=f"{label}, {batch}")
    by_multiply_adds.set_xlabel("multiply-adds, % of the dense network's")
    by_time.set_xlabel("measured time, % of the dense network's")
    by_multiply_adds.set_ylabel("test accuracy, %")
    for axes in (by_multiply_adds, by_time):
        axes.set_xlim(left=0)
        axes.grid(alpha=0.3)
        axes.legend()
    set_accuracy_limits(by_time, [a for values in curves.values() for a in values])
    save_figure(figure, path, heading)


def plot_comparison(path: Path, curves: Curves, heading: Heading) -> None:
    """Accuracy against sparsity of several methods: the mean over runs, in a band of their range.

    The panels are those of `plot_pruning`.
    """
    import matplotlib
    from cycler import cycler

    styles = cycler(linestyle=["-", "--", ":"]) * matplotlib.rcParams["axes.prop_cycle"]
    columns = 2 if len(curves) > 10 else 1
    figure = new_figure(11, 4.8 + 0.2 * len(curves) / columns)
    common = {label: set.intersection(*map(set, runs)) for label, runs in curves.items()}
    for axes, shown in sparsity_panels(figure, sorted(set.union(*common.values()))):
        axes.set_prop_cycle(styles)
        accuracies = []
        for label, runs in curves.items():
            ratios = [ratio for ratio in shown if ratio in common[label]]
            values = np.array([[run[ratio] for ratio in ratios] for run in runs], dtype=float)
            label = _with_gaps(label, [a for run in runs for a in run.values()])
            x, low, high = [100 * ratio for ratio in ratios], values.min(0), values.max(0)
            (line,) = axes.plot(x, values.mean(0), marker="o", markersize=3.5, label=label)
            axes.fill_between(x, low, high, color=line.get_color(), alpha=0.2)
            accuracies += [*low, *high]
        set_accuracy_limits(axes, accuracies)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    labels = ["\n".join(textwrap.wrap(x, 150 // columns)) for x in labels]
    legend = figure.legend(
        handles, labels, loc="lower center", fontsize=8, ncols=columns, handlelength=3
    )
    for text in legend.get_texts():
        text.set_parse_math(False)  # labels may contain names of files
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
    ticks = [percent(ratio) for ratio in ratios]
    axes.set_xticks(np.arange(len(ratios)) + 0.5, ticks, fontsize=7, rotation=90)
    axes.set_xlabel("sparsity of the network: weights removed, %")
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


def _with_gaps(label: str, accuracies: Sequence[float | None]) -> str:
    """The label of a curve, which says why it has gaps if it has some."""
    return f"{label} (gap: outputs are not finite)" if None in accuracies else label


def _draw_rows(axes: "Axes", rows: Tensor, edges: np.ndarray, names: list[str]) -> None:
    shares = (rows / rows.sum(1, keepdim=True).clamp(min=1)).numpy()
    mesh = axes.pcolormesh(edges, range(len(names) + 1), shares, cmap="viridis")
    name_rows(axes, names)
    axes.figure.colorbar(mesh, ax=axes, label="share", pad=0.01)
