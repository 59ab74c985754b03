"""The pictures of results: accuracy against sparsity."""

import hashlib
import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean

from experiments.results import AS_PRUNED, RECALIBRATED, Result
from utils.process.writing import atomic_write

Rows = Mapping[str, Sequence[Result]]
TICKS = (0.0, 0.3, 0.5, 0.75, 0.8, 0.85, 0.9, 0.95, 0.97, 0.98, 0.99)
STYLES = {RECALIBRATED: "-", AS_PRUNED: "--"}


def digest(rows: Rows, title: str) -> str:
    """What a picture of these rows is known by."""
    drawn = [title, {name: [r.accuracies for r in results] for name, results in rows.items()}]
    return hashlib.sha256(json.dumps(drawn).encode()).hexdigest()


def draw(path: Path, rows: Rows, title: str) -> None:
    """Accuracy against sparsity: means in bands of their range, solid where recalibrated.

    The scale is logarithmic in what is left, and the picture's Description is its digest.
    """
    from matplotlib import rcParams
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5.5), layout="constrained")
    axes, shown = figure.subplots(), set()
    results = list(itertools.chain.from_iterable(rows.values()))
    removed = "multiply-adds" if any(result.sizes for result in results) else "weights"
    colours = itertools.cycle(rcParams["axes.prop_cycle"].by_key()["color"])
    columns = [c for c in STYLES if any(result.accuracies[c] for result in results)]
    for column in columns:
        axes.plot([], [], STYLES[column], color="0.4", label=column)
    for (name, runs), colour in zip(rows.items(), colours, strict=False):
        axes.plot([], [], "s", color=colour, label=name)
        for column in columns:
            curves = [run.accuracies[column] for run in runs]
            ratios = sorted(set.intersection(*map(set, curves)))
            left = [100 * (1 - ratio) for ratio in ratios]
            low, mean, high = (
                [f(curve[ratio] for curve in curves) for ratio in ratios] for f in (min, fmean, max)
            )
            axes.plot(left, mean, STYLES[column], color=colour, marker="o", ms=3)
            axes.fill_between(left, low, high, color=colour, alpha=0.15, linewidth=0)
            shown |= set(ratios)
    ticks = [ratio for ratio in TICKS if ratio in shown]
    axes.set(xscale="log", xlabel=f"{removed} removed, %", ylabel="test accuracy, %", title=title)
    axes.invert_xaxis()
    axes.set_xticks([100 * (1 - r) for r in ticks], [f"{100 * r:g}" for r in ticks])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    figure.legend(fontsize=8, loc="outside lower center", ncols=2)
    with atomic_write(path, "wb") as file:
        metadata = {"Description": digest(rows, title)}
        figure.savefig(file, format="png", dpi=120, metadata=metadata)


def is_drawn(path: Path, rows: Rows, title: str) -> bool:
    """Whether the file is a picture of these rows."""
    from PIL import Image

    return path.is_file() and Image.open(path).text["Description"] == digest(rows, title)
