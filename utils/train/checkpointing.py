"""Stopping and going on: a run's resume files, its lock, and the signals that stop it."""

import itertools
import os
import re
import textwrap
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from utils.checkpoints.model_file import (
    DamagedFileError,
    model_contents,
    read_contents,
    write_contents,
)
from utils.datasets.batches import Batches
from utils.process.errors import RunError, UserError, notify, warn
from utils.process.locks import run_lock
from utils.process.requirements import require
from utils.process.signals import Stopped, StopSignals
from utils.process.terminal import say
from utils.process.writing import check_writable, remove_leftovers
from utils.settings.config import Config, first_difference
from utils.settings.fields import identifying_settings
from utils.train.distributed import World, check_processes, lost_process_reported
from utils.train.recording import Recorder

FORMAT = 2
SAVE_SECONDS = 30.0  # between two epochs that are saved
MOST_PROCESSES = 256  # of a run that is looked for
WAY_OUT = "start over with --resume never, or move the file away"


@contextmanager
def checkpointing(config: Config, world: World) -> Iterator["Checkpointer"]:
    """The checkpointer of the run, which no process outside `world` trains meanwhile.

    SIGINT and SIGTERM raise Stopped, whose advice says from where the run goes on. Raises UserError
    when a file of the run cannot be written, others train it or a requirement is missing.
    """
    check_processes(config, world)
    if config.tensorboard:
        require("--tensorboard", "tensorboard")
    with StopSignals(world.largest if world.size > 1 else None) as signals, ExitStack() as held:
        checkpoints = Checkpointer(config, world, signals)
        if not checkpoints.check_finished():  # otherwise nothing is written, and nothing is locked
            world.on_main(lambda: held.enter_context(_own_files(config)))
            checkpoints.check_finished()  # by another process, before this one had the lock
        try:
            with lost_process_reported(checkpoints.advice):
                yield checkpoints
        except Stopped as stopped:
            stopped.advice = checkpoints.advice()
            raise


@contextmanager
def _own_files(config: Config) -> Iterator[None]:
    """The files of the run can be written, and nothing else writes them."""
    files = config.files
    written = [files.model, files.resume, files.previous_resume, files.train_log]
    written += [files.train_table, files.train_plot, files.scales_plot]
    events = [files.tensorboard / "events"] if config.tensorboard else []
    check_writable([*written, *events, files.lock], "--output_dir")
    with run_lock(files.lock):
        remove_leftovers(written)
        yield


@dataclass
class RunState:
    """What changes as a run goes on."""

    config: Config
    model: nn.Module
    optimizer: torch.optim.Optimizer
    batches: Batches
    recorder: Recorder

    @property
    def position(self) -> str:
        steps = f" and {self.batches.taken} steps" if self.batches.taken else ""
        return f"epoch {self.recorder.epoch}{steps}"

    def model_contents(self) -> dict[str, Any]:
        recorder = self.recorder
        return model_contents(self.model, self.config, recorder.epoch, recorder.metrics)

    def contents(self) -> dict[str, Any]:
        """Plain types and tensors: those of a model file, and what only going on needs."""
        return self.model_contents() | {
            "format": FORMAT,
            "device": self.batches.images.device.type,
            "threads": torch.get_num_threads(),
            "optimizer": self.optimizer.state_dict(),
            "batches": self.batches.state_dict(),
            "recorder": self.recorder.state_dict(),
        }

    def restore(self, saved: dict[str, Any], path: Path) -> None:
        """Go on from what `Checkpointer.load` gave; `path` is named if it does not fit."""
        try:
            self.model.load_state_dict(saved["state_dict"])
            self.optimizer.load_state_dict(saved["optimizer"])
            self.batches.load_state_dict(saved["batches"])
            self.recorder.load_state_dict(saved["recorder"])
            if (self.recorder.epoch, len(self.recorder.steps)) != (
                saved["epoch"],
                self.batches.taken,
            ):
                raise ValueError("its parts are of different steps")
        except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
            reason = textwrap.shorten(str(error), 200, placeholder=" ...")
            raise UserError(f"{path}: does not fit the network ({reason}); {WAY_OUT}") from None


class Checkpointer:
    """Saves a run, and reads what was saved.

    There is the newest resume file and, in case of damage, the one before. The older one is
    replaced only when a newer one is complete, so that one of the two is always complete. Of
    several processes, the main one reads and saves.
    """

    def __init__(self, config: Config, world: World, signals: StopSignals) -> None:
        self.config, self.world, self.signals = config, world, signals
        self.newest, self.previous = config.files.resume, config.files.previous_resume
        self.finished = False  # whether the model is there already, and not to be trained anew
        self.position: str | None = None  # of the run in what is saved
        self._saved_at = time.monotonic()

    def advice(self) -> str:
        """How the run goes on when it has been stopped."""
        if not self.position:
            return Stopped.advice
        never = " without --resume never" if self.config.resume == "never" else ""
        return f"the same command{never} goes on after {self.position}"

    def check_finished(self) -> bool:
        """Set `finished`, return it, and say so if it is true."""
        model = self.config.files.model
        self.finished = self.config.resume == "auto" and self.world.on_main(
            lambda: model.is_file() and not self._exists()
        )
        if self.finished:
            self.world.on_main(lambda: self._check_data(model))
            say(f"Trained already; --resume never trains it anew:\n  {model}")
        return self.finished

    def load(self, device: torch.device) -> dict[str, Any] | None:
        """What the run is resumed from; None if it starts from the beginning.

        A damaged newest file is set aside, never deleted, if the one before it is good. Raises
        UserError where neither can be used, and where there is only a run that another number of
        processes has begun.
        """
        saved = None
        if self.config.resume == "auto":
            saved = self.world.on_main(lambda: self._newest_good(device))
        if saved is None and (shorter := finished_with_fewer_epochs(self.config)):
            say(
                f"Trained already for {shorter.epoch_num} epochs, which cannot be continued: their"
                f" learning rates were planned for that end. This run starts from the beginning.\n"
                f"  {shorter.files.model}"
            )
        return saved

    def begin(self, state: RunState, saved: dict[str, Any] | None) -> None:
        """Restore what `load` gave, or save the run as it is before its first step.

        From here on a signal waits for `stop_if_signalled`.
        """
        if saved is None:
            self.save(state)
        else:
            state.restore(saved, self.newest)
            self.position = state.position
            say(f"Going on after {state.position} of {self.config.epoch_num} epochs")
        self.signals.deferring = True

    def save_if_due(self, state: RunState) -> None:
        """Save after an epoch if that is the last, or none was saved for half a minute."""
        last = state.recorder.epoch == self.config.epoch_num
        if last or time.monotonic() - self._saved_at >= SAVE_SECONDS:
            self.save(state)
            if self.world.is_main:
                state.recorder.draw()

    def stop_if_signalled(self, state: RunState) -> None:
        """Save and raise Stopped if a signal has come."""
        if number := self.signals.received():
            state.recorder.read_back()
            if self.position != state.position:
                self.save(state)
            raise Stopped(number)

    def save(self, state: RunState) -> None:
        """Save log, table and resume file; when the disk takes none of them, the run goes on."""
        self._saved_at = time.monotonic()
        if not self.world.is_main:
            return
        for save in (state.recorder.save, lambda: self._save_resume_file(state)):
            try:
                save()
            except RunError as error:
                done = f"the run is saved up to {self.position}" if self.position else ""
                warn(f"{error}; {done or 'nothing is saved'}, and the next save tries again")

    def finish(self, state: RunState) -> None:
        """Write model, log and table, and remove the resume files."""
        if not self.world.is_main:
            return
        try:
            write_contents(self.config.files.model, state.model_contents())
            state.recorder.save()
        except RunError as error:
            raise RunError(f"{error}; {self.advice()}, once it can") from None
        for path in (self.previous, self.newest):
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                warn(f"cannot remove {path} ({error.strerror}); it is of no more use")

    def _save_resume_file(self, state: RunState) -> None:
        write_contents(self.newest, state.contents(), keep_former=self.previous)
        self.position = state.position

    def _exists(self) -> bool:
        return os.path.lexists(self.newest) or os.path.lexists(self.previous)

    def _newest_good(self, device: torch.device) -> dict[str, Any] | None:
        if not self._exists():
            self._refuse_other_processes()
            return None
        if not os.path.lexists(self.newest):  # perhaps killed between the two renames of a save
            return self._read(self.previous, device)
        try:
            return self._read(self.newest, device)
        except DamagedFileError as error:
            if not self.previous.is_file():
                raise
            saved = self._read(self.previous, device)
            names = (self.newest.with_suffix(f".damaged-{i}.pt") for i in itertools.count(1))
            aside = next(path for path in names if not path.exists())
            os.replace(self.newest, aside)
            warn(f"{error}: it is now {aside.name}, and {self.previous.name} is used")
            return saved

    def _read(self, path: Path, device: torch.device) -> dict[str, Any]:
        """The contents of a file of this run; raises UserError, for damage DamagedFileError."""
        saved = read_contents(path, WAY_OUT)
        if not isinstance(saved.get("format"), int) or not isinstance(saved.get("config"), dict):
            raise UserError(f"{path}: is no resume file; {WAY_OUT}")
        if saved["format"] != FORMAT:
            raise UserError(
                f"{path}: is of another version of this program; use that, or {WAY_OUT}"
            )
        if found := first_difference(saved["config"], identifying_settings(self.config)):
            raise UserError(f"{path}: is of {found}; {WAY_OUT}")
        if saved.get("device") != device.type:
            raise UserError(
                f"--gpu {self.config.gpu}: {path} is of a run on another kind of device, where"
                f" random numbers differ; give its --gpu, {WAY_OUT}"
            )
        theirs, ours = saved.get("threads"), torch.get_num_threads()
        if device.type == "cpu" and theirs != ours:
            notify(
                f"{path}: is of a run with {theirs} threads, and this one has {ours}: sums are"
                " rounded in another way, and results differ from those of a run that was never"
                f" stopped; with OMP_NUM_THREADS={theirs} they do not"
            )
        return saved

    def _refuse_other_processes(self) -> None:
        present = {path.name for path in self.newest.parent.glob("*.resume.pt")}
        for count in range(1, MOST_PROCESSES + 1) if present else ():
            other = replace(self.config, processes=count).files.resume
            if other.name in present:
                raise UserError(
                    f"{other}: is of a run of {count} processes, which as many can continue, and"
                    f" this one has {self.config.processes}; start {count}, {WAY_OUT}"
                )

    def _check_data(self, model: Path) -> None:
        """Raise UserError if a finished model is of another data set of one's own of this name."""
        if self.config.own_data is None:
            return
        way_out = "train it anew with --resume never, or choose another --output_dir"
        theirs = {"own_data": None} | read_contents(model, way_out).get("config", {})
        if found := first_difference(theirs, {"own_data": self.config.own_data}):
            raise UserError(f"{model}: was trained on {found}; {way_out}")


def finished_with_fewer_epochs(config: Config) -> Config | None:
    """The longest finished run that differs from this one in that it has fewer epochs."""
    pattern = re.compile(r"_epoch_num=(\d+)")
    names = [path.name for path in config.files.model.parent.glob("*.pt")]
    counts = {int(match[1]) for name in names if (match := pattern.search(name))}
    shorter = sorted(count for count in counts if 0 < count < config.epoch_num)
    runs = [replace(config, epoch_num=count) for count in reversed(shorter)]
    return next((run for run in runs if run.files.model.is_file()), None)
