"""The tables and the picture of the proxy's results."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean

from utils.outputs.figures import new_figure, save_figure
from utils.outputs.headings import Heading

# By ratio, the accuracies in percent that these columns name.
Accuracies = dict[str, tuple[float, float]]
COLUMNS = AS_PRUNED, RECALIBRATED = "as pruned", "recalibrated"


def tuning_table(judged: Mapping[str, Mapping[float, float]], column: str = RECALIBRATED) -> str:
    """A row for each method: its strengths and how they were judged, the best one in bold."""
    lines = [f"| method | strength: mean accuracy on held-out images, {column} |"]
    lines.append("| --- | --- |")
    for method, judgements in judged.items():
        texts = {s: f"{s:g}: {judgement:.1f}" for s, judgement in judgements.items()}
        best = max(judgements, key=judgements.get)
        texts[best] = f"**{texts[best]}**"
        lines.append(f"| {method} | {', '.join(texts.values())} |")
    return "\n".join(lines)


def test_table(results: Mapping[str, Sequence[Accuracies]], column: str) -> str:
    """A row for each label: means over its runs, and the range of this column."""
    ratios = _ratios(results)
    lines = ["| removed | " + " | ".join(f"{100 * float(ratio):g} %" for ratio in ratios) + " |"]
    lines.append("| --- |" + " --- |" * len(ratios))
    for label, runs in results.items():
        cells = []
        for ratio in ratios:
            pairs = [run[ratio] for run in runs]
            means = " / ".join(f"{fmean(values):.1f}" for values in zip(*pairs, strict=True))
            spread = [pair[COLUMNS.index(column)] for pair in pairs]
            cells.append(f"{means} ({min(spread):.1f} to {max(spread):.1f})")
        lines.append(f"| {label} | {' | '.join(cells)} |")
    return "\n".join(lines)


def draw(path: Path, results: Mapping[str, Sequence[Accuracies]], title: str) -> None:
    """Accuracy as pruned and recalibrated, against what is left: means in bands of their range."""
    import matplotlib
    from cycler import cycler

    figure = new_figure(10, 5)
    styles = cycler(linestyle=["-", "--"]) * matplotlib.rcParams["axes.prop_cycle"]
    ratios = _ratios(results)
    left = [100 * (1 - float(ratio)) for ratio in ratios]
    panels = figure.subplots(1, 2, sharey=True)
    for i, (axes, name) in enumerate(zip(panels, COLUMNS, strict=True)):
        axes.set_prop_cycle(styles)
        for label, runs in results.items():
            columns = [[run[ratio][i] for run in runs] for ratio in ratios]
            (line,) = axes.plot(
                left, [fmean(c) for c in columns], marker="o", markersize=4, label=label
            )
            band = [min(c) for c in columns], [max(c) for c in columns]
            axes.fill_between(left, *band, color=line.get_color(), alpha=0.2)
        axes.set_xscale("log")
        axes.invert_xaxis()
        axes.set_xticks(left, [f"{100 * float(ratio):g}" for ratio in ratios])
        axes.minorticks_off()
        axes.set_xlabel("weights removed, %")
        axes.set_title(name, fontsize=9)
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("test accuracy, %")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncols=4, fontsize=8)
    save_figure(figure, path, Heading(title))


def _ratios(results: Mapping[str, Sequence[Accuracies]]) -> list[str]:
    return list(next(iter(results.values()))[0])
