"""What the pictures have in common: their file, their heading, and axes of accuracy.

matplotlib takes half a second to import, so each function imports what it needs of it.
"""

import textwrap
import warnings
from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from utils.process.errors import RunError
from utils.process.writing import atomic_write
from utils.reports.headings import Heading

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

AS_PRUNED = "as pruned"
# By method and column (AS_PRUNED or what corrected it), the accuracies in percent of each run, by
# the fraction removed; None where outputs are not finite.
Curves = Mapping[tuple[str, str], Sequence[Mapping[float, float | None]]]

STYLE = {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}
MARKERS = "os^Dv<>"  # as many as are coprime to the ten colours: 70 methods look different
REMOVED = (0, 30, 50, 70, 80, 90, 95, 97, 98, 99, 99.5, 99.9, 99.99, 99.999)  # ticks, in percent


def new_figure(width: float, height: float) -> "Figure":
    """An empty figure of this size in inches; raises RunError without matplotlib."""
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise RunError(f"pictures need matplotlib ({error}); install requirements.txt") from None
    matplotlib.rcParams.update(STYLE)
    return Figure(figsize=(width, height), layout="constrained")


def save_figure(
    figure: "Figure", path: Path, heading: Heading, metadata: Mapping[str, str] | None = None
) -> None:
    """Write the figure with its heading in the format that the suffix of `path` names.

    Raises RunError when that fails.
    """
    width = int(figure.get_figwidth())
    # What a name contains is not to be read as a formula.
    title = textwrap.fill(heading.title, 12 * width, break_on_hyphens=False)
    figure.suptitle(title, fontsize=10, parse_math=False)
    settings = textwrap.fill(heading.settings, 20 * width, break_on_hyphens=False)
    figure.supxlabel(settings, fontsize=6, color="0.4", parse_math=False)
    with atomic_write(path, "wb") as file, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # letters that the font lacks
        figure.savefig(file, format=path.suffix[1:], dpi=120, metadata=metadata)


def draw_accuracies(axes: "Axes", curves: Curves, removed: str) -> None:
    """Test accuracy against how much is `removed`: means over runs, in bands of their range.

    A method has one colour and marker; it is dashed as pruned, and solid when it is corrected. The
    scale is logarithmic in what is left, so that it spreads 90 to 99 %.
    """
    from matplotlib import rcParams

    methods = list(dict.fromkeys(method for method, _ in curves))
    looks = zip(cycle(rcParams["axes.prop_cycle"].by_key()["color"]), cycle(MARKERS))
    of_method = dict(zip(methods, looks))  # noqa: B905 - the looks have no end
    for (method, column), runs in curves.items():
        ratios = sorted(set.intersection(*map(set, runs)))
        left = [100 * (1 - ratio) for ratio in ratios]
        values = np.array([[run[ratio] for ratio in ratios] for run in runs], dtype=float)
        colour, marker = of_method[method]
        style = "--" if column == AS_PRUNED else "-"
        axes.plot(left, values.mean(0), style, color=colour, marker=marker, markersize=4)
        axes.fill_between(left, values.min(0), values.max(0), color=colour, alpha=0.15, linewidth=0)
        if len(methods) == 1 and column == AS_PRUNED and ratios[0] == 0:
            dense = values[:, 0].mean()
            axes.axhline(dense, color="0.6", linestyle=":", label=f"at 0 %: {dense:.2f} %")
    low, high = axes.get_ylim()  # tenths of a point are not to fill the picture
    axes.set_ylim(low - 0.5, high + 0.5)
    _set_removed(axes, [ratio for runs in curves.values() for run in runs for ratio in run])
    axes.set(xlabel=f"{removed} removed, %", ylabel="test accuracy, %")
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


def name_rows(axes: "Axes", names: Sequence[str]) -> None:
    """Name the rows of a heat map, the first at the top."""
    axes.set_yticks([i + 0.5 for i in range(len(names))], names, fontsize=6)
    axes.invert_yaxis()
