"""What the pictures have in common: their size, axes of sparsity, heading and file.

matplotlib takes half a second to import, so each function imports what it needs of it.
"""

import textwrap
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from utils.process.writing import atomic_write
from utils.reports.headings import Heading

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

STYLE = {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}
# Characters in an inch: of the title, of the settings below it, and of the labels of ticks.
TITLE_DENSITY, SETTINGS_DENSITY, TICK_DENSITY = 12, 21, 12
# In inches: the height of a line, and the border of the settings.
TICK_HEIGHT, SETTINGS_HEIGHT, BORDER = 0.13, 0.11, 0.04


def new_figure(width: float, height: float) -> "Figure":
    """An empty figure of this size in inches."""
    import matplotlib
    from matplotlib.figure import Figure

    matplotlib.rcParams.update(STYLE)
    return Figure(figsize=(width, height), layout="constrained")


def save_figure(figure: "Figure", path: Path, heading: Heading) -> None:
    """Write the figure with its heading as a PNG file; raises RunError when that fails."""
    width, height = figure.get_size_inches()
    # What a name contains is not to be read as a formula.
    title = textwrap.fill(heading.title, int(width * TITLE_DENSITY), break_on_hyphens=False)
    figure.suptitle(title, fontsize=10, parse_math=False)
    lines = textwrap.wrap(heading.settings, int(width * SETTINGS_DENSITY), break_on_hyphens=False)
    style = {"fontsize": 6, "color": "0.4", "ha": "center", "parse_math": False}
    figure.text(0.5, BORDER / height, "\n".join(lines), in_layout=False, **style)
    below = (2 * BORDER + len(lines) * SETTINGS_HEIGHT) / height
    for legend in figure.legends:  # between the axes and the settings
        legend.set_bbox_to_anchor((0, below, 1, 1 - below), figure.transFigure)
        below += legend.get_window_extent().height / figure.bbox.height + 2 * BORDER / height
    figure.get_layout_engine().set(rect=(0, below, 1, 1 - below))
    with atomic_write(path, "wb") as file, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # letters that the font lacks
        figure.savefig(file, format="png", dpi=120)


def sparsity_panels(
    figure: "Figure", ratios: Sequence[float]
) -> list[tuple["Axes", Sequence[float]]]:
    """Axes of test accuracy against sparsity, both in percent, with the ratios that each shows.

    One panel goes up to 0.9 and one starts there. Where one of these would have fewer than two of
    the ratios, which are ascending, a single panel has all.
    """
    halves = [[r for r in ratios if r <= 0.9], [r for r in ratios if r >= 0.9]]
    shown = halves if min(map(len, halves)) > 1 else [ratios]
    panels = figure.subplots(1, len(shown), squeeze=False)[0]
    width = 0.85 * figure.get_figwidth() / len(shown)
    for axes, part in zip(panels, shown, strict=True):
        _set_sparsities(axes, [100 * ratio for ratio in part], width)
        axes.set_xlabel("sparsity: weights removed, %")
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("test accuracy, %")
    return list(zip(panels, shown, strict=True))


def _set_sparsities(axes: "Axes", sparsities: Sequence[float], width: float) -> None:
    """Limits and ticks for these sparsities on axes that are `width` inches wide.

    Beyond 99 % the scale is logarithmic in what is left. Ticks that would overlap are left out.
    """
    if sparsities[-1] > 99:
        axes.set_xscale("function", functions=(_decades_removed, lambda x: 100 - 10.0**-x))
    transform = axes.transScale.transform
    x = transform([(s, 0) for s in sparsities])[:, 0]
    margin = 0.03 * (x[-1] - x[0] or 1)
    ends = axes.transScale.inverted().transform([(x[0] - margin, 0), (x[-1] + margin, 0)])
    axes.set_xlim(ends[:, 0])
    labels = [f"{s:.10g}" for s in sparsities]
    inches = (x - x[0]) * width / (x[-1] - x[0] + 2 * margin)
    crowded = np.diff(inches).min(initial=width) < (max(map(len, labels)) + 1) / TICK_DENSITY
    room, last = TICK_HEIGHT if crowded else 0, len(labels) - 1
    kept = [last]
    for i in reversed(range(1, last)):
        if min(inches[kept[-1]] - inches[i], inches[i]) >= room:
            kept.append(i)
    kept += [0] * (last > 0)
    ticks = [sparsities[i] for i in kept]
    axes.set_xticks(ticks, [labels[i] for i in kept], rotation=90 if crowded else 0)
    axes.minorticks_off()


def _decades_removed(sparsity: np.ndarray) -> np.ndarray:
    return -np.log10(np.clip(100 - np.asarray(sparsity, float), 1e-9, None))


def set_accuracy_limits(axes: "Axes", shown: Sequence[float | None]) -> None:
    """Fit the axes to these accuracies, with at least half a point on either side.

    Those that are None or NaN do not count, since outputs were not finite there.
    """
    values = np.array(shown, dtype=float)
    shown = values[np.isfinite(values)] if np.isfinite(values).any() else [0.0, 100.0]
    margin = max(0.08 * (max(shown) - min(shown)), 0.5)
    axes.set_ylim(min(shown) - margin, max(shown) + margin)


def name_rows(axes: "Axes", names: Sequence[str]) -> None:
    """Name the rows of a heat map, the first at the top."""
    axes.set_yticks([i + 0.5 for i in range(len(names))], names, fontsize=6)
    axes.invert_yaxis()
