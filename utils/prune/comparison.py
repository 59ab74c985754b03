"""Several runs' tables of accuracy against sparsity, in one picture and one table."""

import csv
import hashlib
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from utils.outputs.plots import Curves, plot_comparison
from utils.process.errors import UserError
from utils.process.writing import atomic_write, check_writable
from utils.prune.config import CORRECTIONS, SETTINGS
from utils.settings.config import LABELS, NAMED_ALWAYS, Config, default_of
from utils.settings.names import RunFiles, file_name, plain

SHOWN = (0.0, 0.5, 0.8, 0.9, 0.95, 0.97, 0.98, 0.99)


def compare(given: dict[str, Any]) -> None:
    """Draw the tables given["compare"] together, each curve labelled by what tells it apart."""
    paths = list(dict.fromkeys(path.resolve() for path in given.pop("compare")))
    output_dir = given.pop("output_dir", Config.output_dir)
    if given:
        raise UserError(f"--{next(iter(given))}: --compare takes the settings from its runs' logs")
    found = {}  # one, where several tables have the same
    for path in paths:
        table, told = read_table(path), settings_of(path)
        for column, accuracies in table.items():
            settings = dict(told)
            for word, flag in CORRECTIONS.items():  # a curve's own settings, not its table's
                if word != column:
                    settings[flag] = plain(SETTINGS[flag].default)
            found[tuple(settings.items()), tuple(accuracies.items())] = path
    every = [dict(settings) for settings, _ in found]
    curves: Curves = {}
    for label, (_, accuracies) in zip(labels_of(every, list(found.values())), found, strict=True):
        curves.setdefault(label, []).append(dict(accuracies))
    common = {LABELS.get(name, name): every[0][name] for name in NAMED_ALWAYS
              if all(own[name] == every[0][name] for own in every)}  # fmt: skip
    digest = hashlib.sha256("\n".join(map(str, paths)).encode(errors="replace")).hexdigest()[:16]
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
        complete = all(ratio in table["accuracy"] for ratio in SHOWN)
        if not complete or not all(0 <= a <= 100 for v in table.values() for a in v.values()):
            raise ValueError
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); name another table") from None
    except (ValueError, TypeError, KeyError, IndexError, csv.Error):
        raise UserError(
            f"{path}: is no table of accuracy that test_prune.py wrote to"
            " saved_logs/SFW_prune_test/; name one"
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
    raise UserError(f"{log}: {problem}; --compare takes the run's settings from there")


def logged_settings(log: str) -> dict[str, str]:
    """The settings that tell runs apart, by name, as a test's log spells them in its first lines.

    What it does not tell is the default. Raises ValueError when it tells none.
    """
    first, *others = log.splitlines() or [""]
    if not first.startswith("Configuration "):
        raise ValueError("begins with no configuration")
    told = " ".join([first, *(line for line in others[:1] if line.startswith("Pruning "))])
    settings = {}
    for name, setting in SETTINGS.items():
        if setting.metadata["changes_weights"]:
            found = re.search(rf" {LABELS.get(name, name)}:? (\S+)", told, re.IGNORECASE)
            settings[name] = found[1] if found else plain(setting.default)
    if settings["data"] not in SETTINGS["data"].metadata["choices"]:
        raise ValueError(f"names no data set, but {settings['data']}")
    return settings


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
        if not telling:  # that nothing was corrected goes without saying
            off = CORRECTIONS.values()
            telling = [p for name, p in parts.items() if name not in off] or parts.values()
        runs.setdefault(" ".join(telling), []).append(i)
    labels = {}
    for label, same in runs.items():
        one_each = len({settings[i]["seed"] for i in same}) == len(same)
        tails = [""] * len(same) if one_each else _told_apart([paths[i] for i in same])
        count = f", {len(same)} seeds" if one_each and len(same) > 1 else ""
        labels |= {i: label + count + tail for i, tail in zip(same, tails, strict=True)}
    return [labels[i] for i in range(len(labels))]


def _told_apart(paths: Sequence[Path]) -> list[str]:
    """For runs of the same settings and seed, what the path of each has apart from the others'."""
    whole = [str(path).encode(errors="replace").decode() for path in paths]
    names = [os.path.splitext(path)[0] for path in whole]
    shared = os.path.commonprefix(names)  # noqa: RUF071 - of names, too, not of folders alone
    ends = [name.removeprefix(shared).strip("_/") for name in names]
    chosen = ends if len(set(ends)) == len(ends) else whole
    return [f" ({text})" if text else "" for text in chosen]
