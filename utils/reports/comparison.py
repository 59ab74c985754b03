"""Several runs' curves of accuracy against sparsity, in one picture and one table."""

import dataclasses
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from utils.compute.measure import Accuracy
from utils.process.errors import UserError, warn
from utils.process.writing import atomic_write, check_writable
from utils.prune.config import CORRECTIONS, DEFAULTS, PruneConfig
from utils.reports.figures import AS_PRUNED
from utils.reports.headings import Heading, heading, phrase
from utils.reports.logs import write_csv
from utils.reports.plots import plot_accuracies
from utils.reports.tables import is_of_channels, read_accuracies, read_settings
from utils.settings.config import FIELDS, LABELS, NAMED_ALWAYS, Config, defaults_beside
from utils.settings.fields import differing, identifying_settings
from utils.settings.names import RunFiles, file_name, percent, plain, results_line

# The ratios that a comparison prints if all of its tables have them.
SHOWN = (0.0, 0.5, 0.8, 0.9, 0.95, 0.97, 0.98, 0.99)
PRUNED_BEFORE = "pruned_before"  # the sparsity of a model that was already pruned, or "None"
OF_PRUNING = (*identifying_settings(PruneConfig()), PRUNED_BEFORE)
# By method and column, the accuracies of each run, by ratio.
Runs = dict[tuple[str, str], list[dict[float, Accuracy]]]


@dataclass(frozen=True)
class Curve:
    """The accuracies of one network by ratio, as pruned or corrected.

    `settings`, as text, identify it; `notable` are those that are not at their defaults. A network
    whose training settings are unknown is called by its `model_file`.
    """

    table: int  # its number, from 1
    column: str  # AS_PRUNED, or what corrected it
    settings: dict[str, str]
    notable: frozenset[str]
    model_file: str | None
    accuracies: dict[float, Accuracy]


def compare(
    tables: Sequence[Path],
    config: Config,
    labels: Sequence[str] = (),
    title: str | None = None,
    name: str | None = None,
) -> None:
    """Draw the curves of these tables in one picture, and write and print them as one table.

    There is one of the `labels` for each table, or none; tables with the same one are runs of one
    method. `title` is that of the picture, and `name` that of the files. Raises UserError for a
    file that is no table of test_prune.py or has no settings beside it, and for tables that have no
    ratio in common.
    """
    if labels and len(labels) != len(tables):
        raise UserError(f"--labels: there are {len(labels)} for {len(tables)} tables; give as many")
    paths = list(dict.fromkeys(path.resolve() for path in tables))
    own = dict(zip((path.resolve() for path in tables), labels, strict=False))
    if weights := [path for path in paths if not is_of_channels(path)]:
        for path in (path for path in paths if path not in weights):
            warn(f"{path}: is of --granularity channels, and left out")
        paths = weights
    curves = distinct([c for i, path in enumerate(paths, 1) for c in read_curves(path, i)])
    shown = labels_of(curves) if not labels else [own[paths[c.table - 1]] for c in curves]
    runs: Runs = {}
    for label, curve in zip(shown, curves, strict=True):
        runs.setdefault((label, curve.column), []).append(curve.accuracies)
    ratios = shown_ratios(curves)
    above = heading_of(curves)
    files = RunFiles(config.output_dir, name or _name(curves, paths), config.files.figures)
    picture, table, csv = (files.comparison(s) for s in (files.figures, ".md", ".csv"))
    check_writable([picture, table, csv], "--output_dir")
    drawn = {k: [{r: a.percent for r, a in run.items()} for run in of] for k, of in runs.items()}
    plot_accuracies(picture, drawn, dataclasses.replace(above, title=title or above.title))
    text = comparison_table(runs, ratios)
    with atomic_write(table) as file:
        file.write(text)
    write_csv(csv, *comparison_rows(runs))
    print(f"\n{text}\n{results_line(picture=picture, table=table, numbers=csv)}")


def _name(curves: Sequence[Curve], paths: Sequence[Path]) -> str:
    """The name of the files of a comparison: what the runs share, and a checksum of their paths."""
    common = {n: v for n, v in _common(curves).items() if n in NAMED_ALWAYS}
    digest = hashlib.sha256("\n".join(map(str, paths)).encode(errors="replace")).hexdigest()[:16]
    parts = {LABELS.get(name, name): value for name, value in common.items()}
    return file_name(parts | {"runs": len(paths), "sha256": digest})


def _common(curves: Sequence[Curve]) -> dict[str, str]:
    first, *others = (curve.settings for curve in curves)
    return {n: value for n, value in first.items() if all(o.get(n) == value for o in others)}


def heading_of(curves: Sequence[Curve]) -> Heading:
    """The heading of a picture of these curves: the settings that they have in common."""
    common = _common(curves)
    training = {name: value for name, value in common.items() if name not in OF_PRUNING}
    pruning = {n: v for n, v in common.items() if n in OF_PRUNING and n in curves[0].notable}
    return heading(training, pruning)


def read_curves(table: Path, number: int = 1) -> list[Curve]:
    """The curves in a table: the pruned networks and, in another column, the corrected ones."""
    columns, run = read_accuracies(table), read_settings(table)
    known = run.training | run.pruning | {PRUNED_BEFORE: run.pruned_before}
    known.pop("own_data", None)
    defaults = defaults_beside(run.training) | DEFAULTS | {PRUNED_BEFORE: None}
    curves = []
    for column, accuracies in columns.items():
        others = {flag for flag, its_column in CORRECTIONS.items() if its_column != column}
        settings = {n: plain(v) for n, v in known.items() if n not in others}
        notable = frozenset(differing(settings, defaults))
        title = AS_PRUNED if column == "accuracy" else column
        curves.append(Curve(number, title, settings, notable, run.model_file, accuracies))
    return curves


def distinct(curves: Sequence[Curve]) -> list[Curve]:
    """The curves without copies: tables with and without a correction share the uncorrected one."""
    keys = [(c.column, str(c.settings), str(c.accuracies), c.model_file) for c in curves]
    return list(dict(zip(reversed(keys), reversed(curves), strict=True)).values())[::-1]


def shown_ratios(curves: Sequence[Curve]) -> list[float]:
    """The ratios of SHOWN or, if a curve lacks one of these, all that the curves have in common."""
    common = set.intersection(*(set(curve.accuracies) for curve in curves))
    if not common:
        raise UserError("--compare: the tables have no sparsity in common; test both at the same")
    return list(SHOWN) if common.issuperset(SHOWN) else sorted(common)


def comparison_table(runs: Runs, ratios: Sequence[float]) -> str:
    """A Markdown row for each method and column, with what `_cell` tells of its runs."""
    lines = ["| weights removed | " + " | ".join(f"{percent(ratio)}%" for ratio in ratios) + " |"]
    lines.append("| --- |" + " --- |" * len(ratios))
    several = len({column for _, column in runs}) > 1
    for (label, column), of_runs in runs.items():
        name = label + f", {column}" * several + f", {len(of_runs)} runs" * (len(of_runs) > 1)
        cells = [_cell([run[ratio] for run in of_runs]) for ratio in ratios]
        lines.append("| " + " | ".join([name, *cells]) + " |")
    return "\n".join(lines) + "\n"


def _cell(runs: Sequence[Accuracy]) -> str:
    """The mean over the runs and, of several, their range; whether outputs were not finite."""
    percents = [accuracy.percent for accuracy in runs]
    if without := percents.count(None):
        return "not finite" + (f" in {without} of {len(runs)} runs" if len(runs) > 1 else "")
    spread = f" ({min(percents):.2f} to {max(percents):.2f})" if len(runs) > 1 else ""
    mark = ", some not finite" if any(accuracy.not_finite for accuracy in runs) else ""
    return f"{sum(percents) / len(runs):.2f}{spread}{mark}"


def comparison_rows(runs: Runs) -> tuple[tuple[str, ...], list[tuple[object, ...]]]:
    """The columns of the CSV file, and a row for each run of a method at each of its ratios."""
    rows = [
        (label, column, number, ratio, accuracy.percent, accuracy.not_finite)
        for (label, column), of_runs in runs.items()
        for number, run in enumerate(of_runs, 1)
        for ratio, accuracy in run.items()
    ]
    return ("method", "correction", "run", "sparsity", "accuracy", "not_finite"), rows


def labels_of(curves: Sequence[Curve]) -> list[str]:
    """A label for each curve, in words, from the settings that differ between the curves.

    Curves that differ in the seed alone share a label: they are runs of one method. Other curves of
    equal settings are told apart by the numbers of their tables.
    """
    names = [name for name in (*FIELDS, *OF_PRUNING) if name != "seed"]
    differ = [n for n in names if len({c.settings[n] for c in curves if n in c.settings}) > 1]
    pairs = {tuple(c.settings.get(n) for n in ("optimizer", "constraint")) for c in curves}
    if len({optimizer for optimizer, _ in pairs}) == len(pairs):  # the optimizer says it all
        differ = [name for name in differ if name != "constraint"]
    labels = [_label(curve, differ) for curve in curves]
    keys = [(label, c.column) for label, c in zip(labels, curves, strict=True)]
    seeds = [(*key, c.settings.get("seed")) for key, c in zip(keys, curves, strict=True)]
    same = {key[:2] for key in seeds if seeds.count(key) > 1}
    return [
        f"{label} (table {c.table})" if key in same else label
        for label, key, c in zip(labels, keys, curves, strict=True)
    ]


def _label(curve: Curve, differ: Sequence[str]) -> str:
    """The settings of a curve that differ from those of others and from their defaults, in words.

    Where all are defaults, they are shown. A curve whose training settings are unknown has the name
    of its model file instead of these.
    """
    own = curve.settings
    shown = [n for n in differ if n in own and (curve.model_file is None or n in OF_PRUNING)]
    words = [phrase(n, own[n]) for n in shown if n in NAMED_ALWAYS or n in curve.notable]
    if curve.model_file is not None:
        return ", ".join([Path(curve.model_file).stem, *words])
    always = [name for name in NAMED_ALWAYS if name in own]
    words = words or [phrase(n, own[n]) for n in shown if n not in (*CORRECTIONS, PRUNED_BEFORE)]
    return ", ".join(words or [phrase(name, own[name]) for name in always])
