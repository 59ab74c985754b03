"""The course of a training in TensorBoard: the columns of its table, and a histogram.

Events are written here rather than by PyTorch's SummaryWriter, whose thread prints a traceback on a
full disk and loses what it was given.
"""

import io
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import nn

from utils.compute.measure import BINS_PER_DECADE, log_magnitudes
from utils.process.errors import warn

HISTOGRAM = "log10_magnitude"


class Board:
    """The event files of a run in `folder`, which TensorBoard reads in the order of their names.

    Each process that trains the run begins a file. From its first epoch on, TensorBoard drops what
    older files hold: epochs that were trained, but not saved, before the run was stopped.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._path: Path | None = None  # of the file that the next epoch is appended to
        self._shown: int | None = None  # how many epochs the files hold; None before the first call

    def add(self, columns: Mapping[str, Sequence[float | None]], model: nn.Module) -> None:
        """Write the scalars of the newest epoch, and a histogram of the model's magnitudes.

        `columns` is as `History.columns` returns it. Scalars of earlier epochs that the files lack
        are written, too. Warns when the disk takes nothing.
        """
        epochs = len(columns["epoch"])
        if self._shown is None:
            self._shown = epochs - 1 if any(self.folder.glob("*tfevents*")) else 0
        events = [] if self._path else _beginning(self._shown + 1)
        events += [_scalars(columns, epoch) for epoch in range(self._shown + 1, epochs + 1)]
        events.append(_histogram(model, epochs))
        path = self._path or self.folder / f"events.out.tfevents.{time.time_ns()}"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with open(path, "ab") as file:
                file.write(_records(events))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            if self._path is None:  # the file is new, and what it has is written again
                with suppress(OSError):
                    path.unlink(missing_ok=True)
            self._path = None  # TensorBoard reads no further than half an event
            warn(f"cannot write {path} ({error.strerror}); the next epoch tries again")
        else:
            self._path, self._shown = path, epochs


def _beginning(epoch: int) -> list[dict[str, Any]]:
    """The events that begin a file whose first epoch is `epoch`."""
    from tensorboard.compat.proto.event_pb2 import SessionLog

    start = SessionLog(status=SessionLog.START)
    return [{"file_version": "brain.Event:2"}, {"step": epoch, "session_log": start}]


def _scalars(columns: Mapping[str, Sequence[float | None]], epoch: int) -> dict[str, Any]:
    from tensorboard.compat.proto.summary_pb2 import Summary

    row = {name: values[epoch - 1] for name, values in columns.items() if name != "epoch"}
    known = {name: value for name, value in row.items() if value is not None}
    values = [Summary.Value(tag=name, simple_value=value) for name, value in known.items()]
    return {"step": epoch, "summary": Summary(value=values)}


def _histogram(model: nn.Module, epoch: int) -> dict[str, Any]:
    """Counts of the entries that are not 0, by log10 of magnitude; made on the model's device."""
    from tensorboard.compat.proto.summary_pb2 import HistogramProto, Summary

    logs = torch.cat([log_magnitudes(p) for p in model.parameters()])
    if not len(logs):
        return {"step": epoch}
    scaled = logs * BINS_PER_DECADE  # a bin has a width of 1
    low, high = int(scaled.min().floor()), int(scaled.max().floor()) + 1
    histogram = HistogramProto(
        min=logs.min().item(),
        max=logs.max().item(),
        num=len(logs),
        sum=logs.sum(dtype=torch.float64).item(),
        sum_squares=logs.square().sum(dtype=torch.float64).item(),
        bucket_limit=[edge / BINS_PER_DECADE for edge in range(low + 1, high + 1)],
        bucket=torch.histc(scaled, high - low, low, high).tolist(),
    )
    value = Summary.Value(tag=HISTOGRAM, histo=histogram)
    return {"step": epoch, "summary": Summary(value=[value])}


def _records(events: list[dict[str, Any]]) -> bytes:
    """The events, from their fields, as they stand in a file."""
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.summary.writer.record_writer import RecordWriter

    content = io.BytesIO()
    writer = RecordWriter(content)
    for fields in events:
        writer.write(Event(wall_time=time.time(), **fields).SerializeToString())
    return content.getvalue()
