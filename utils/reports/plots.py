"""The pictures that the scripts write beside their logs.

matplotlib takes half a second to import, so each function imports what it needs of it.
"""

import textwrap
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from utils.compute.measure import BINS_PER_DECADE, log_magnitudes, zeros_by_parameter
from utils.process.errors import RunError
from utils.process.writing import atomic_write
from utils.prune.channels.measure import BATCHES
from utils.prune.weights.patterns import DENSE, by_removed
from utils.reports.headings import Heading
from utils.settings.names import shown

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

AS_PRUNED = "as pruned"
# By method and column (AS_PRUNED or what corrected it), the accuracies in percent of each run, by
# the fraction removed or the pattern N:M; None where outputs are not finite.
Curves = Mapping[tuple[str, str], Sequence[Mapping[float | str, float | None]]]

MARKERS = "os^Dv<>"  # as many as are coprime to the ten colours: 70 methods look different
REMOVED = (0, 30, 50, 70, 80, 90, 95, 97, 98, 99, 99.5, 99.9, 99.99, 99.999)  # ticks, in percent


@contextmanager
def picture(
    path: Path, heading: Heading, width: int, height: float, metadata: Mapping[str, str] = {}
) -> Iterator["Figure"]:
    """An empty figure of this size in inches; what is drawn in it is saved with the heading.

    The suffix of `path` names the format. Raises RunError without matplotlib and when the file
    cannot be written.
    """
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise RunError(f"pictures need matplotlib ({error}); install requirements.txt") from None
    style = {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}
    matplotlib.rcParams.update(style)
    figure = Figure(figsize=(width, height), layout="constrained")
    yield figure
    # What a name contains is not to be read as a formula.
    title = textwrap.fill(heading.title, 12 * width, break_on_hyphens=False)
    figure.suptitle(title, fontsize=10, parse_math=False)
    settings = textwrap.fill(heading.settings, 20 * width, break_on_hyphens=False)
    figure.supxlabel(settings, fontsize=6, color="0.4", parse_math=False)
    with atomic_write(path, "wb") as file, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # letters that the font lacks
        figure.savefig(file, format=path.suffix[1:], dpi=120, metadata=metadata)


def plot_training(path: Path, table: dict[str, Sequence[float | None]], heading: Heading) -> None:
    """Loss and accuracies against epochs, from the columns of a training's table."""
    with picture(path, heading, 10, 4.2) as figure:
        loss, accuracy = figure.subplots(1, 2)
        for axes, title, column, label in (
            (loss, "training loss", "loss", None),
            (accuracy, "accuracy, %", "train_accuracy", "training"),
            (accuracy, "accuracy, %", "test_accuracy", "test"),
        ):
            axes.plot(table["epoch"], table[column], "o-", markersize=3, label=label)
            axes.set(xlabel="epoch", ylabel=title)
            axes.xaxis.get_major_locator().set_params(integer=True)
            axes.grid(alpha=0.3)
        accuracy.legend()


def plot_accuracies(
    path: Path,
    curves: Curves,
    heading: Heading,
    removed: str = "weights",
    metadata: Mapping[str, str] = {},
) -> None:
    """Accuracy against how much is removed, in one panel, of one network or of several methods."""
    with picture(path, heading, 10, 4 + 0.1 * len(curves), metadata) as figure:
        _draw_accuracies(figure.subplots(), curves, removed)


def _draw_accuracies(axes: "Axes", curves: Curves, removed: str) -> None:
    """Test accuracy against how much is `removed`: means over runs, in bands of their range.

    A method has one colour and marker; it is dashed as pruned, and solid when it is corrected. The
    scale is logarithmic in what is left, so that it spreads 90 to 99 %; patterns have a place each.
    """
    from matplotlib import rcParams

    methods = list(dict.fromkeys(method for method, _ in curves))
    looks = zip(cycle(rcParams["axes.prop_cycle"].by_key()["color"]), cycle(MARKERS))
    of_method = dict(zip(methods, looks))  # noqa: B905 - the looks have no end
    drawn = [ratio for runs in curves.values() for run in runs for ratio in run]
    of_patterns = isinstance(drawn[0], str)
    if of_patterns:  # otherwise they would stand in the order in which the curves have them
        axes.xaxis.update_units(by_removed(drawn))
    for (method, column), runs in curves.items():
        ratios = [ratio for ratio in runs[0] if all(ratio in run for run in runs)]
        left = ratios if of_patterns else [100 * (1 - ratio) for ratio in ratios]
        values = np.array([[run[ratio] for ratio in ratios] for run in runs], dtype=float)
        colour, marker = of_method[method]
        style = "--" if column == AS_PRUNED else "-"
        axes.plot(left, values.mean(0), style, color=colour, marker=marker, markersize=4)
        axes.fill_between(left, values.min(0), values.max(0), color=colour, alpha=0.15, linewidth=0)
        is_whole = ratios[0] in (0, DENSE) and np.isfinite(values[:, 0]).all()
        if len(methods) == 1 and column == AS_PRUNED and is_whole:
            dense = values[:, 0].mean()
            label = f"nothing removed: {dense:.2f} %"
            axes.axhline(dense, color="0.6", linestyle=":", label=label)
    low, high = axes.get_ylim()  # tenths of a point are not to fill the picture
    axes.set_ylim(low - 0.5, high + 0.5)
    if not of_patterns:
        _set_removed(axes, drawn)
    axes.set(xlabel="pattern" if of_patterns else f"{removed} removed, %")
    axes.set(ylabel="test accuracy, %")
    axes.grid(alpha=0.3)
    _add_legend(axes, curves, of_method)


def _set_removed(axes: "Axes", ratios: Sequence[float]) -> None:
    """A logarithmic scale of what is left, with fixed ticks; it begins and ends at a tick."""
    low, high = round(100 * min(ratios), 9), round(100 * max(ratios), 9)
    first = max(tick for tick in REMOVED if tick <= low)
    last = min((tick for tick in REMOVED if tick >= high), default=high)
    ticks = sorted(tick for tick in {*REMOVED, last} if first <= tick <= last)
    axes.set_xscale("log")
    axes.set_xticks([100 - tick for tick in ticks], [f"{tick:.10g}" for tick in ticks])
    axes.minorticks_off()
    axes.set_xlim(1.08 * (100 - first), (100 - last) / 1.08)


def _add_legend(axes: "Axes", curves: Curves, looks: Mapping[str, tuple[str, str]]) -> None:
    """Each method, each column, and what gaps mean; beside the axes if methods have names."""
    for method, (colour, marker) in looks.items():
        if method:
            label = textwrap.fill(method, 48)
            axes.plot([], [], marker=marker, linestyle="", color=colour, label=label)
    for column in dict.fromkeys(column for _, column in curves):
        axes.plot([], [], "--" if column == AS_PRUNED else "-", color="0.4", label=column)
    if any(value is None for runs in curves.values() for run in runs for value in run.values()):
        axes.plot([], [], " ", label="gap: outputs are not finite")
    beside = {"loc": "upper left", "bbox_to_anchor": (1, 1)}
    legend = axes.legend(fontsize=8, **(beside if any(looks) else {"loc": "lower left"}))
    for text in legend.get_texts():
        text.set_parse_math(False)  # labels may contain names of files


def plot_slicing(
    path: Path, curves: Curves, measures: Sequence[Mapping[str, float]], heading: Heading
) -> None:
    """Accuracy against the multiply-adds that are removed, and against measured time.

    `measures` has what was measured of each sliced network. The last of the `curves`, which are of
    one run each, is drawn against time.
    """
    with picture(path, heading, 12, 4.4) as figure:
        by_removed, by_time = figure.subplots(1, 2, sharey=True)
        _draw_accuracies(by_removed, curves, "multiply-adds")
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


def plot_layer_sparsity(
    path: Path, ratios: Sequence[float], left: dict[str, Sequence[float]], heading: Heading
) -> None:
    """A heat map: the fraction of its entries that each parameter tensor keeps at each ratio.

    A cross marks a tensor that keeps none. `left` maps names of parameters to these fractions.
    """
    from matplotlib.colors import LogNorm

    values = np.array(list(left.values()))
    with picture(path, heading, 9, 1.8 + 0.16 * len(left)) as figure:
        axes = figure.subplots()
        least = values[values > 0].min(initial=0.1)
        mesh = axes.pcolormesh(values, cmap="viridis", norm=LogNorm(least, 1))
        rows, columns = np.nonzero(values == 0)
        axes.plot(columns + 0.5, rows + 0.5, "x", color="black", markersize=4)
        middles = np.arange(len(ratios)) + 0.5
        axes.set_xticks(middles, [*map(shown, ratios)], fontsize=7, rotation=90)
        axes.set_xlabel("weights removed from the network")
        _name_rows(axes, list(left))
        figure.colorbar(mesh, ax=axes, label="fraction left (cross: none)", pad=0.01)


def plot_distribution(path: Path, model: nn.Module, heading: Heading) -> None:
    """Histograms of log10 of magnitude: one of all parameters, and a row for each tensor."""
    logs = {name: log_magnitudes(p.cpu()) for name, p in model.named_parameters()}
    present = [values for values in logs.values() if len(values)]
    low = min((v.min().floor().item() for v in present), default=-1)
    high = max(max((v.max().ceil().item() for v in present), default=0), low + 1)
    bins = int(high - low) * BINS_PER_DECADE
    edges = np.linspace(low, high, bins + 1)
    rows = torch.stack([torch.histc(values, bins, low, high) for values in logs.values()])

    with picture(path, heading, 9, 4 + 0.16 * len(logs)) as figure:
        heights = (3, max(1, 0.16 * len(logs)))
        overall, layers = figure.subplots(2, 1, sharex=True, height_ratios=heights)
        overall.stairs(rows.sum(0).numpy(), edges, fill=True, alpha=0.7)
        overall.set_ylabel("parameters")
        total = sum(p.numel() for p in model.parameters())
        zeros = sum(zeros_by_parameter(model).values())
        overall.set_title(f"all {total:,} parameters, of which {zeros:,} are exactly 0", fontsize=9)
        shares = (rows / rows.sum(1, keepdim=True).clamp(min=1)).numpy()
        mesh = layers.pcolormesh(edges, range(len(logs) + 1), shares, cmap="viridis")
        _name_rows(layers, list(logs))
        figure.colorbar(mesh, ax=layers, label="share", pad=0.01)
        layers.set_xlabel("log10 of magnitude")


def plot_scales(path: Path, scales: dict[str, float], heading: Heading) -> None:
    """A bar for each parameter tensor's SFW-Init scale, in the order of the network."""
    with picture(path, heading, 7, 1.6 + 0.16 * len(scales)) as figure:
        axes = figure.subplots()
        colours = ["C1" if "bias" in name else "C0" for name in scales]
        axes.barh(list(scales), list(scales.values()), color=colours)
        axes.axvline(1, color="0.5", linestyle="--")
        axes.tick_params(axis="y", labelsize=6)
        axes.set_ylim(len(scales) - 0.5, -0.5)
        axes.set_xlabel("scale of the initial values (blue: weights, orange: biases)")


def _name_rows(axes: "Axes", names: Sequence[str]) -> None:
    """Name the rows of a heat map, the first at the top."""
    axes.set_yticks([i + 0.5 for i in range(len(names))], names, fontsize=6)
    axes.invert_yaxis()
