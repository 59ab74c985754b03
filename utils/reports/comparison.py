"""Several runs' curves of accuracy against sparsity, in one picture and one table."""

import csv
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from utils.checkpoints.trained_model import prunings
from utils.compute.measure import Accuracy
from utils.process.errors import UserError, warn
from utils.process.writing import atomic_write, check_writable
from utils.prune.config import CORRECTIONS, DEFAULTS, PruneConfig
from utils.reports.headings import Heading, heading, phrase
from utils.reports.logs import write_csv
from utils.reports.plots import AS_PRUNED, plot_accuracies
from utils.reports.report import NOT_FINITE
from utils.settings.config import FIELDS, METHOD, Config, defaults_beside
from utils.settings.fields import differing, identifying_settings, path, setting, training_known
from utils.settings.names import RunFiles, file_name, plain, results_line, shown

# The ratios that a comparison prints if all of its tables have them.
SHOWN = (0.0, 0.5, 0.8, 0.9, 0.95, 0.97, 0.98, 0.99)
PRUNED_BEFORE = "pruned_before"  # how a model was pruned before, or "None"
PRUNING = tuple(identifying_settings(PruneConfig()))
OF_PRUNING = (*PRUNING, PRUNED_BEFORE)
# By method and column, the accuracies of each run, by ratio.
Runs = dict[tuple[str, str], list[dict[float, Accuracy]]]


@dataclass(frozen=True)
class Comparison:
    """What is compared, and what it is called."""

    # fmt: off
    compare: tuple[Path, ...] = setting(
        (), "comparison", "instead of a test, draw these tables of saved_logs/SFW_prune_test/ in"
        " one picture and print them as one table; goes with the flags below, --output_dir and"
        " --figure_format", type=path, several=True)
    labels: tuple[str, ...] = setting(
        (), "comparison", "a label for each table, in their order; tables with the same one are"
        " runs of one method (default: the settings that differ, in words)", type=str, several=True)
    title: str | None = setting(
        None, "comparison", "title of the picture (default: the settings in common, in words)")
    name: str | None = setting(
        None, "comparison", "name of the files in saved_logs/comparison/ (default: made of"
        " settings in common)")
    # fmt: on


@dataclass(frozen=True)
class Curve:
    """The accuracies of one network by ratio, as pruned or corrected.

    `settings`, as text, identify it; `notable` are those that are not at their defaults. A network
    whose training settings are unknown is called by its `model_file`.
    """

    table: int = field(compare=False)  # its number, from 1
    column: str  # AS_PRUNED, or what corrected it
    settings: dict[str, str]
    notable: list[str]
    model_file: str | None
    accuracies: dict[float, Accuracy]


def compare(settings: Comparison, config: Config) -> None:
    """Draw the curves of the tables in one picture, and write and print them as one table.

    Raises UserError for a file that is no table of test_prune.py or has no settings beside it, and
    for tables that have no ratio in common.
    """
    tables = settings.compare
    curves, runs = read_runs(tables, settings.labels)
    text = comparison_table(runs)
    paths = "\n".join(str(path.resolve()) for path in tables).encode(errors="replace")
    digest = hashlib.sha256(paths).hexdigest()[:16]
    name = settings.name or file_name({"runs": len(tables), "sha256": digest})
    files = RunFiles(config.output_dir, name, config.files.figures)
    picture, table, numbers = (files.comparison(s) for s in (files.figures, ".md", ".csv"))
    check_writable([picture, table, numbers])
    above = heading_of(curves)
    drawn = {k: [{r: a.percent for r, a in run.items()} for run in of] for k, of in runs.items()}
    plot_accuracies(picture, drawn, Heading(settings.title or above.title, above.settings))
    with atomic_write(table) as file:
        file.write(text)
    rows = [
        (*key, number, ratio, accuracy.percent, accuracy.not_finite)
        for key, of_runs in runs.items()
        for number, run in enumerate(of_runs, 1)
        for ratio, accuracy in run.items()
    ]
    header = ("method", "correction", "run", "sparsity", "accuracy", "not_finite")
    write_csv(numbers, header, rows)
    print(f"\n{text}\n{results_line(picture=picture, table=table, numbers=numbers)}")


def read_runs(tables: Sequence[Path], labels: Sequence[str]) -> tuple[list[Curve], Runs]:
    """The curves in these tables, each once, and their accuracies by label and column."""
    if labels and len(labels) != len(tables):
        raise UserError(f"--labels: there are {len(labels)} for {len(tables)} tables; give as many")
    curves: list[Curve] = []
    for number, table in enumerate(tables, 1):
        # Tables with and without a correction share the uncorrected network.
        curves += [curve for curve in read_curves(table, number) if curve not in curves]
    if not curves:
        raise UserError("--compare: no table is of --granularity weights; name some that are")
    runs: Runs = {}
    for label, curve in zip(labels_of(curves), curves, strict=True):
        label = (labels and labels[curve.table - 1]) or label
        runs.setdefault((label, curve.column), []).append(curve.accuracies)
    return curves, runs


def read_curves(table: Path, number: int = 1) -> list[Curve]:
    """The curves in a table: the pruned networks and, in another column, the corrected ones.

    None of a table of --granularity channels, which gets a warning. Raises UserError for a file
    that is no table, or has no settings beside it.
    """
    columns, file = read_accuracies(table), table.with_suffix(".json")
    if not columns:
        warn(f"{table}: is of --granularity channels, and left out")
        return []
    try:
        stored = json.loads(file.read_text())
        training = identifying_settings(Config(**stored["training"], from_file=True))
        model_file = None if training_known(stored["training"]) else stored["model_file"]
        if model_file is not None:
            training = {name: training[name] for name in stored["training"]}
        known = training | identifying_settings(PruneConfig(**stored["pruning"]))
        words = []
        for before in prunings(stored["pruned_before"]):
            words.append(plain(before.get("sparsity")))
            words += [f"{n} {plain(value)}" for n, value in differing(before, DEFAULTS).items()]
        known[PRUNED_BEFORE] = ", ".join(words) or plain(None)
        if own := known.pop("own_data", None):  # data sets of one name are told apart
            known["own_data"] = own["sha256"][:8]
    except (OSError, UserError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(
            f"{file}: does not hold the settings of {table.name} ({error}); run test_prune.py again"
            " with the flags of that run"
        ) from None
    defaults = defaults_beside(training) | DEFAULTS | {PRUNED_BEFORE: None}
    curves = []
    for column, accuracies in columns.items():
        others = [flag for flag, its_column in CORRECTIONS.items() if its_column != column]
        left_out = (*others, "corrected_only")  # what changes no accuracy in the column
        settings = {n: plain(v) for n, v in known.items() if n not in left_out}
        notable = list(differing(settings, defaults))
        title = AS_PRUNED if column == "accuracy" else column
        curves.append(Curve(number, title, settings, notable, model_file, accuracies))
    return curves


def read_accuracies(table: Path) -> dict[str, dict[float | str, Accuracy]]:
    """The accuracies in a table, by column and sparsity or pattern N:M; none of channels.

    Raises UserError for a file that is not such a table.
    """
    try:
        rows = list(csv.DictReader(table.read_text().splitlines()))
        if "multiply_adds" in rows[0]:
            return {}
        key, kind = ("pattern", str) if "pattern" in rows[0] else ("sparsity", float)
        columns = [n for n in ("accuracy", *CORRECTIONS.values()) if n in rows[0]] or ["accuracy"]
        return {
            name: {
                kind(row[key]): Accuracy(
                    float(row[name]) if row[name] else None,
                    int(row.get(name + NOT_FINITE, 0)),
                )
                for row in rows
            }
            for name in columns
        }
    except (OSError, ValueError, TypeError, KeyError, IndexError, csv.Error) as error:
        raise UserError(
            f"{table}: is no table of pruned weights ({error}); name one that test_prune.py wrote"
            " to saved_logs/SFW_prune_test/"
        ) from None


def comparison_table(runs: Runs) -> str:
    """A Markdown row for each method and column, with what `_cell` tells of its runs.

    It has the ratios of SHOWN or, if a run lacks one of these, all that the runs have in common.
    """
    common = set.intersection(*(set(run) for of_runs in runs.values() for run in of_runs))
    if not common:
        raise UserError(
            "--compare: the tables have no sparsity or pattern in common; compare tables that have"
        )
    (first, *_), *_ = runs.values()
    ratios = SHOWN if common.issuperset(SHOWN) else [ratio for ratio in first if ratio in common]
    rows = [["weights removed", *map(shown, ratios)], ["---"] * (1 + len(ratios))]
    corrected = any(column != AS_PRUNED for _, column in runs)
    for (label, column), of_runs in runs.items():
        name = label + f", {column}" * corrected + f", {len(of_runs)} runs" * (len(of_runs) > 1)
        cells = [_cell([run[ratio] for run in of_runs]) for ratio in ratios]
        rows.append([name, *cells])
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _cell(runs: Sequence[Accuracy]) -> str:
    """The mean over the runs and, of several, their range; whether outputs were not finite."""
    percents = [accuracy.percent for accuracy in runs]
    if without := percents.count(None):
        return "not finite" + (f" in {without} of {len(runs)} runs" if len(runs) > 1 else "")
    spread = f" ({min(percents):.2f} to {max(percents):.2f})" if len(runs) > 1 else ""
    mark = ", some not finite" if any(accuracy.not_finite for accuracy in runs) else ""
    return f"{sum(percents) / len(runs):.2f}{spread}{mark}"


def heading_of(curves: Sequence[Curve]) -> Heading:
    """The heading of a picture of these curves: the settings that they have in common."""
    first, *rest = curves
    common = {n: v for n, v in first.settings.items() if all(c.settings.get(n) == v for c in rest)}
    others = (*OF_PRUNING, "own_data")
    training = {name: value for name, value in common.items() if name not in others}
    pruning = {n: v for n, v in common.items() if n in OF_PRUNING and n in first.notable}
    return heading(training, pruning)


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
    keys = [(x, c.column, c.settings.get("seed")) for x, c in zip(labels, curves, strict=True)]
    return [
        f"{label} (table {curve.table})" if keys.count(key) > 1 else label
        for label, curve, key in zip(labels, curves, keys, strict=True)
    ]


def _label(curve: Curve, differ: Sequence[str]) -> str:
    """The settings of a curve that differ from those of others and from their defaults, in words.

    Where all are defaults, they are shown, and where none differs, network, method and pruning. A
    curve whose training settings are unknown has the name of its model file instead of these.
    """
    known = curve.model_file is None
    shown = [n for n in differ if n in curve.settings and (known or n in OF_PRUNING)]
    notable = [n for n in shown if n in (*METHOD, "own_data") or n in curve.notable]
    pruning = [n for n in PRUNING if n in curve.notable and n not in CORRECTIONS]
    others = [n for n in shown if n != PRUNED_BEFORE] or [*METHOD, *pruning]
    words = [phrase(n, curve.settings[n]) for n in notable or (others if known else ())]
    return ", ".join(words if known else [Path(curve.model_file).stem, *words])
