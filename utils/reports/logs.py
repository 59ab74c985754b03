"""Text logs: the format of every line, which people search and parse."""

import csv
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from utils.compute.measure import Accuracy
from utils.process.errors import warn
from utils.process.writing import append, atomic_write
from utils.settings.config import LABELS, Config
from utils.settings.fields import OF_TEST
from utils.settings.names import plain

# The lines of a training, which str.format fills. Steps and epochs count from 1.
TRAIN = "Train Steps: {} Epoch: {} Batch_Loss: {:.4f} Batch_Accuracy {}"
TEST = "Test Epoch: {} Test_Accuracy: {:.2f} Current_Time:{:%Y-%m-%d-%H_%M_%S}"
WEIGHTS = "Weight_Distribution >{} {}"
DECAY = "Effective_Weight_Decay Epoch: {} Mean_Alpha: {:.6g}"
GAUGE = "Region_Gauge Largest: {:.4f} Tensor: {} Mean: {:.4f}"
SCALE = "SFW_Init Scale {} {:.6f}"
SFW_INIT = (  # of an optim.sfw_init.Report
    "SFW_Init Iteration: {0.iteration} Loss_Before: {0.loss_before:.4f}"
    " Loss_After: {0.loss_after:.4f} Scale_Min: {0.smallest:.4f} Scale_Mean: {0.mean:.4f}"
    " Scale_Max: {0.largest:.4f}"
)


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
    settings = {
        LABELS.get(name, name): value
        for name, value in config.as_dict().items()
        if name not in ("sfw_init", "own_data") and (training_known or name in OF_TEST)
    }
    last = f"SFW_Init {config.sfw_init}" if training_known else "Training_Settings: unknown"
    return f"{settings_line('Configuration', settings)} {last}"


def settings_line(title: str, settings: Mapping[str, Any]) -> str:
    """Settings, or what was measured, by name, after a title that says of what they are."""
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


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    with atomic_write(path) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)
