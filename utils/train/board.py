"""The course of a training in TensorBoard."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from utils.compute.measure import BINS_PER_DECADE, log_magnitudes
from utils.process.errors import warn

HISTOGRAM = "log10_magnitude"


class Board:
    """TensorBoard's files of a run: the columns of its table, and a histogram of magnitudes.

    Each process that trains the run begins a file. From its first epoch on, TensorBoard drops what
    older files hold: epochs that were trained, but not saved, before the run was stopped.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._writer: Any = None

    def add(self, columns: Mapping[str, Sequence[float]], model: nn.Module) -> None:
        """Write the newest epoch, and those before it if there is no file yet.

        Warns when the disk does not take it.
        """
        from torch.utils.tensorboard import SummaryWriter

        first = last = len(columns["epoch"])
        try:
            if self._writer is None:
                first = last if any(self.folder.glob("*tfevents*")) else 1
                self._writer = SummaryWriter(self.folder, purge_step=first)
            for epoch in range(first, last + 1):
                for name in columns.keys() - {"epoch"}:
                    self._writer.add_scalar(name, columns[name][epoch - 1], epoch)
            self._add_histogram(model, last)
            self._writer.flush()
        except OSError as error:
            self._writer = None
            warn(f"cannot write in {self.folder} ({error.strerror}); it lacks epoch {last}")

    def _add_histogram(self, model: nn.Module, epoch: int) -> None:
        """Counts of the entries that are not 0, by log10 of magnitude; made on its device."""
        logs = torch.cat([log_magnitudes(p) for p in model.parameters()])
        if not len(logs):
            return
        scaled = logs * BINS_PER_DECADE  # a bin has a width of 1
        low, high = int(scaled.min().floor()), int(scaled.max().floor()) + 1
        self._writer.add_histogram_raw(
            HISTOGRAM,
            min=logs.min().item(),
            max=logs.max().item(),
            num=len(logs),
            sum=logs.sum(dtype=torch.float64).item(),
            sum_squares=logs.square().sum(dtype=torch.float64).item(),
            bucket_limits=[edge / BINS_PER_DECADE for edge in range(low + 1, high + 1)],
            bucket_counts=torch.histc(scaled, high - low, low, high).tolist(),
            global_step=epoch,
        )
