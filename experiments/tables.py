#!/usr/bin/env python3
"""Fill the tables, numbers and pictures of README.md and docs/results/ from the files of results.

What stands in a page between `<!-- KIND WORD ... -->` and `<!-- end -->` is replaced. KIND is one
of `Block.text`. A WORD is an option, as column:recalibrated (with _ for a space), or a pattern of
paths in experiments/results/, without suffix. A number in a paragraph must not begin a line.
"""

import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean

sys.path.insert(0, str(Path(__file__).parents[1]))

from experiments.pictures import Rows, draw, is_drawn
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

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "docs" / "results"
BLOCK = re.compile(r"<!-- (\w+) ([^>]*?) -->(?:(?!<!--).)*<!-- end -->", re.DOTALL)
OF_WORDS = {"column", "tuned", "title"}  # options whose values are words
OPTIONS = OF_WORDS | {"digits", "file", "ratio"}
RATIOS = {
    "weights": (0.0, 0.8, 0.9, 0.95, 0.97, 0.98, 0.99),
    "channels": (0.0, 0.3, 0.5, 0.75, 0.85),
    "N:M": ("dense", "2:4", "4:8", "1:4"),
}


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
    lines, tested = [], set()
    for result in (result for results in rows.values() for result in results):
        tested.update(*result.accuracies.values())
    ratios = [ratio for ratio in ratios if ratio in tested]
    for name, results in rows.items():
        cells = []
        for ratio in ratios:
            found = ([r.accuracies[c].get(ratio) for r in results] for c in columns)
            found = ([value for value in values if value is not None] for values in found)
            sizes = [result.sizes[ratio] for result in results if ratio in result.sizes]
            text = " / ".join(cell(values, digits) for values in found if values)
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
    """Where the results of each row come from, as the files PROVENANCE have it."""
    facts = ("machine", "date", "commit")
    lines = []
    for name, results in rows.items():
        said = [_said(results, fact, "not recorded") for fact in facts]
        seeds = ", ".join(str(seed) for seed in sorted({r.seed for r in results}))
        folders = sorted({str(result.path.relative_to(ROOT).parent) for result in results})
        lines.append([name, seeds, *said, ", ".join(f"`{folder}/`" for folder in folders)])
    return markdown(["run", "seeds", *facts, "files"], lines)


def _said(results: Sequence[Result], fact: str, otherwise: str) -> str:
    return "; ".join(dict.fromkeys(r.provenance.get(fact, otherwise) for r in results))


class Block:
    """What a page asks for between two marks: a kind, options, and patterns of results."""

    def __init__(self, kind: str, text: str) -> None:
        words = [word.partition(":") for word in text.split()]
        self.kind, self.patterns = kind, [word for word, colon, _ in words if not colon]
        self.options = {
            name: value.replace("_", " ") if name in OF_WORDS else value
            for name, colon, value in words
            if colon
        }
        if unknown := self.options.keys() - OPTIONS - USUAL.keys():
            raise UserError(f"<!-- {kind} {text} -->: there is no option {min(unknown)}")
        column = self.options.get("column")
        self.columns = [column] if column else list(COLUMNS)

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
        if self.kind in ("value", "seeds"):
            return self._number()
        if self.kind == "tuning":
            text = tuning_table(self.judged(*self.columns), *self.columns)
        elif self.kind == "provenance":
            text = provenance_table(self.rows())
        elif self.kind == "picture":
            title = f"{self.options['title']}: {'; '.join(self.rows())}"
            text = f"![{title}]({self.options['file']})"
        else:
            ratios = RATIOS[self.options.get("granularity", "weights")]
            digits = int(self.options.get("digits", 1))
            text = accuracy_table(self.rows(), self.columns, ratios, digits)
        return f"\n\n{text}\n\n"

    def _number(self) -> str:
        rows = self.rows()
        if len(rows) != 1:
            mark = f"<!-- {self.kind} {' '.join(self.patterns)} -->"
            raise UserError(f"{mark}: is of {len(rows)} rows")
        (results,) = rows.values()
        if self.kind == "seeds":
            return str(len(results))
        ratio, digits = self.options["ratio"], int(self.options.get("digits", 1))
        if self.options.get("granularity") != "N:M":
            ratio = float(ratio)
        return number(fmean(r.accuracies[self.columns[0]][ratio] for r in results), digits)


def blocks(page: str) -> list[Block]:
    """Raises UserError for a mark that belongs to no block."""
    found = BLOCK.findall(page)
    if 2 * len(found) != page.count("<!--"):
        raise UserError("a page has a mark <!-- ... --> without its other half")
    return [Block(*match) for match in found]


def filled(page: str) -> str:
    """The page with the contents of its blocks made anew."""
    texts = iter([block.text() for block in blocks(page)])
    return BLOCK.sub(lambda m: f"<!-- {m[1]} {m[2]} -->{next(texts)}<!-- end -->", page)


def pictures(page: str) -> Iterator[tuple[Path, Rows, str]]:
    """The pictures of a page: their files, rows and titles."""
    for block in blocks(page):
        if block.kind == "picture":
            yield FOLDER / block.options["file"], block.rows(), block.options["title"]


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
