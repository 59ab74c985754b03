"""Text logs: the format of every line, which people search and parse."""

import csv
import math
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from optim.sfw_init import Report
from utils.compute.measure import Accuracy
from utils.process.errors import warn
from utils.process.writing import append, atomic_write
from utils.settings.config import FIELDS, LABELS, Config
from utils.settings.fields import OF_TEST
from utils.settings.names import plain


class TextLog:
    """The lines of one run's log; `save` adds those that are new to the file.

    `length` is that of all lines so far, in bytes; a resumed run sets it by `resume`.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.length = path, 0
        self._new: list[bytes] = []

    def add(self, line: str) -> None:
        self._new.append(f"{line}\n".encode())
        self.length += len(self._new[-1])

    def resume(self, length: int) -> None:
        """Go on after this number of bytes of the file, instead of the lines so far."""
        self.length, self._new = length, []

    def save(self) -> None:
        """Write the new lines; what the file has beyond those before them is dropped.

        A file that has become shorter is told, and goes on with the new lines. Raises RunError when
        writing fails; the next call tries again.
        """
        content = b"".join(self._new)
        saved = self.length - len(content)
        present = self.path.stat().st_size if self.path.is_file() else 0
        if present < saved:
            warn(f"{self.path}: is gone or changed; earlier lines are missing")
            saved = present
        if saved:
            append(self.path, content, saved)
        else:
            with atomic_write(self.path, "wb") as file:
                file.write(content)
        self.resume(saved + len(content))


def configuration_line(config: Config, training_known: bool = True) -> str:
    """All settings except the folders, with SFW-Init last, or those of a test alone."""
    parts = ["Configuration"]
    for name, field in FIELDS.items():
        value = getattr(config, name)
        shown = name != "sfw_init" and (training_known or name in OF_TEST)
        if shown and not isinstance(value, Path) and field.metadata["group"]:
            parts.append(f"{LABELS.get(name, name).title()}: {plain(value)}")
    last = f"SFW_Init {config.sfw_init}" if training_known else "Training_Settings: unknown"
    return " ".join([*parts, last])


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


def prune_line(ratio: float, accuracies: Mapping[str, Accuracy]) -> str:
    """Accuracies by the names of their columns, each with what is not finite, if anything is."""
    line = f"Prune Ratio {plain(ratio)} Test"
    for column, accuracy in accuracies.items():
        percent = math.nan if accuracy.percent is None else accuracy.percent
        line += f" {column.title()} {percent:.2f}"
        if accuracy.not_finite:
            line += f" Not_Finite {accuracy.not_finite}"
            line += f" Layer {accuracy.layer}" if accuracy.layer else ""
    return line


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
