"""The pictures of results: accuracy against sparsity."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from experiments.results import COLUMNS, Result
from utils.reports.headings import Heading
from utils.reports.plots import plot_accuracies

Rows = Mapping[str, Sequence[Result]]


def digest(rows: Rows, title: str) -> str:
    """What a picture of these rows is known by."""
    drawn = [title, {name: [r.accuracies for r in results] for name, results in rows.items()}]
    return hashlib.sha256(json.dumps(drawn).encode()).hexdigest()


def draw(path: Path, rows: Rows, title: str) -> None:
    """Accuracy against sparsity; the picture's Description is its digest."""
    removed = "multiply-adds" if any(r.sizes for rs in rows.values() for r in rs) else "weights"
    curves = {
        (name, column): runs
        for name, results in rows.items()
        for column in COLUMNS
        if all(runs := [result.accuracies[column] for result in results])
    }
    metadata = {"Description": digest(rows, title)}
    plot_accuracies(path, curves, Heading(title), removed, metadata)


def is_drawn(path: Path, rows: Rows, title: str) -> bool:
    """Whether the file is a picture of these rows."""
    from PIL import Image

    return path.is_file() and Image.open(path).text["Description"] == digest(rows, title)
