"""Several runs' curves of accuracy against sparsity, in one picture and one table."""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from utils.compute.measure import Accuracy
from utils.process.errors import UserError, warn
from utils.process.writing import atomic_write, check_writable
from utils.prune.config import CORRECTIONS, DEFAULTS, PruneConfig
from utils.reports.headings import Heading, heading
from utils.reports.plots import plot_comparison
from utils.reports.tables import SHOWN, is_of_channels, read_accuracies, read_settings
from utils.settings.config import (
    FIELDS,
    LABELS,
    NAMED_ALWAYS,
    defaults_beside,
    training_known,
)
from utils.settings.fields import differing, identifying_settings
from utils.settings.names import RunFiles, file_name, percent, plain, results_line

PRUNED_BEFORE = "pruned_before"  # the sparsity of a model that was already pruned, or "None"
# For each label its runs, each of which maps pruning ratios to accuracies.
Runs = dict[str, list[dict[float, Accuracy]]]
OF_PRUNING = (*identifying_settings(PruneConfig()), PRUNED_BEFORE)


@dataclass(frozen=True)
class Curve:
    """The accuracies of one network by ratio, and the settings that identify it.

    `settings` has values as text, and `notable` names those that are not at their defaults. If some
    settings of the training are unknown, these are missing, and `model_file` is the name of the
    network's file, by which its curve is labelled.
    """

    table: Path
    settings: dict[str, str]
    notable: frozenset[str]
    accuracies: dict[float, Accuracy]
    model_file: str | None = None


def compare(tables: Sequence[Path], output_dir: Path) -> None:
    """Draw the curves of these tables in one picture, and write and print them as one table.

    Raises UserError for a file that is no table of test_prune.py or has no settings beside it, and
    for tables that have no ratio in common.
    """
    paths = list(dict.fromkeys(path.resolve() for path in tables))
    if weights := [path for path in paths if not is_of_channels(path)]:
        for path in (path for path in paths if path not in weights):
            warn(f"{path}: is of --granularity channels, and left out")
        paths = weights
    curves = distinct([curve for path in paths for curve in read_curves(path)])
    ratios = shown_ratios(curves)
    runs: Runs = {}
    for label, curve in zip(labels_of(curves), curves, strict=True):
        runs.setdefault(label, []).append(curve.accuracies)
    values = {name: {curve.settings.get(name) for curve in curves} for name in NAMED_ALWAYS}
    common = {
        LABELS.get(n, n): value for n, (value, *others) in values.items() if value and not others
    }
    digest = hashlib.sha256("\n".join(map(str, paths)).encode(errors="replace")).hexdigest()[:16]
    files = RunFiles(output_dir, file_name(common | {"runs": len(paths), "sha256": digest}))
    picture, table = files.comparison(".png"), files.comparison(".md")
    check_writable([picture, table], "--output_dir")
    drawn = {n: [{r: a.percent for r, a in run.items()} for run in of] for n, of in runs.items()}
    plot_comparison(picture, drawn, heading_of(curves))
    text = comparison_table(runs, ratios)
    with atomic_write(table) as file:
        file.write(text)
    print(f"\n{text}\n{results_line(picture=picture, table=table)}")


def heading_of(curves: Sequence[Curve]) -> Heading:
    """The heading of a picture of these curves: the settings that they have in common."""
    first, *others = curves
    common = {
        n: v for n, v in first.settings.items() if all(o.settings.get(n) == v for o in others)
    }
    training = {name: value for name, value in common.items() if name not in OF_PRUNING}
    pruning = {n: v for n, v in common.items() if n in OF_PRUNING and n in first.notable}
    return heading(training, pruning)


def read_curves(table: Path) -> list[Curve]:
    """The curves in a table: the pruned networks and, in another column, the corrected ones."""
    columns, run = read_accuracies(table), read_settings(table)
    if missing := [ratio for ratio in run.ratios if ratio not in columns["accuracy"]]:
        raise UserError(
            f"{table}: has no row of sparsity {plain(missing[0])}, which its settings name; run"
            " test_prune.py again with the flags of that run"
        )
    known = run.training | run.pruning
    known[PRUNED_BEFORE] = run.pruned_before and run.pruned_before.get("sparsity")
    defaults = defaults_beside(run.training) | DEFAULTS | {PRUNED_BEFORE: None}
    known.pop("own_data", None)
    model_file = None if training_known(run.training) else run.model_file
    curves = []
    for column, accuracies in columns.items():
        others = [flag for flag, its_column in CORRECTIONS.items() if its_column != column]
        settings = {n: plain(v) for n, v in (known | dict.fromkeys(others, 0)).items()}
        notable = frozenset(differing(settings, defaults))
        curves.append(Curve(table, settings, notable, accuracies, model_file))
    return curves


def distinct(curves: Sequence[Curve]) -> list[Curve]:
    """The curves without copies: tables with and without a correction share the uncorrected one."""
    keys = [(tuple(c.settings.items()), tuple(c.accuracies.items()), c.model_file) for c in curves]
    return list(dict(zip(keys, curves, strict=True)).values())


def shown_ratios(curves: Sequence[Curve]) -> list[float]:
    """The ratios of SHOWN or, if a curve lacks one of these, all that the curves have in common."""
    common = set.intersection(*(set(curve.accuracies) for curve in curves))
    if not common:
        raise UserError("--compare: the tables have no sparsity in common; test both at the same")
    return list(SHOWN) if common.issuperset(SHOWN) else sorted(common)


def comparison_table(curves: Runs, ratios: Sequence[float]) -> str:
    """A Markdown row for each label, with what `_cell` tells of its runs at each ratio."""
    titles = [f"{percent(ratio)}%" for ratio in ratios]
    lines = ["| weights removed | " + " | ".join(titles) + " |"]
    lines.append("| --- |" + " --- |" * len(ratios))
    for label, runs in curves.items():
        cells = [_cell([run[ratio] for run in runs]) for ratio in ratios]
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _cell(runs: Sequence[Accuracy]) -> str:
    """The mean over the runs and, of several, their range; whether outputs were not finite."""
    percents = [accuracy.percent for accuracy in runs]
    if without := percents.count(None):
        return "not finite" + (f" in {without} of {len(runs)} runs" if len(runs) > 1 else "")
    spread = f" ({min(percents):.2f} to {max(percents):.2f})" if len(runs) > 1 else ""
    mark = ", some not finite" if any(accuracy.not_finite for accuracy in runs) else ""
    return f"{sum(percents) / len(runs):.2f}{spread}{mark}"


def labels_of(curves: Sequence[Curve]) -> list[str]:
    """A label for each curve, from the settings that differ between the curves.

    Curves that differ in the seed alone share a label, which states their number. Other curves of
    equal settings are distinguished by their paths.
    """
    names = [name for name in (*FIELDS, *OF_PRUNING) if name != "seed"]
    differ = [n for n in names if len({c.settings[n] for c in curves if n in c.settings}) > 1]
    groups: dict[str, list[int]] = {}
    for i, curve in enumerate(curves):
        groups.setdefault(_label(curve, differ), []).append(i)
    labels = {}
    for label, members in groups.items():
        count = len(members)
        seeds = {curves[i].settings.get("seed") for i in members}
        if len(seeds) == count:
            ends = [f", {count} seeds" if count > 1 else ""] * count
        else:
            ends = _distinguishing_ends([curves[i].table for i in members])
        labels |= {i: label + end for i, end in zip(members, ends, strict=True)}
    return [labels[i] for i in range(len(labels))]


def _label(curve: Curve, differ: Sequence[str]) -> str:
    """The settings of a curve that differ from those of others, except defaults.

    If all of them are defaults, they are shown nevertheless. A curve whose training settings are
    unknown has the name of its model file instead of these.
    """
    own = curve.settings
    texts = {name: own[name] if name in NAMED_ALWAYS else f"{name}={own[name]}" for name in own}
    shown = [n for n in differ or NAMED_ALWAYS if n in own]
    if curve.model_file is not None:
        shown = [name for name in shown if name in OF_PRUNING]
    chosen = [n for n in shown if n in NAMED_ALWAYS or n in curve.notable]
    if curve.model_file is not None:
        return " ".join([Path(curve.model_file).stem, *(texts[name] for name in chosen)])
    if not chosen:  # a correction that is switched off is not worth a word
        chosen = [n for n in shown if n not in (*CORRECTIONS, PRUNED_BEFORE)] or NAMED_ALWAYS
    return " ".join(texts[name] for name in chosen)


def _distinguishing_ends(tables: Sequence[Path]) -> list[str]:
    """For each table, in brackets, the part of its path that differs from those of the others."""
    whole = [str(path).encode(errors="replace").decode() for path in tables]
    names = [os.path.splitext(path)[0] for path in whole]
    shared = os.path.commonprefix(names)  # noqa: RUF071 - of names, too, not of folders alone
    start = max(shared.rfind("_"), shared.rfind("/")) + 1
    if any(name[len(shared) :][:1] not in ("", "_", "/") for name in names):
        shared = shared[:start]  # no name and no value, such as ratios=0.5, is cut in the middle
    ends = [name.removeprefix(shared).strip("_/") for name in names]
    unique = ends if len(set(ends)) == len(ends) else whole
    return [f" ({text})" if text else "" for text in unique]
