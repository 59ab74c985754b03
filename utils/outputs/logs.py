"""The text logs that people grep: the shape of every line is set here."""

import csv
import dataclasses
import hashlib
from collections.abc import Iterable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from optim.initialisation import Report
from utils.process.writing import atomic_write
from utils.settings.config import LABELS, Config
from utils.settings.names import plain


class TextLog:
    """The lines of one run's log; `save` replaces the file as a whole."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lines: list[str] = []

    def add(self, line: str) -> None:
        self.lines.append(line)

    def mark(self) -> dict[str, Any]:
        """What `restore` needs to know the lines so far again."""
        return {"lines": len(self.lines), "sha256": _digest(self.lines)}

    def restore(self, lines: int, sha256: str) -> bool:
        """Take the file's first `lines`, dropping what came after; False if they are others."""
        try:
            found = self.path.read_text(errors="replace").split("\n")[:lines]
        except OSError:
            return False
        if _digest(found) != sha256:
            return False
        self.lines = found
        return True

    def save(self) -> None:
        with atomic_write(self.path) as file:
            file.writelines(f"{line}\n" for line in self.lines)


def _digest(lines: list[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def configuration_line(config: Config) -> str:
    """All settings but the folders; SFW-Init is last."""
    parts = ["Configuration"]
    for setting in dataclasses.fields(config):
        value = getattr(config, setting.name)
        if setting.name != "sfw_init" and not isinstance(value, Path):
            parts.append(f"{LABELS.get(setting.name, setting.name).title()}: {plain(value)}")
    return " ".join([*parts, f"SFW_Init {config.sfw_init}"])


def train_line(step: int, epoch: int, loss: float, accuracy: float) -> str:
    """`step` counts all batches of the run and `epoch` the epochs, both from 1."""
    return (
        f"Train Steps: {step} Epoch: {epoch} Batch_Loss: {loss:.4f}"
        f" Batch_Accuracy {round(accuracy, 4)}"
    )


def test_line(epoch: int, accuracy: float) -> str:
    now = datetime.now().strftime("%Y-%m-%d-%H_%M_%S")
    return f"Test Epoch: {epoch} Test_Accuracy: {accuracy:.2f} Current_Time:{now}"


def distribution_line(threshold: float, above: int) -> str:
    return f"Weight_Distribution >{plain(threshold)} {above}"


def pruning_line(what: str, settings: dict[str, Any]) -> str:
    """How a model is pruned, where that is not as by default, or was when it was saved."""
    return " ".join([what, *(f"{name.title()}: {plain(v)}" for name, v in settings.items())])


def prune_line(ratio: float, accuracy: float, **corrected: float) -> str:
    """`corrected` is a second accuracy, by what was done to the model for it."""
    more = [f" {word.title()} {value:.2f}" for word, value in corrected.items()]
    return f"Prune Ratio {plain(ratio)} Test Accuracy {accuracy:.2f}{''.join(more)}"


def pruned_file_line(ratio: float, size: int, path: Path) -> str:
    return f"Pruned_Model {plain(ratio)} {size} bytes {path.name}"


def emptied_line(ratio: float, name: str) -> str:
    return f"Emptied {plain(ratio)} {name}"


def weights_line(threshold: float, above: int) -> str:
    return f"Number of weights >{plain(threshold)}: {above}"


def init_line(report: Report) -> str:
    """Of SFW-Init, every ten iterations."""
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
