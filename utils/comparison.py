"""Several runs' tables of accuracy against sparsity, in one picture and one table."""

import csv
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from utils.config import (
    CORRECTIONS,
    LABELS,
    NAMED_ALWAYS,
    SETTINGS,
    Config,
    default_of,
    file_name,
    plain,
)
from utils.errors import UserError
from utils.files import RunFiles, atomic_write, check_writable
from utils.logs import logged_settings
from utils.plots import Curves, plot_comparison

SHOWN = (0.0, 0.5, 0.8, 0.9, 0.95, 0.97, 0.98, 0.99)


def compare(given: dict[str, Any]) -> None:
    """Draw the tables given["compare"] together, each labelled by what tells it apart."""
    paths = list(dict.fromkeys(given.pop("compare")))
    output_dir = given.pop("output_dir", Config.output_dir)
    if given:
        raise UserError(f"--{next(iter(given))}: --compare takes the settings from its runs' logs")
    settings = [settings_of(path) for path in paths]
    labels = labels_of(settings, paths)
    curves: Curves = {}
    for path, label in zip(paths, labels, strict=True):
        table = read_table(path)
        for column, accuracies in table.items():
            name = label if column == "accuracy" else f"{label}, {column}"
            curves.setdefault(name, []).append(accuracies)
    first = settings[0]
    common = {LABELS.get(name, name): first[name] for name in NAMED_ALWAYS
              if all(own[name] == first[name] for own in settings)}  # fmt: skip
    digest = hashlib.sha256("\n".join(str(path.resolve()) for path in paths).encode()).hexdigest()[
        :16
    ]
    files = RunFiles(output_dir, file_name(common | {"runs": len(paths), "sha256": digest}))
    write_comparison(files, curves)


def write_comparison(files: RunFiles, curves: Curves) -> None:
    """Write and print the picture and the table of a comparison."""
    picture, table = comparison_files(files)
    check_writable([picture, table], "--output_dir")
    plot_comparison(picture, curves, files.run)
    text = comparison_table(curves)
    with atomic_write(table) as file:
        file.write(text)
    print(f"\n{text}\nFiles of this comparison:", picture, table, sep="\n  ")


def comparison_files(files: RunFiles) -> list[Path]:
    """The picture and the table that a comparison writes."""
    return [files.comparison(suffix) for suffix in (".png", ".md")]


def comparison_table(curves: Curves) -> str:
    """A row for each curve: the mean over its runs, and their range where there are several."""
    lines = ["| weights removed | " + " | ".join(f"{ratio:.0%}" for ratio in SHOWN) + " |"]
    lines.append("| --- |" + " --- |" * len(SHOWN))
    for label, runs in curves.items():
        cells = []
        for ratio in SHOWN:
            found = [run[ratio] for run in runs]
            spread = f" ({min(found):.2f} to {max(found):.2f})" if len(found) > 1 else ""
            cells.append(f"{sum(found) / len(found):.2f}{spread}")
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def read_table(path: Path) -> dict[str, dict[float, float]]:
    """By column, the accuracies by ratio in a table that test_prune.py wrote.

    Raises UserError for anything else.
    """
    try:
        rows = list(csv.DictReader(path.read_text().splitlines()))
        columns = [name for name in ("accuracy", *CORRECTIONS) if name in rows[0]]
        table = {n: {float(row["sparsity"]): float(row[n]) for row in rows} for n in columns}
        if not all(ratio in table["accuracy"] for ratio in SHOWN):
            raise ValueError
    except OSError as error:
        raise UserError(f"--compare: {path} cannot be read ({error.strerror})") from None
    except (ValueError, TypeError, KeyError, IndexError):
        raise UserError(
            f"--compare: {path} is no table of accuracy that test_prune.py wrote to"
            " saved_logs/SFW_prune_test/"
        ) from None
    return table


def settings_of(path: Path) -> dict[str, str]:
    """The settings, by name, of the run with this table, from the log beside it.

    Raises UserError when there is no such log.
    """
    log = path.with_suffix(".log")
    try:
        return logged_settings(log.read_text(errors="replace"))
    except OSError as error:
        problem = f"cannot be read ({error.strerror})"
    except ValueError as error:
        problem = str(error)
    raise UserError(f"--compare: {log}, which is to tell the run's settings, {problem}")


def labels_of(settings: Sequence[dict[str, str]], paths: Sequence[Path]) -> list[str]:
    """What tells each run from the others: its settings that not all share.

    Those at their defaults are left out, unless all of them are. Runs that differ in the seed
    alone share a label, which says how many they are.
    """
    differing = [n for n in settings[0] if n != "seed" and len({s[n] for s in settings}) > 1]
    runs: dict[str, list[int]] = {}
    for i, own in enumerate(settings):
        parts = {name: own[name] if name in NAMED_ALWAYS else f"{name}={own[name]}"
                 for name in differing or NAMED_ALWAYS}  # fmt: skip
        telling = [
            part for name, part in parts.items()
            if name in NAMED_ALWAYS or own[name] != plain(default_of(SETTINGS[name], own["data"]))
        ]  # fmt: skip
        runs.setdefault(" ".join(telling or parts.values()), []).append(i)
    labels = {}
    for label, same in runs.items():
        one_each = len({settings[i]["seed"] for i in same}) == len(same)
        tails = [""] * len(same) if one_each else _told_apart([paths[i] for i in same])
        count = f", {len(same)} seeds" if one_each and len(same) > 1 else ""
        labels |= {i: label + count + tail for i, tail in zip(same, tails, strict=True)}
    return [labels[i] for i in range(len(labels))]


def _told_apart(paths: Sequence[Path]) -> list[str]:
    """For runs of the same settings, what the path of each has apart from the others'."""
    stems = [str(path.with_suffix("")) for path in paths]
    shared = os.path.commonprefix(stems)  # noqa: RUF071 - of names, too, not of folders alone
    tails = [stem.removeprefix(shared).strip("_/") for stem in stems]
    return [f" ({tail})" if tail else "" for tail in tails]
