"""The course of a training in TensorBoard."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from utils.compute.measure import log_magnitudes
from utils.process.errors import warn

HISTOGRAM, BINS = "log10_magnitude", 100


class Board:
    """TensorBoard's files of a run: the columns of its table, and a histogram of magnitudes.

    Each process that trains the run begins a file. From its first epoch on, TensorBoard drops what
    older files hold: epochs that were trained, but not saved, before the run was stopped.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._writer: Any = None

    def add(self, columns: Mapping[str, Sequence[float]], model: nn.Module) -> None:
        """Write the newest epoch. Warns when the disk does not take it."""
        from torch.utils.tensorboard import SummaryWriter

        epoch = columns["epoch"][-1]
        logs = torch.cat([log_magnitudes(p) for p in model.parameters()])
        try:
            if self._writer is None:
                self._writer = SummaryWriter(self.folder, purge_step=epoch)
            for name in columns.keys() - {"epoch"}:
                self._writer.add_scalar(name, columns[name][-1], epoch)
            if len(logs):
                self._writer.add_histogram(HISTOGRAM, logs, epoch, bins=BINS)
            self._writer.flush()
        except OSError as error:
            self._writer = None
            warn(f"cannot write in {self.folder} ({error.strerror}); it lacks epoch {epoch}")
