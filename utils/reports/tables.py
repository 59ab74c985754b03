"""The tables of test_prune.py, and the settings beside each, from which runs are compared."""

import csv
import json
from pathlib import Path
from typing import Any, NamedTuple

from utils.checkpoints.trained_model import TrainedModel
from utils.compute.measure import Accuracy
from utils.process.errors import UserError
from utils.process.writing import atomic_write
from utils.prune.config import CORRECTIONS, PruneConfig
from utils.settings.config import Config
from utils.settings.fields import identifying_settings, training_known

# Ends the name of a column: how many of the images behind an accuracy have outputs that are not
# finite.
NOT_FINITE = "_not_finite"


class TableSettings(NamedTuple):
    """The settings of the run that a table belongs to.

    `training` has those that are known. Unless all are, `model_file` names the network instead.
    """

    training: dict[str, Any]
    pruning: dict[str, Any]
    pruned_before: float | None  # to which sparsity
    model_file: str | None


def write_settings(trained: TrainedModel, prune: PruneConfig, path: Path) -> None:
    """Write the settings that identify the run to a JSON file, which `read_settings` reads."""
    settings = {
        "model_file": trained.source,
        "training": trained.settings,
        "pruned_before": trained.pruned_before,
        "pruning": identifying_settings(prune),
        "ratios": prune.ratios,
    }
    with atomic_write(path) as file:
        file.write(json.dumps(settings, indent=1) + "\n")


def tested_columns(
    prune: PruneConfig, accuracies: dict[str, Accuracy], sizes: dict[str, int]
) -> dict[str, float | int | None]:
    """What a table has of any pruned network.

    Accuracies in percent, or None where there is none, images whose outputs are not finite, and
    sizes of files in bytes.
    """
    columns = {}
    for name, accuracy in accuracies.items():
        columns[name] = None if accuracy.percent is None else round(accuracy.percent, 4)
        columns[name + NOT_FINITE] = accuracy.not_finite
    if prune.save_pruned:
        columns |= {f"{name}_bytes": sizes.get(name) for name in prune.pruned_format}
    return columns


def is_of_channels(table: Path) -> bool:
    """Whether a table is of --granularity channels; False for a file that cannot be read."""
    try:
        with table.open() as file:
            return "multiply_adds" in file.readline()
    except (OSError, ValueError):
        return False


def read_accuracies(table: Path) -> dict[str, dict[float, Accuracy]]:
    """The accuracies in a table of test_prune.py, by column and sparsity.

    Raises UserError for a file that is not such a table.
    """
    try:
        rows = list(csv.DictReader(table.read_text().splitlines()))
        columns = [n for n in ("accuracy", *CORRECTIONS.values()) if n in rows[0]] or ["accuracy"]
        return {n: {float(row["sparsity"]): _accuracy(row, n) for row in rows} for n in columns}
    except OSError as error:
        raise UserError(f"{table}: cannot be read ({error.strerror}); name another table") from None
    except (ValueError, TypeError, KeyError, IndexError, csv.Error):
        raise UserError(
            f"{table}: is no table of pruned weights that test_prune.py wrote to"
            " saved_logs/SFW_prune_test/; name one"
        ) from None


def _accuracy(row: dict[str, str], column: str) -> Accuracy:
    not_finite = int(row.get(column + NOT_FINITE) or 0)
    percent = None if not_finite and not row[column] else float(row[column])
    if percent is not None and not 0 <= percent <= 100:
        raise ValueError
    return Accuracy(percent, not_finite)


def read_settings(table: Path) -> TableSettings:
    """The settings that test_prune.py wrote beside this table.

    Raises UserError if there are none, or invalid ones.
    """
    path = table.with_suffix(".json")
    try:
        stored = json.loads(path.read_text())
        known, before = stored["training"], stored["pruned_before"]
        training = identifying_settings(Config(**known, from_file=True))
        if not {"data", "arch"} <= known.keys():
            raise KeyError("every run has these")
        if not training_known(known):
            training = {name: training[name] for name in known}
        return TableSettings(
            training,
            identifying_settings(PruneConfig(**stored["pruning"])),
            before and before.get("sparsity"),
            None if training_known(known) else str(stored["model_file"]),
        )
    except OSError as error:
        problem = f"cannot be read ({error.strerror}), and has the settings of {table.name}"
    except (UserError, ValueError, TypeError, KeyError, AttributeError) as error:
        problem = f"does not hold the settings of a run ({error})"
    raise UserError(f"{path}: {problem}; run test_prune.py again with the flags of that run")
