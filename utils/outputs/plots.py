"""The pictures that the scripts write beside their logs.

matplotlib takes half a second to import, so each function imports what it needs of it.
"""

import textwrap
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from utils.process.writing import atomic_write

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# For each label its runs, each of which maps pruning ratios to accuracies.
Curves = dict[str, list[dict[float, float]]]

STYLE = {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}
BINS_PER_DECADE = 10
SMALLEST_DECADE = -10


def plot_pruning(
    path: Path, ratios: Sequence[float], curves: dict[str, Sequence[float]], run: str
) -> None:
    """Accuracy against sparsity, both in percent: the whole range, and beside it 90 % and more.

    `curves` maps labels to accuracies, one for each of `ratios`, which are ascending. If fewer than
    two of these are 0.9 and more, there is no second panel.
    """
    sparsities = [100 * ratio for ratio in ratios]
    ticks = [s for s in sparsities if s >= 89.9]
    figure = _figure(10, 4.2)
    whole, *rest = figure.subplots(1, 2 if len(ticks) > 1 else 1, squeeze=False)[0]
    first = [next(iter(curves.values()))[0]] if ratios[0] == 0 else []
    for axes in (whole, *rest):
        for accuracy in first:
            label = f"at 0 %: {accuracy:.2f} %"
            axes.axhline(accuracy, color="0.5", linestyle="--", label=label)
        for label, accuracies in curves.items():
            axes.plot(sparsities, accuracies, "o-", markersize=4, label=label)
        axes.set_xlabel("sparsity: weights removed, %")
        axes.set_ylabel("test accuracy, %")
        axes.grid(alpha=0.3)
    _set_accuracy_limits(whole, [a for values in curves.values() for a in values])
    whole.legend()
    for high in rest:
        high.set_xlim(89.7, max(99, *sparsities) + 0.3)
        crowded = min(b - a for a, b in pairwise(ticks)) < 0.9
        labels = [f"{s:.6g}" for s in ticks]
        high.set_xticks(ticks, labels, rotation=90 if crowded else 0)
        from_90_on = [a for values in curves.values() for a in values[-len(ticks) :]]
        _set_accuracy_limits(high, [*first, *from_90_on])
        high.set_title("from 90 % on", fontsize=9)
    _save(figure, path, run)


def _set_accuracy_limits(axes: "Axes", shown: Sequence[float]) -> None:
    """Fit the axes to these accuracies, with at least half a point on either side."""
    margin = max(0.08 * (max(shown) - min(shown)), 0.5)
    axes.set_ylim(min(shown) - margin, max(shown) + margin)


def plot_comparison(path: Path, curves: Curves, title: str) -> None:
    """Accuracy against sparsity of several methods: the mean over runs, in a band of their range.

    The right half shows a sparsity of 80 % and more.
    """
    import matplotlib
    from cycler import cycler

    styles = cycler(linestyle=["-", "--", ":"]) * matplotlib.rcParams["axes.prop_cycle"]
    columns = 2 if len(curves) > 10 else 1
    figure = _figure(11, 4.6 + 0.2 * len(curves) / columns)
    for axes, low in zip(figure.subplots(1, 2, sharey=True), (0, 80), strict=True):
        axes.set_prop_cycle(styles)
        for label, runs in curves.items():
            common = set.intersection(*(set(run) for run in runs))
            ratios = sorted(ratio for ratio in common if 100 * ratio >= low - 0.5)
            values = np.array([[run[ratio] for ratio in ratios] for run in runs])
            sparsities = [100 * ratio for ratio in ratios]
            (line,) = axes.plot(sparsities, values.mean(0), marker="o", markersize=3.5, label=label)
            axes.fill_between(
                sparsities, values.min(0), values.max(0), color=line.get_color(), alpha=0.2
            )
        axes.set_xlabel("sparsity: weights removed, %")
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel("test accuracy, %")
    handles, labels = figure.axes[0].get_legend_handles_labels()
    labels = ["\n".join(textwrap.wrap(x, 150 // columns)) for x in labels]
    legend = figure.legend(
        handles, labels, loc="outside lower center", fontsize=8, ncols=columns, handlelength=3
    )
    for text in legend.get_texts():
        text.set_parse_math(False)  # labels may contain names of files
    _save(figure, path, title)


def plot_layer_sparsity(
    path: Path, ratios: Sequence[float], left: dict[str, Sequence[float]], run: str
) -> None:
    """A heat map: the fraction of its entries that each parameter tensor keeps at each ratio.

    A cross marks a tensor that keeps none. `left` maps names of parameters to these fractions.
    """
    from matplotlib.colors import LogNorm

    values = np.array(list(left.values()))
    figure = _figure(9, 1.8 + 0.16 * len(left))
    axes = figure.subplots()
    least = min(values[values > 0].min(initial=0.1), 0.1)
    mesh = axes.pcolormesh(values, cmap="viridis", norm=LogNorm(least, 1))
    rows, columns = np.nonzero(values == 0)
    axes.plot(columns + 0.5, rows + 0.5, "x", color="black", markersize=4)
    ticks = [f"{100 * ratio:.6g}" for ratio in ratios]
    axes.set_xticks(np.arange(len(ratios)) + 0.5, ticks, fontsize=7, rotation=90)
    axes.set_xlabel("sparsity of the network: weights removed, %")
    _name_rows(axes, list(left))
    figure.colorbar(mesh, ax=axes, label="fraction left (cross: none)", pad=0.01)
    _save(figure, path, run)


def plot_distribution(path: Path, model: nn.Module, run: str) -> None:
    """Histograms of log10 of magnitude: one of all parameters, and a row for each tensor."""
    tensors = {name: p.detach().float().cpu().abs() for name, p in model.named_parameters()}
    logs = {
        name: p[(p > 0) & p.isfinite()].log10().clamp(min=SMALLEST_DECADE)
        for name, p in tensors.items()
    }
    present = [values for values in logs.values() if len(values)]
    low = min((v.min().floor().item() for v in present), default=-1)
    high = max(max((v.max().ceil().item() for v in present), default=0), low + 1)
    bins = int(high - low) * BINS_PER_DECADE
    rows = torch.stack([torch.histc(values, bins, low, high) for values in logs.values()])
    zeros = sum(int((p == 0).sum()) for p in tensors.values())

    figure = _figure(9, 4 + 0.16 * len(tensors))
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
    _save(figure, path, run)


def plot_scales(path: Path, scales: dict[str, float], run: str) -> None:
    """A bar for each parameter tensor's SFW-Init scale, in the order of the network."""
    figure = _figure(7, 1.6 + 0.16 * len(scales))
    axes = figure.subplots()
    colours = ["C1" if "bias" in name else "C0" for name in scales]
    axes.barh(list(scales), list(scales.values()), color=colours)
    axes.axvline(1, color="0.5", linestyle="--")
    axes.tick_params(axis="y", labelsize=6)
    axes.set_ylim(len(scales) - 0.5, -0.5)
    axes.set_xlabel("scale of the initial values (blue: weights, orange: biases)")
    _save(figure, path, run)


def _figure(width: float, height: float) -> "Figure":
    """An empty figure of this size in inches."""
    import matplotlib
    from matplotlib.figure import Figure

    matplotlib.rcParams.update(STYLE)
    return Figure(figsize=(width, height), layout="constrained")


def _draw_rows(axes: "Axes", rows: Tensor, edges: np.ndarray, names: list[str]) -> None:
    shares = (rows / rows.sum(1, keepdim=True).clamp(min=1)).numpy()
    mesh = axes.pcolormesh(edges, range(len(names) + 1), shares, cmap="viridis")
    _name_rows(axes, names)
    axes.figure.colorbar(mesh, ax=axes, label="share", pad=0.01)


def _name_rows(axes: "Axes", names: list[str]) -> None:
    axes.set_yticks([i + 0.5 for i in range(len(names))], names, fontsize=6)
    axes.invert_yaxis()


def _save(figure: "Figure", path: Path, run: str) -> None:
    # Lines break at underscores. The name of a file may contain what would be read as a formula.
    lines = textwrap.wrap(run.replace("_", "_ "), 110)
    title = "\n".join(line.replace("_ ", "_") for line in lines)
    figure.suptitle(title, fontsize=8, parse_math=False)
    with atomic_write(path, "wb") as file:
        figure.savefig(file, format="png", dpi=120)
