"""The tables of test_prune.py, and the settings beside each, from which runs are compared."""

import csv
import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from utils.checkpoints.trained_model import TrainedModel
from utils.compute.measure import Accuracy
from utils.process.errors import UserError
from utils.process.writing import atomic_write
from utils.prune.config import CORRECTIONS, PruneConfig
from utils.prune.weights.ranking import RATIOS
from utils.reports.logs import write_csv
from utils.settings.config import Config, training_known
from utils.settings.fields import identifying_settings
from utils.settings.names import RunFiles

# The ratios that a comparison prints if all of its tables have them.
SHOWN = (0.0, 0.5, 0.8, 0.9, 0.95, 0.97, 0.98, 0.99)
# Ends the name of a column: how many of the images behind an accuracy have outputs that are not
# finite.
NOT_FINITE = "_not_finite"


@dataclass(frozen=True)
class PrunedResult:
    """A network pruned at one ratio."""

    ratio: float
    remaining: int  # of the entries that were ranked
    count: int  # of these entries before pruning
    zeros: dict[str, int]  # by parameter
    accuracies: dict[str, Accuracy]  # by column: as pruned and, if there is one, corrected
    sizes: dict[str, int] = field(default_factory=dict)  # of its files, in bytes, by format


@dataclass(frozen=True)
class TableSettings:
    """The settings that identify the run that a table belongs to."""

    model_file: str
    training: dict[str, Any]  # those of its TrainedModel
    pruned_before: dict[str, Any] | None
    pruning: dict[str, Any]
    ratios: Sequence[float] = RATIOS  # of --ratios; the table may have more, from --save_pruned


def write_settings(trained: TrainedModel, prune: PruneConfig, files: RunFiles) -> None:
    """Write the settings that identify the run to a JSON file, which `read_settings` reads."""
    settings = TableSettings(
        trained.source,
        trained.settings,
        trained.pruned_before,
        identifying_settings(prune),
        prune.ratios,
    )
    with atomic_write(files.prune_test(".json")) as file:
        file.write(json.dumps(dataclasses.asdict(settings), indent=1) + "\n")


def write_tables(
    prune: PruneConfig, results: Sequence[PrunedResult], entries: dict[str, int], files: RunFiles
) -> None:
    """Write two CSV files: accuracies by ratio, and numbers of zeros by ratio and parameter."""
    rows = []
    for r in results:
        row = {
            "sparsity": r.ratio,
            "remaining": r.remaining,
            "parameters": r.count,
        }
        rows.append(row | tested_columns(prune, r))
    write_csv(files.prune_test(".csv"), list(rows[0]), [list(row.values()) for row in rows])
    layers = [
        (r.ratio, name, count, r.zeros[name], r.zeros[name] / count)
        for r in results
        for name, count in entries.items()
    ]
    header = ("sparsity", "parameter", "entries", "zeros", "fraction")
    write_csv(files.layer_sparsity(".csv"), header, layers)


def tested_columns(prune: PruneConfig, result: Any) -> dict[str, float | int | None]:
    """What a table has of any pruned network.

    Accuracies in percent, or None where there is none, images whose outputs are not finite, and
    sizes of files in bytes.
    """
    columns = {}
    for name, accuracy in result.accuracies.items():
        columns[name] = None if accuracy.percent is None else round(accuracy.percent, 4)
        columns[name + NOT_FINITE] = accuracy.not_finite
    if prune.save_pruned:
        columns |= {f"{name}_bytes": result.sizes.get(name) for name in prune.pruned_format}
    return columns


def is_of_channels(table: Path) -> bool:
    """Whether a table is of --granularity channels; False for a file that cannot be read."""
    try:
        with table.open() as file:
            return "multiply_adds" in file.readline()
    except (OSError, ValueError):
        return False


def read_accuracies(table: Path) -> dict[str, dict[float, Accuracy]]:
    """The accuracies in a table of test_prune.py, by column and ratio.

    Raises UserError for a file that is not such a table.
    """
    try:
        rows = list(csv.DictReader(table.read_text().splitlines()))
        if is_of_channels(table):
            raise UserError(
                f"{table}: is of --granularity channels; --compare takes tables of pruned weights"
            )
        columns = [name for name in ("accuracy", *CORRECTIONS.values()) if name in rows[0]]
        accuracies = {
            n: {float(row["sparsity"]): _read_accuracy(row, n) for row in rows} for n in columns
        }
        if "accuracy" not in accuracies:
            raise ValueError
    except OSError as error:
        raise UserError(f"{table}: cannot be read ({error.strerror}); name another table") from None
    except (ValueError, TypeError, KeyError, IndexError, csv.Error):
        raise UserError(
            f"{table}: is no table of accuracies that test_prune.py wrote to"
            " saved_logs/SFW_prune_test/; name one"
        ) from None
    return accuracies


def _read_accuracy(row: dict[str, str], column: str) -> Accuracy:
    not_finite = int(row.get(column + NOT_FINITE) or 0)
    if not_finite and not row[column]:
        return Accuracy(None, not_finite)
    percent = float(row[column])
    if not 0 <= percent <= 100:
        raise ValueError
    return Accuracy(percent, not_finite)


def read_settings(table: Path) -> TableSettings:
    """The settings that test_prune.py wrote beside this table.

    Raises UserError if there are none, as beside the tables of older versions, or invalid ones.
    """
    path, advice = table.with_suffix(".json"), "run test_prune.py again with the flags of that run"
    try:
        stored = TableSettings(**json.loads(path.read_text()))
        training = identifying_settings(Config(**stored.training, from_file=True))
        if not {"data", "arch"} <= stored.training.keys():
            raise KeyError("every run has these")
        if not training_known(stored.training):
            training = {name: training[name] for name in stored.training}
        prune = PruneConfig(**stored.pruning, ratios=stored.ratios)
        before = stored.pruned_before and dict(stored.pruned_before)
        return dataclasses.replace(
            stored,
            training=training,
            pruning=identifying_settings(prune),
            pruned_before=before,
            ratios=prune.ratios,
        )
    except FileNotFoundError:
        problem = f"{table}: has no {path.name} beside it, and so its settings are unknown"
    except OSError as error:
        problem = f"{path}: cannot be read ({error.strerror})"
    except UserError as error:
        problem = f"{path}: holds invalid settings ({error})"
    except (ValueError, TypeError, KeyError):  # of another structure
        problem = f"{path}: does not hold the settings of a run"
    raise UserError(f"{problem}; {advice}")
