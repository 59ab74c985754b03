"""A training run as a process: its files, resuming, stop signals, and what it records."""

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Generator, nn

from constraints import gauges
from utils.compute.measure import THRESHOLDS, count_above, not_finite
from utils.datasets import Dataset
from utils.outputs.logs import (
    TextLog,
    configuration_line,
    decay_line,
    distribution_line,
    gauge_line,
    test_line,
    train_line,
)
from utils.outputs.model_file import model_contents, read_contents, write_contents
from utils.process.errors import RunError, UserError, warn
from utils.process.requirements import require
from utils.process.signals import Stopped, StopSignals
from utils.process.terminal import say
from utils.process.writing import check_writable, remove_leftovers
from utils.settings.config import Config, difference
from utils.train.board import Board
from utils.train.distributed import World, check_processes, lost_process_reported
from utils.train.history import History, Pace
from utils.train.lock import run_lock
from utils.train.progress import REMEDY, EpochProgress
from utils.train.resume import ResumeFile, RunState, finished_with_fewer_epochs
from utils.train.step import TrainingStep, step_seeds, step_sparsities

# Attempts to write the finished model to a full disk, and the time between them: an hour in all.
RETRIES, RETRY_SECONDS = 360, 10.0
# Saving takes at most this share of a run's time: short epochs are not saved one by one.
SAVING_SHARE = 0.1
# A network that guesses has a loss of ln(classes). One that ends far above that has diverged.
DIVERGED = 1.5


@contextmanager
def training_run(config: Config, world: World) -> Iterator["TrainingRun"]:
    """The run of these settings. Its lock keeps processes outside `world` from training it, too.

    SIGINT and SIGTERM raise Stopped, whose advice says from where the run goes on. Raises UserError
    when a file of the run cannot be written, others train it or a requirement is missing.
    """
    check_processes(config, world)
    if config.tensorboard:
        require("--tensorboard", "tensorboard")
    signals = StopSignals(world.largest if world.size > 1 else None)
    with signals, ExitStack() as held:
        run = TrainingRun(config, signals, world)
        if not run.check_finished():  # else nothing is written, and so nothing is locked
            world.on_main(lambda: held.enter_context(_own_files(config)))
            run.check_finished()  # by another process, before this one had the lock
        try:
            with lost_process_reported(run.advice):
                yield run
        except Stopped as stopped:
            stopped.advice = run.advice()
            raise


@contextmanager
def _own_files(config: Config) -> Iterator[None]:
    """The files of the run can be written, and nothing else writes them."""
    files = config.files
    written = [files.model, files.resume, files.previous_resume, files.train_log]
    written += [files.train_table, files.train_plot, files.scales_plot]
    check_writable([*written, files.lock], "--output_dir")
    with run_lock(files.lock):
        remove_leftovers(written)
        yield


class TrainingRun:
    """What surrounds the method: where the run stands, what is saved, and what people read.

    Of several processes each has one, and that of the main process saves.
    """

    def __init__(self, config: Config, signals: StopSignals, world: World) -> None:
        self.config, self.signals, self.world = config, signals, world
        self.resume = ResumeFile(config)
        self.log = TextLog(config.files.train_log)
        self.history = History(config)
        self.metrics = self.history.metrics
        on_board = config.tensorboard and world.is_main
        self.board = Board(config.files.tensorboard) if on_board else None
        self.is_finished = False  # whether the model is there already, and not to be trained anew
        self.saved: dict[str, Any] | None = None  # what the resume file holds
        self.state: RunState
        self._pace = Pace()

    def advice(self) -> str:
        """How the run goes on when it has been stopped."""
        if not self.resume.position:
            return Stopped.advice
        never = " without --resume never" if self.config.resume == "never" else ""
        return f"the same command{never} goes on after {self.resume.position}"

    def check_finished(self) -> bool:
        """Set `is_finished`, return it, and say so if it is true."""
        model = self.config.files.model
        self.is_finished = self.config.resume == "auto" and self.world.on_main(
            lambda: model.is_file() and not self.resume.exists()
        )
        if self.is_finished:
            self.world.on_main(lambda: self._check_data(model))
            say(f"Trained already; --resume never trains it anew:\n  {model}")
        return self.is_finished

    def _check_data(self, model: Path) -> None:
        """Raise UserError if a finished model is of another data set of one's own of this name."""
        ours = self.config.own_data
        if ours is None:
            return
        way_out = "train it anew with --resume never, or choose another --output_dir"
        contents, _ = read_contents(model, way_out)
        theirs = contents.get("config", {}).get("own_data")
        if theirs != ours:
            of = difference("own_data", theirs, ours)
            raise UserError(f"{model}: was trained on {of}; {way_out}")

    def open(self, model: nn.Module, dataset: Dataset) -> None:
        """Read the resume file if there is one, begin the log, and tell people what is trained."""
        config = self.config
        if config.resume == "auto":
            device = dataset.train_images.device
            self.saved = self.world.on_main(lambda: self.resume.load(device))
        self.log.add(configuration_line(config))
        count = sum(p.numel() for p in model.parameters())
        say(
            f"{config.arch} with {count:,} parameters on {config.data},"
            f" {len(dataset.train_labels):,} training and {len(dataset.test_labels):,} test images;"
            f" {config.optimizer}, {config.constraint}"
        )
        if self.saved is None and (shorter := finished_with_fewer_epochs(config)):
            say(
                f"Trained already for {shorter.epoch_num} epochs, which cannot be continued: their"
                f" learning rates were planned for that end. This run starts from the beginning.\n"
                f"  {shorter.files.model}"
            )

    def begin(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, generator: Generator
    ) -> None:
        """Restore what the resume file holds, or save the run as it is before the first epoch."""
        seconds = self.history.seconds
        self.state = RunState(model, optimizer, generator, self.metrics, seconds, self.log)
        if self.saved is None:
            self._report_gauges()
            self.save()
            return
        self.state.restore(self.saved, self.resume.newest)
        self.resume.position = self.state.position
        say(f"Going on after {self.state.position} of {self.config.epoch_num} epochs")

    def _report_gauges(self) -> None:
        """Tell people how much of its region the network fills, where SFW keeps it in one."""
        model, groups = self.state.model, self.state.optimizer.param_groups
        if self.config.optimizer != "SFW":
            return
        filled = gauges(model, [region for group in groups for region in group["constraints"]])
        if filled:
            fullest = max(filled, key=filled.get)
            sizes = [p.numel() for p in model.parameters()]
            mean = sum(g * n for g, n in zip(filled.values(), sizes, strict=True)) / sum(sizes)
            self.log.add(gauge_line(filled[fullest], fullest, mean))
            say(
                f"Gauge: the weights fill {mean:.4f} of their regions on average, and at most"
                f" {filled[fullest]:.4f} ({fullest}); a region binds at 1"
            )

    def epochs(self) -> range:
        """The epochs that are left, counting from 0."""
        return range(self.state.epoch, self.config.epoch_num)

    @contextmanager
    def saved_epoch(self) -> Iterator[None]:
        """Save the run when the block ends, and when a signal stops it between two steps.

        Where epochs are so short that saving would take more than SAVING_SHARE of the time, an
        epoch is saved with a later one, or when a signal comes.
        """
        with self.signals.deferred():
            try:
                yield
            except Stopped as stopped:
                if stopped.between_steps:
                    self.save()
                raise
            last = self.state.epoch == self.config.epoch_num
            if self.signals.have_come() or last or self._pace.allows(SAVING_SHARE):
                self.save()
            if self.world.is_main:
                self.history.draw()

    @contextmanager
    def steps(self, step: TrainingStep, rates: Sequence[float]) -> Iterator[EpochProgress]:
        """The progress of an epoch at these learning rates, from where it was stopped if it was."""
        state = self.state
        title = f"Epoch {state.epoch + 1}/{self.config.epoch_num}"
        start = state.partial["start"] if state.partial else None
        now = state.generator.get_state()
        sparsities = step_sparsities(self.config, state.epoch, len(rates))
        results = title, step.results, step.sizes, state.partial, self.world
        with EpochProgress(*results, sparsities) as progress:
            seeds = step_seeds(self.config.seed, state.epoch, self.world.rank, len(rates))
            order = step.batches.order(start)
            step.begin_epoch(order, rates, progress.steps_done, seeds, sparsities)
            try:
                yield progress
            except Stopped:
                state.partial = progress.state() | {"start": now if start is None else start}
                raise
        state.partial = None

    def record(self, progress: EpochProgress, test_accuracy: float, lr: float) -> None:
        """Add a complete epoch to metrics, log and board, and tell people in one line.

        `lr` is the learning rate of its last step. Raises RunError, naming the parameters, when a
        weight is not finite.
        """
        state, losses = self.state, progress.losses
        if names := not_finite(state.model):
            raise RunError(
                f"{progress.title}: the weights of {', '.join(names)} are not finite after step"
                f" {len(losses)}, whose loss was {losses[-1]:.4g}; {REMEDY}"
            )
        self.metrics["train_loss"].append(progress.loss)
        self.metrics["train_accuracy"].append(progress.accuracy)
        self.metrics["test_accuracy"].append(test_accuracy)
        self.metrics["lr"].append(lr)
        self.history.seconds.append(progress.seconds)
        first = state.epoch * len(losses) + 1
        for i, (loss, accuracy) in enumerate(zip(losses, progress.accuracies, strict=True), first):
            self.log.add(train_line(i, state.epoch + 1, loss, accuracy))
        decay = ""
        if self.config.optimizer == "SFW":
            alpha = progress.effective_weight_decay
            self.metrics["effective_weight_decay"].append(alpha)
            self.log.add(decay_line(state.epoch + 1, alpha))
            decay = f" effective weight decay {alpha:.3g},"
        self.log.add(test_line(state.epoch + 1, test_accuracy))
        for threshold, above in zip(THRESHOLDS, count_above(state.model), strict=True):
            self.log.add(distribution_line(threshold, above))
        state.epoch += 1
        if self.board:  # before the epoch is saved: a run that is killed in between repeats both
            self.board.add(self.history.columns(), state.model)
        say(
            f"{progress.title}: loss {progress.loss:.4f}, training accuracy"
            f" {progress.accuracy:.2f} %, test accuracy {test_accuracy:.2f} %, lr {lr:.4g},"
            f"{decay} {progress.seconds:.2f} s"
        )

    def save(self) -> None:
        """Save log, table and resume file; when the disk takes none of them, the run goes on."""
        if not self.world.is_main:
            return
        with self._pace.measured():
            for save in (self.log.save, self.history.save, lambda: self.resume.save(self.state)):
                try:
                    save()
                except RunError as error:
                    position = self.resume.position
                    saved = f"the run is saved up to {position}" if position else "nothing is saved"
                    warn(f"{error}; {saved}, and every epoch tries again")

    def finish(self) -> None:
        """Write model, log and table, remove the resume file, and warn of a run that diverged."""
        if not self.world.is_main:
            return
        config, state = self.config, self.state
        self._write_results(model_contents(state.model, config, state.epoch, self.metrics))
        self.resume.remove()
        loss, guessing = self.metrics["train_loss"][-1], math.log(config.num_classes)
        if loss > DIVERGED * guessing:
            warn(
                f"the network has learned nothing: its training loss is {loss:.4g}, and guessing"
                f" has {guessing:.4g}; lower --lr"
            )
        say(f"\nModel: {config.files.model}\nLog: {config.files.train_log}")

    def _write_results(self, contents: dict[str, Any]) -> None:
        """Write model, log and table; wait for room on the disk if the run would be lost."""
        for attempt in range(RETRIES):
            try:
                write_contents(self.config.files.model, contents)
                self.log.save()
                self.history.save()
                return
            except RunError as error:
                if self.resume.position == self.state.position:
                    raise RunError(f"{error}; once it can, the same command ends the run") from None
                if attempt == RETRIES - 1:
                    raise
                if attempt == 0:
                    warn(f"{error}; the run is kept in memory, and for an hour it is tried again")
                time.sleep(RETRY_SECONDS)
