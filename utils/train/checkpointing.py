"""Stopping and going on: a run's resume files, its lock, and the signals that stop it."""

import os
import textwrap
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed import DistError

from utils.checkpoints.model_file import (
    DamagedFileError,
    model_contents,
    read_contents,
    versions,
    write_contents,
)
from utils.datasets.batches import Batches
from utils.process.errors import RunError, UserError, notify, require, say, warn
from utils.process.locks import run_lock
from utils.process.signals import Stopped, StopSignals
from utils.process.writing import check_writable, remove_leftovers
from utils.settings.config import Config
from utils.settings.fields import first_difference, identifying_settings
from utils.train.distributed import World, check_processes
from utils.train.recording import Recorder

FORMAT = 3
MOST_PROCESSES = 64  # whose resume files are looked for
SAVE_SECONDS = 30.0  # between two epochs that are saved
WAY_OUT = "start over with --resume never, or move the file away"


@contextmanager
def checkpointing(config: Config, world: World) -> Iterator["Checkpointer"]:
    """The checkpointer of the run, which no process outside `world` trains meanwhile.

    SIGINT, SIGTERM and SIGHUP raise Stopped, whose advice says from where the run goes on. Raises
    UserError when the run cannot be begun, and RunError when another process of it has ended.
    """
    check_processes(config, world)
    if config.tensorboard:
        require("--tensorboard", "tensorboard")
    with StopSignals(all_wait=world.size > 1) as signals, ExitStack() as held:
        checkpoints = Checkpointer(config, world, signals)
        if not checkpoints.finished:  # otherwise nothing is written, and nothing is locked
            world.on_main(lambda: held.enter_context(_own_files(config)))
            checkpoints.finished = world.on_main(checkpoints.is_finished)  # by who had the lock
        try:
            yield checkpoints
            if signals.pending:  # it came after the last step
                raise Stopped(signals.pending)
        except Stopped as stopped:
            stopped.advice = checkpoints.advice()
            raise
        except RuntimeError as error:
            if not (isinstance(error, DistError) or "gloo" in str(error)):
                raise
            advice = checkpoints.advice()
            raise RunError(f"another process of this run has ended; {advice}") from None


@contextmanager
def _own_files(config: Config) -> Iterator[None]:
    """The files of the run can be written, and nothing else writes them."""
    files = config.files
    written = [files.model, files.resume, files.previous_resume, files.train_log]
    written += [files.train_table, files.train_plot, files.scales_plot]
    events = [files.tensorboard / "events"] if config.tensorboard else []
    check_writable([*written, *events, files.lock])
    with run_lock(files.lock):
        remove_leftovers(written)
        yield


def position(saved: dict[str, Any]) -> str:
    """How far the run with these contents is, in words."""
    steps = saved["batches"]["taken"]
    return f"epoch {saved['epoch']}" + (f" and {steps} steps" if steps else "")


@dataclass
class RunState:
    """What changes as a run goes on."""

    config: Config
    model: nn.Module
    optimizer: torch.optim.Optimizer
    batches: Batches
    recorder: Recorder

    def model_contents(self) -> dict[str, Any]:
        return model_contents(self.model, self.config, self.recorder.epoch, self.recorder.metrics)

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
            for name in ("optimizer", "batches", "recorder"):
                getattr(self, name).load_state_dict(saved[name])
        except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
            reason = textwrap.shorten(str(error), 200)
            raise UserError(f"{path}: does not fit this run ({reason}); {WAY_OUT}") from None


class Checkpointer:
    """Saves a run, and reads what was saved.

    There is the newest resume file and, in case of damage, the one before: one of the two is always
    complete. Of several processes, the main one reads and saves. A run whose model is there already
    is `finished`, and not to be trained anew.
    """

    def __init__(self, config: Config, world: World, signals: StopSignals) -> None:
        self.config, self.world, self.signals = config, world, signals
        self.newest, self.previous = config.files.resume, config.files.previous_resume
        self.position: str | None = None  # of the run in what is saved
        self._saved_at = time.monotonic()
        self.finished = world.on_main(self.is_finished)

    def advice(self) -> str:
        """How the run goes on when it has been stopped."""
        if self.finished:
            return "the model is complete"
        if not self.position:
            return Stopped.advice
        never = " without --resume never" if self.config.resume == "never" else ""
        return f"the same command{never} goes on after {self.position}"

    def load(self, device: torch.device) -> dict[str, Any] | None:
        """What the run is resumed from; None if it starts from the beginning.

        A damaged newest file is set aside if the one before it is good. Raises UserError where
        neither can be used, and for a run that another number of processes has begun.
        """
        if self.config.resume == "never":
            return None
        # A run that is killed between the two renames of a save has no newest one.
        files = [path for path in (self.newest, self.previous) if path.exists()]
        if not files:
            self._refuse_other_processes()
            return None
        try:
            return self._read(files[0], device)
        except DamagedFileError as error:
            if len(files) == 1:
                raise
            saved = self._read(self.previous, device)
            aside = self.newest.with_suffix(".damaged.pt")
            os.replace(self.newest, aside)
            warn(f"{error}: it is now {aside.name}, and {self.previous.name} is used")
            return saved

    def begin(self, state: RunState, saved: dict[str, Any] | None) -> None:
        """Restore what `load` gave, or save the untrained run; then signals wait for the step."""
        if saved is None:
            self.save(state)
        else:
            state.restore(saved, self.newest)
            say(f"Going on after {self.position} of {self.config.epoch_num} epochs")
        self.signals.deferring = True

    def save_if_due(self, state: RunState) -> None:
        """Save after an epoch if that is the last, or none was saved for half a minute."""
        last = state.recorder.epoch == self.config.epoch_num
        if last or time.monotonic() - self._saved_at >= SAVE_SECONDS:
            self.save(state)
            if self.world.is_main and not last:
                state.recorder.draw()

    def stop_if_signalled(self, state: RunState) -> None:
        """Save and raise Stopped if a signal has come, to any process."""
        if number := self.world.largest(self.signals.pending):
            state.recorder.read_back()
            self.save(state)
            raise Stopped(number)

    def save(self, state: RunState) -> None:
        """Save log, table and resume file; when the disk does not take them, the run goes on."""
        self._saved_at = time.monotonic()
        if not self.world.is_main:
            return
        try:
            state.recorder.save()
            former = self.previous if self.position else None  # else it is of a run given up
            contents = state.contents()
            write_contents(self.newest, contents, keep_former=former)
            if not former:
                with suppress(OSError):
                    self.previous.unlink(missing_ok=True)
            self.position = position(contents)
        except RunError as error:
            warn(f"{error}; the next save tries again")

    def finish(self, state: RunState) -> None:
        """Write model, log and table, and remove the resume files."""
        if not self.world.is_main:
            return
        try:
            write_contents(self.config.files.model, state.model_contents())
            state.recorder.save()
        except RunError as error:
            raise RunError(f"{error}; {self.advice()}, once it can") from None
        state.recorder.draw()
        for path in (self.previous, self.newest):
            with suppress(OSError):  # it is of no more use
                path.unlink(missing_ok=True)
        self.finished = True

    def is_finished(self) -> bool:
        """Whether there is the model, which is not to be trained anew; says so."""
        model = self.config.files.model
        # Path.exists would raise an error for a name that is too long.
        unfinished = any(map(os.path.exists, (self.newest, self.previous)))
        if self.config.resume == "never" or unfinished or not os.path.isfile(model):
            return False
        way_out = "train it anew with --resume never, or choose another --output_dir"
        self._check_settings(read_contents(model, way_out), model, way_out)
        say(f"Trained already; --resume never trains it anew:\n  {model}")
        return True

    def _read(self, path: Path, device: torch.device) -> dict[str, Any]:
        """The contents of a file of this run; raises UserError, for damage DamagedFileError."""
        saved = read_contents(path, WAY_OUT)
        if saved.get("format") != FORMAT:
            raise UserError(f"{path}: is no resume file of this version; {WAY_OUT}")
        self._check_settings(saved, path, WAY_OUT)
        if saved["device"] != device.type:
            raise UserError(
                f"--gpu {self.config.gpu}: {path} is of a run on another kind of device, where"
                f" random numbers differ; give its --gpu, {WAY_OUT}"
            )
        if saved["versions"] != versions() or saved["config"]["compile"] != self.config.compile:
            notify(
                f"{path}: was saved with other versions of Python or its libraries, or with another"
                " --compile; results differ from those of a run that was never stopped"
            )
        theirs, ours = saved["threads"], torch.get_num_threads()
        if device.type == "cpu" and theirs != ours:
            notify(
                f"{path}: is of a run with {theirs} threads, and this one has {ours}: sums are"
                f" rounded in another way, and results differ; OMP_NUM_THREADS={theirs} keeps them"
            )
        self.position = position(saved)
        return saved

    def _check_settings(self, saved: dict[str, Any], path: Path, way_out: str) -> None:
        """Raise UserError for a file of other settings, or of other data of the same name."""
        found = first_difference(saved.get("config", {}), identifying_settings(self.config))
        if found:
            raise UserError(f"{path}: is of {found}; {way_out}")

    def _refuse_other_processes(self) -> None:
        for count in range(1, MOST_PROCESSES + 1):
            if (other := replace(self.config, processes=count).files.resume).exists():
                raise UserError(
                    f"{other}: is of a run of another number of processes, which as many can"
                    f" continue; start them, {WAY_OUT}"
                )
