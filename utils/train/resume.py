"""Resume files: everything from which a stopped run is continued."""

import itertools
import operator
import os
import re
import textwrap
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Generator, nn

from utils.outputs.logs import TextLog
from utils.outputs.model_file import DamagedFileError, model_contents, read_contents, write_contents
from utils.process.errors import UserError, notify, warn
from utils.settings.config import Config, difference
from utils.settings.fields import identifying_settings

FORMAT = 1
MOST_PROCESSES = 256  # of a run that is looked for
WAY_OUT = "start over with --resume never, or move the file away"


@dataclass
class RunState:
    """What changes as a run goes on.

    `epoch` counts the complete epochs, and `seconds` is what each took. Where a run was stopped
    within one, `partial` has its steps so far (see EpochProgress.state) and, as "start", the
    generator's state when it began.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    generator: Generator
    metrics: dict[str, Any]
    seconds: list[float]
    log: TextLog
    epoch: int = 0
    partial: dict[str, Any] | None = None

    @property
    def position(self) -> str:
        steps = f" and {len(self.partial['losses'])} steps" if self.partial else ""
        return f"epoch {self.epoch}{steps}"

    def contents(self, config: Config) -> dict[str, Any]:
        """Plain types and tensors: those of a model file, and what only going on needs."""
        return model_contents(self.model, config, self.epoch, self.metrics) | {
            "format": FORMAT,
            "optimizer": self.optimizer.state_dict(),
            "generator": self.generator.get_state(),
            "device": self.generator.device.type,
            "threads": torch.get_num_threads(),
            "partial": self.partial,
            "seconds": self.seconds,
            "log": self.log.mark(),
        }

    def restore(self, saved: dict[str, Any], path: Path) -> None:
        """Go on from what `ResumeFile.load` gave; `path` is named if it does not fit."""
        try:
            self.model.load_state_dict(saved["state_dict"])
            self.optimizer.load_state_dict(saved["optimizer"])
            self.generator.set_state(saved["generator"])
            self.metrics |= saved["metrics"]
            self.seconds[:] = saved.get("seconds", [])  # which earlier versions lack
            self.epoch = operator.index(saved["epoch"])
            self.partial = saved["partial"]
            if self.partial is not None:
                torch.Generator(self.generator.device).set_state(self.partial["start"])
                if len({len(self.partial[k]) for k in ("losses", "accuracies", "sizes")}) > 1:
                    raise ValueError("these have an entry for each step")
            log_is_whole = self.log.restore(**saved["log"])
        except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
            reason = textwrap.shorten(str(error), 200, placeholder=" ...")
            raise UserError(f"{path}: does not fit the network ({reason}); {WAY_OUT}") from None
        if not log_is_whole:
            warn(f"{self.log.path}: is gone or changed; its lines up to this epoch are missing")


class ResumeFile:
    """The newest resume file of a run and, in case of damage, the one before.

    The older one is replaced only when a newer one is complete, so that one of the two is always
    complete.
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        self.newest, self.previous = config.files.resume, config.files.previous_resume
        self.position: str | None = None  # of the run in what is saved

    def exists(self) -> bool:
        return os.path.lexists(self.newest) or os.path.lexists(self.previous)

    def load(self, device: torch.device) -> dict[str, Any] | None:
        """The saved state of the run; None if there is none.

        A damaged newest file is set aside, never deleted, if the one before it is good. Raises
        UserError where neither can be used, and where there is only a run that another number of
        processes has begun.
        """
        if not self.exists():
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

    def save(self, state: RunState) -> None:
        """Replace the newest file. Raises RunError if the disk does not take it; both stay then."""
        write_contents(self.newest, state.contents(self.config), keep_former=self.previous)
        self.position = state.position

    def remove(self) -> None:
        """Remove both files, once the model is saved."""
        for path in (self.previous, self.newest):
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                warn(f"cannot remove {path} ({error.strerror}); it is of no more use")

    def _refuse_other_processes(self) -> None:
        present = {path.name for path in self.newest.parent.glob("*.resume.pt")}
        for count in range(1, MOST_PROCESSES + 1) if present else ():
            other = replace(self.config, processes=count).files.resume
            if other.name in present:
                raise UserError(
                    f"{other}: is of a run of {count} processes, which as many can continue, and"
                    f" this one has {self.config.processes}; start {count}, {WAY_OUT}"
                )

    def _read(self, path: Path, device: torch.device) -> dict[str, Any]:
        """The contents of a file of this run; raises UserError, for damage DamagedFileError."""
        saved, _ = read_contents(path, WAY_OUT)
        if not isinstance(saved.get("format"), int) or not isinstance(saved.get("config"), dict):
            raise UserError(f"{path}: is no resume file; {WAY_OUT}")
        if saved["format"] > FORMAT:
            raise UserError(
                f"{path}: is of a newer version of this program; use that, or {WAY_OUT}"
            )
        for name, ours in identifying_settings(self.config).items():
            theirs = saved["config"].get(name, ours)
            if theirs != ours:
                raise UserError(f"{path}: is of {difference(name, theirs, ours)}; {WAY_OUT}")
        if saved.get("device") != device.type:
            raise UserError(
                f"--gpu {self.config.gpu}: {path} is of a run on another kind of device, where"
                f" random numbers differ; give its --gpu, {WAY_OUT}"
            )
        theirs, ours = saved.get("threads"), torch.get_num_threads()
        if device.type == "cpu" and theirs not in (None, ours):
            notify(
                f"{path}: is of a run with {theirs} threads, and this one has {ours}: sums are"
                " rounded in another way, and results differ from those of a run that was never"
                f" stopped; with OMP_NUM_THREADS={theirs} they do not"
            )
        return saved


def finished_with_fewer_epochs(config: Config) -> Config | None:
    """The longest finished run that differs from this one in that it has fewer epochs."""
    pattern = re.compile(r"_epoch_num=(\d+)")
    names = [path.name for path in config.files.model.parent.glob("*.pt")]
    counts = {int(match[1]) for name in names if (match := pattern.search(name))}
    shorter = sorted(count for count in counts if 0 < count < config.epoch_num)
    runs = [replace(config, epoch_num=count) for count in reversed(shorter)]
    return next((run for run in runs if run.files.model.is_file()), None)
