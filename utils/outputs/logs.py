"""Text logs: the format of every line, which people search and parse."""

import csv
import dataclasses
import hashlib
from collections.abc import Collection, Iterable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from optim.sfw_init import Report
from utils.process.errors import RunError
from utils.process.writing import append, atomic_write
from utils.settings.config import LABELS, Config
from utils.settings.names import plain


class TextLog:
    """The lines of one run's log; `save` brings the file up to date.

    Lines added since the last `save` are appended to the file. The first `save` of a process, and
    one that finds the file changed, replaces the whole file at once.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lines: list[str] = []
        self._digest = hashlib.sha256()
        self._saved_lines, self._saved_size = 0, -1  # size in bytes; -1 before the first save

    def add(self, line: str) -> None:
        self._digest.update(f"\n{line}".encode() if self._lines else line.encode())
        self._lines.append(line)

    def mark(self) -> dict[str, Any]:
        """The number and checksum of the lines so far, from which `restore` recognises them."""
        return {"lines": len(self._lines), "sha256": self._digest.hexdigest()}

    def restore(self, lines: int, sha256: str) -> bool:
        """Take the first `lines` lines of the file; False if they are not those of `mark`."""
        try:
            first_lines = self.path.read_text(errors="replace").split("\n")[:lines]
        except OSError:
            return False
        log = TextLog(self.path)
        for line in first_lines:
            log.add(line)
        if log.mark() != {"lines": lines, "sha256": sha256}:
            return False
        self._lines, self._digest = log._lines, log._digest
        self._saved_lines, self._saved_size = 0, -1
        return True

    def save(self) -> None:
        """Raises RunError when writing fails; the next call writes the whole file."""
        size, self._saved_size = self._saved_size, -1
        if size >= 0:
            new = "".join(f"{line}\n" for line in self._lines[self._saved_lines :]).encode()
            try:
                append(self.path, new, size)
            except RunError:  # the file is gone, changed, or now ends in half a line
                size = -1
        if size < 0:
            size, new = 0, "".join(f"{line}\n" for line in self._lines).encode()
            with atomic_write(self.path, "wb") as file:
                file.write(new)
        self._saved_lines, self._saved_size = len(self._lines), size + len(new)


def configuration_line(config: Config, unknown: Collection[str] = ()) -> str:
    """All settings except the folders; SFW-Init is last.

    Settings that are `unknown` are left out, and the line says that there are some. Precision is
    always stated, since a test uses it, too.
    """
    parts, omitted = ["Configuration"], {*unknown, "sfw_init"} - {"precision"}
    for setting in dataclasses.fields(config):
        name, value = setting.name, getattr(config, setting.name)
        if name not in omitted and not isinstance(value, Path) and setting.metadata["group"]:
            parts.append(f"{LABELS.get(name, name).title()}: {plain(value)}")
    if unknown:
        parts.append("Training_Settings: unknown")
    if "sfw_init" not in unknown:
        parts.append(f"SFW_Init {config.sfw_init}")
    return " ".join(parts)


def train_line(step: int, epoch: int, loss: float, accuracy: float) -> str:
    """`step` counts the batches of the run, and `epoch` its epochs, both from 1."""
    return (
        f"Train Steps: {step} Epoch: {epoch} Batch_Loss: {loss:.4f}"
        f" Batch_Accuracy {round(accuracy, 4)}"
    )


def test_line(epoch: int, accuracy: float) -> str:
    now = datetime.now().strftime("%Y-%m-%d-%H_%M_%S")
    return f"Test Epoch: {epoch} Test_Accuracy: {accuracy:.2f} Current_Time:{now}"


def decay_line(epoch: int, mean_alpha: float) -> str:
    """The effective weight decay of SFW: how much its mean step of the epoch shrinks weights."""
    return f"Effective_Weight_Decay Epoch: {epoch} Mean_Alpha: {mean_alpha:.6g}"


def distribution_line(threshold: float, above: int) -> str:
    return f"Weight_Distribution >{plain(threshold)} {above}"


def gauge_line(largest: float, tensor: str, mean: float) -> str:
    """How much of its region the network fills: the fullest tensor, and the mean over entries."""
    return f"Region_Gauge Largest: {largest:.4f} Tensor: {tensor} Mean: {mean:.4f}"


def pruning_line(title: str, settings: dict[str, Any]) -> str:
    """Settings of pruning, by name, after a title that says which pruning they belong to."""
    return " ".join([title, *(f"{name.title()}: {plain(v)}" for name, v in settings.items())])


def prune_line(ratio: float, accuracy: float, **after_correction: float) -> str:
    """`after_correction` is the accuracy after a correction, by the name of its column."""
    more = [f" {column.title()} {value:.2f}" for column, value in after_correction.items()]
    return f"Prune Ratio {plain(ratio)} Test Accuracy {accuracy:.2f}{''.join(more)}"


def sliced_line(ratio: float, measures: dict[str, float]) -> str:
    """What was measured of a sliced network, by the name of its column."""
    return pruning_line(f"Sliced {plain(ratio)}", measures)


def pruned_file_line(ratio: float, size: int, path: Path) -> str:
    return f"Pruned_Model {plain(ratio)} {size} bytes {path.name}"


def emptied_line(ratio: float, name: str) -> str:
    return f"Emptied {plain(ratio)} {name}"


def weights_line(threshold: float, above: int) -> str:
    return f"Number of weights >{plain(threshold)}: {above}"


def init_line(report: Report) -> str:
    """The progress of SFW-Init, logged every ten iterations."""
    return (
        f"SFW_Init Iteration: {report.iteration} Loss_Before: {report.loss_before:.4f}"
        f" Loss_After: {report.loss_after:.4f} Scale_Min: {report.smallest:.4f}"
        f" Scale_Mean: {report.mean:.4f} Scale_Max: {report.largest:.4f}"
    )


def scale_line(name: str, scale: float) -> str:
    return f"SFW_Init Scale {name} {scale:.6f}"


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    with atomic_write(path) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)
