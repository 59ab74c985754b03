#!/usr/bin/env python3
"""Fill the tables, numbers and pictures of README.md and docs/results/ from the files of results.

What stands in a page between `<!-- KIND WORD ... -->` and `<!-- end -->` is replaced. KIND is one
of `Block.text`. A WORD is an option, as column:as_pruned (with _ for a space), or a pattern of
paths in experiments/results/, without suffix. A number in a paragraph must not begin a line.
"""

import hashlib
import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean

sys.path.insert(0, str(Path(__file__).parents[1]))

from experiments.results import (
    COLUMNS,
    RECALIBRATED,
    USUAL,
    Result,
    by_name,
    judgements,
    read_results,
    spelled,
    tuned,
)
from utils.process.errors import UserError, exit_status
from utils.reports.headings import Heading
from utils.reports.plots import plot_accuracies

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "docs" / "results"
BLOCK = re.compile(r"<!-- (\w+) ([^>]*?) -->(?:(?!<!--).)*<!-- end -->", re.DOTALL)
OPTIONS = {"column", "tuned", "title", "digits", "file", "ratio", *USUAL}
RATIOS = {
    "weights": (0.0, 0.8, 0.9, 0.95, 0.97, 0.98, 0.99),
    "channels": (0.0, 0.3, 0.5, 0.75, 0.85),
    "N:M": ("dense", "2:4", "4:8", "1:4"),
}
Rows = Mapping[str, Sequence[Result]]


def number(value: float, digits: int = 1) -> str:
    return f"{value + 1e-9:.{digits}f}"  # so that 82.35 is rounded up, whatever its binary form


def cell(values: Sequence[float], digits: int = 1) -> str:
    """The mean, and the range if there are several."""
    mean, low, high = (number(f(values), digits) for f in (fmean, min, max))
    return f"{mean} ({low} to {high})" if len(values) > 1 else mean


def markdown(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def accuracy_table(
    rows: Rows, columns: Sequence[str], ratios: Sequence[float | str], digits: int = 1
) -> str:
    """Accuracies in percent: means of each row over its results, and ranges.

    Networks that are sliced have their parameters behind. The last column says whether the command
    that is printed repeats the row, as its provenance has it.
    """
    found = [column for of in rows.values() for r in of for column in r.accuracies.values()]
    ratios, lines = [ratio for ratio in ratios if any(ratio in column for column in found)], []
    for name, results in rows.items():
        cells = []
        for ratio in ratios:
            values = [
                [r.accuracies[column][ratio] for r in results if ratio in r.accuracies[column]]
                for column in columns
            ]
            sizes = [result.sizes[ratio] for result in results if ratio in result.sizes]
            text = " / ".join(cell(of_column, digits) for of_column in values if of_column)
            cells.append(text + (f" ({fmean(sizes) / 1e6:.1f} M)" if sizes else ""))
        lines.append([name, *cells, _said(results, "repeatable", "yes")])
    heads = [ratio if isinstance(ratio, str) else f"{100 * ratio:g} %" for ratio in ratios]
    return markdown(["removed", *heads, "repeatable"], lines)


def tuning_table(judged: Mapping[str, Mapping[float, float]], column: str = RECALIBRATED) -> str:
    """A row for each method: its strengths and how they were judged, the best one in bold."""
    lines = []
    for method, means in judged.items():
        bold = {max(means, key=means.get): "**"}
        texts = [(bold.get(s, ""), f"{s:g}: {mean:.1f}") for s, mean in means.items()]
        lines.append([spelled(method), ", ".join(f"{b}{text}{b}" for b, text in texts)])
    return markdown(["method", f"strength: mean accuracy on held-out images, {column}"], lines)


def provenance_table(rows: Rows) -> str:
    """Where results come from, as the files PROVENANCE have it: a row for each origin."""
    facts, runs = ("machine", "date", "commit"), {}
    for name, results in rows.items():
        said = [_said(results, fact, "not recorded") for fact in facts]
        seeds = ", ".join(str(seed) for seed in sorted({r.seed for r in results}))
        folders = sorted({str(result.path.relative_to(ROOT).parent) for result in results})
        origin = seeds, *said, ", ".join(f"`{folder}/`" for folder in folders)
        runs.setdefault(origin, []).append(name)
    lines = [["; ".join(names), *origin] for origin, names in runs.items()]
    return markdown(["runs", "seeds", *facts, "files"], lines)


def _said(results: Sequence[Result], fact: str, otherwise: str) -> str:
    return "; ".join(dict.fromkeys(r.provenance.get(fact, otherwise) for r in results))


class Block:
    """What a page asks for between two marks: a kind, options, and patterns of results."""

    def __init__(self, kind: str, text: str) -> None:
        self.kind, self.mark, words = kind, f"<!-- {kind} {text} -->", text.split()
        self.patterns = [word for word in words if ":" not in word]
        pairs = (word.split(":", 1) for word in words if ":" in word)
        self.options = {n: v if n == "file" else v.replace("_", " ") for n, v in pairs}
        if unknown := self.options.keys() - OPTIONS:
            raise UserError(f"{self.mark}: there is no option {min(unknown)}")
        self.columns = [self.options["column"]] if "column" in self.options else list(COLUMNS)

    def judged(self, column: str) -> dict[str, dict[float, float]]:
        return judgements(read_results(self.patterns, images="held_out"), column)

    def rows(self) -> Rows:
        """The results that are asked for; of the tuned ones, those of the best strengths."""
        asked = {name: value for name, value in self.options.items() if name in USUAL}
        results = read_results(self.patterns, **asked)
        column = self.options.get("tuned")
        return by_name(tuned(results, self.judged(column)) if column else results)

    def text(self) -> str:
        """What stands between the marks; raises UserError for a number of several rows."""
        digits = int(self.options.get("digits", 1))
        if self.kind in ("value", "seeds"):
            (results, *others) = self.rows().values()
            if others:
                raise UserError(f"{self.mark}: is of {1 + len(others)} rows")
            if self.kind == "seeds":
                return str(len(results))
            ratio = self.options["ratio"]
            ratio = ratio if self.options.get("granularity") == "N:M" else float(ratio)
            return number(fmean(r.accuracies[self.columns[0]][ratio] for r in results), digits)
        if self.kind == "tuning":
            text = tuning_table(self.judged(*self.columns), *self.columns)
        elif self.kind == "provenance":
            text = provenance_table(self.rows())
        elif self.kind == "picture":
            title = f"{self.options['title']}: {'; '.join(self.rows())}"
            text = f"![{title}]({self.options['file']})"
        else:
            ratios = RATIOS[self.options.get("granularity", "weights")]
            text = accuracy_table(self.rows(), self.columns, ratios, digits)
        return f"\n\n{text}\n\n"


def blocks(page: str) -> list[Block]:
    """Raises UserError for a mark that belongs to no block."""
    found = BLOCK.findall(page)
    if 2 * len(found) != page.count("<!--"):
        raise UserError("a page has a mark <!-- ... --> without its other half")
    return [Block(*match) for match in found]


def filled(page: str) -> str:
    """The page with the contents of its blocks made anew."""
    parts = iter(blocks(page))
    return BLOCK.sub(lambda _: f"{(block := next(parts)).mark}{block.text()}<!-- end -->", page)


def pictures(page: str) -> Iterator[tuple[Path, Rows, str]]:
    """The pictures of a page: their files, rows and titles."""
    for block in blocks(page):
        if block.kind == "picture":
            yield FOLDER / block.options["file"], block.rows(), block.options["title"]


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


def make() -> None:
    """Write the pages and pictures that differ from the files of results."""
    for path in (ROOT / "README.md", *sorted(FOLDER.glob("*.md"))):
        page = path.read_text()
        for picture in pictures(page):
            if not is_drawn(*picture):
                draw(*picture)
        if (text := filled(page)) != page:
            path.write_text(text)
            print(path.relative_to(ROOT))


if __name__ == "__main__":
    sys.exit(exit_status(make))
