"""What people read of a training: lines, log, table, picture and TensorBoard."""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from tqdm import tqdm

from constraints import Region, gauges
from utils.compute.measure import THRESHOLDS, count_above, log_magnitudes, not_finite
from utils.datasets import Dataset
from utils.datasets.batches import Batches
from utils.process.errors import RunError, say, warn
from utils.reports import logs
from utils.reports.headings import heading
from utils.reports.plots import plot_training
from utils.settings.config import NO_REGION, Config
from utils.settings.fields import identifying_settings
from utils.settings.names import plain
from utils.train.distributed import World

READ_BACK_SECONDS = 0.5
METRICS = ("train_loss", "train_accuracy", "test_accuracy", "lr", "effective_weight_decay")
# A network that guesses has a loss of ln(classes). One that ends far above that has diverged.
DIVERGED = 1.5
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


class StepResult(NamedTuple):
    """What is known of a step."""

    loss: float  # the mean of its batch
    accuracy: float  # in percent
    alpha: float  # SFW's mean step size
    images: int  # in its batch
    sparsity: float  # of a pruned step, or 0


class Recorder:
    """Follows a training step by step and epoch by epoch.

    The lists of `metrics` and `seconds` get a value for every epoch. Of several processes each has
    a recorder; that of the main one writes.
    """

    def __init__(self, config: Config, world: World) -> None:
        self.config, self.world = config, world
        self.log = logs.TextLog(config.files.train_log)
        self.is_sfw = config.optimizer == "SFW"
        names = METRICS if self.is_sfw else METRICS[:-1]
        self.metrics: dict[str, Any] = {name: [] for name in names}
        self.seconds: list[float] = []
        self.steps: list[StepResult] = []  # of the epoch, as far as they are read back
        self._on_device: list[tuple[Tensor, int, float]] = []  # those of the others
        self._earlier = 0.0  # seconds of the epoch, before the run was stopped in it
        on_board = config.tensorboard and world.is_main
        self._board = Board(config.files.tensorboard) if on_board else None
        # What helps against losses and weights that are not finite.
        sizes = "--lr" if config.constraint == NO_REGION else "--lr, --tau"
        self.remedy = f"lower {sizes} or --weight_decay"

    @property
    def epoch(self) -> int:
        """How many epochs are complete."""
        return len(self.seconds)

    def begin(self, model: nn.Module, dataset: Dataset) -> None:
        """Begin the log, and tell people what is trained on what."""
        config = self.config
        self.metrics["sha256"] = dataset.sha256
        self.log.add(logs.configuration_line(config))
        count = sum(p.numel() for p in model.parameters())
        say(
            f"{config.arch} with {count:,} parameters on {config.data},"
            f" {len(dataset.train_labels):,} training and {len(dataset.test_labels):,} test images;"
            f" {config.optimizer}, {config.constraint}"
        )

    def report_gauges(self, model: nn.Module, regions: list[Region]) -> None:
        """Tell people how much of its region the network fills, where SFW keeps it in one."""
        if not self.is_sfw or not (filled := gauges(model, regions)):
            return
        sizes = {n: p.numel() for n, p in model.named_parameters() if p.requires_grad}
        fullest = max(sizes, key=filled.get)
        mean = sum(filled[n] * size for n, size in sizes.items()) / sum(sizes.values())
        self.log.add(logs.GAUGE.format(filled[fullest], fullest, mean))
        say(
            f"Gauge: the weights fill {mean:.4f} of their regions on average, and at most"
            f" {filled[fullest]:.4f} ({fullest}); a region binds at 1"
        )

    def watched(self, batches: Batches) -> Iterator[tuple[int, tuple[Tensor, Tensor]]]:
        """The batches of the epoch that are left, numbered, while a terminal shows a bar."""
        self._last_read = time.monotonic()
        self._started, self._earlier = self._last_read - self._earlier, 0.0
        self.title, done = f"Epoch {self.epoch + 1}/{self.config.epoch_num}", batches.taken
        options = dict(initial=done, unit="step", leave=False, disable=None)
        self._bar = tqdm(batches, self.title, **options)
        yield from enumerate(self._bar, done)
        self.read_back()

    def add(self, results: Tensor, images: int, sparsity: float = 0.0) -> None:
        """A step on a batch of so many images, with the `results` (3,) of `train_step`.

        Those of several processes add up. They are read back, which waits for the device, twice a
        second and at the end of the epoch. Raises RunError then if a loss is not finite.
        """
        self._on_device.append((results, images, sparsity))
        if self.world.largest(time.monotonic() - self._last_read > READ_BACK_SECONDS):
            self.read_back()

    def read_back(self) -> None:
        """Wait for the results of all steps so far."""
        if not self._on_device:
            return
        results, *known = zip(*self._on_device, strict=True)
        self._on_device = []
        rows = self.world.sums(torch.stack(results)).tolist()
        for (loss, correct, alpha), images, sparsity in zip(rows, *known, strict=True):
            if not math.isfinite(loss):
                last = f", the last finite one was {self.steps[-1].loss:.4g}" if self.steps else ""
                pruned = ", or leave out --pruned_steps" if sparsity else ""
                raise RunError(
                    f"{self.title}, step {len(self.steps) + 1}: the loss is {loss}{last};"
                    f" {self.remedy}{pruned}"
                )
            accuracy = 100 * correct / images
            self.steps.append(StepResult(loss, accuracy, alpha, images, sparsity))
        loss, accuracy = self._means()
        self._bar.set_postfix_str(f"loss {loss:.4f}, accuracy {accuracy:.2f} %", refresh=False)
        self._last_read = time.monotonic()

    def _means(self) -> tuple[float, float]:
        """Loss over batches and accuracy over images, of the dense network if it took any step."""
        counted = [step for step in self.steps if not step.sparsity] or self.steps
        loss = sum(step.loss for step in counted) / len(counted)
        images = sum(step.images for step in counted)
        return loss, sum(step.accuracy * step.images for step in counted) / images

    def end_epoch(self, model: nn.Module, test_accuracy: float, lr: float) -> None:
        """Record the epoch, whose last step had this `lr`, and tell people in one line.

        Raises RunError, naming the parameters, when a weight is not finite.
        """
        loss, accuracy = self._means()
        if names := not_finite(model):
            raise RunError(
                f"{self.title}: the weights of {', '.join(names)} are not finite after step"
                f" {len(self.steps)}, whose loss was {self.steps[-1].loss:.4g}; {self.remedy}"
            )
        alpha = sum(step.alpha for step in self.steps) / len(self.steps)
        self._log_epoch(model, test_accuracy, alpha)
        for name, value in zip(METRICS, (loss, accuracy, test_accuracy, lr, alpha), strict=True):
            if name in self.metrics:
                self.metrics[name].append(value)
        self.seconds.append(time.monotonic() - self._started)
        self.steps = []
        if self._board:  # before the epoch is saved: a run that is killed in between repeats both
            self._board.add(self.table(), model)
        decay = f" effective weight decay {alpha:.3g}," if self.is_sfw else ""
        say(
            f"{self.title}: loss {loss:.4f}, training accuracy {accuracy:.2f} %, test accuracy"
            f" {test_accuracy:.2f} %, lr {lr:.4g},{decay} {self.seconds[-1]:.2f} s"
        )

    def _log_epoch(self, model: nn.Module, test_accuracy: float, alpha: float) -> None:
        number = self.epoch + 1
        for i, step in enumerate(self.steps, self.epoch * len(self.steps) + 1):
            accuracy = round(step.accuracy, 4)
            self.log.add(logs.TRAIN.format(i, number, step.loss, accuracy))
        if self.is_sfw:
            self.log.add(logs.DECAY.format(number, alpha))
        self.log.add(logs.TEST.format(number, test_accuracy, datetime.now()))
        for threshold, above in zip(THRESHOLDS, count_above(model), strict=True):
            self.log.add(logs.WEIGHTS.format(plain(threshold), above))

    def table(self) -> dict[str, list[float]]:
        """A value for each epoch, by the name of the column."""
        epochs = list(range(1, self.epoch + 1))
        columns = {"epoch": epochs, "loss": self.metrics["train_loss"]}
        columns |= {name: self.metrics[name] for name in METRICS[1:4]}
        columns["seconds"] = self.seconds
        return columns | {name: self.metrics[name] for name in METRICS[4:] if self.is_sfw}

    def save(self) -> None:
        """Write log and table; raises RunError when the disk does not take them."""
        self.log.save()
        table = self.table()
        cells = [[f"{value:.6g}" for value in row] for row in zip(*table.values(), strict=True)]
        logs.write_csv(self.config.files.train_table, list(table), cells)

    def draw(self) -> None:
        draw(plot_training, self.config.files.train_plot, self.table(), self.config)

    def finish(self) -> None:
        """Tell people where the results are, and warn of a training that diverged."""
        config, loss = self.config, self.metrics["train_loss"][-1]
        guessing = math.log(config.num_classes)
        if loss > DIVERGED * guessing:
            warn(
                f"the training has probably diverged: its loss is {loss:.4g}, and guessing has"
                f" {guessing:.4g}; lower --lr"
            )
        say(f"\nModel: {config.files.model}\nLog: {config.files.train_log}")

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` goes on from, in plain types, once all is read back."""
        return {
            "metrics": self.metrics,
            "seconds": self.seconds,
            "steps": [tuple(step) for step in self.steps],
            "seconds_of_steps": time.monotonic() - self._started if self.steps else 0.0,
            "log": self.log.length,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raises ValueError for a run on other images or labels."""
        if state["metrics"].get("sha256") != self.metrics.get("sha256"):
            raise ValueError("its data are others than those in --data_dir")
        self.metrics, self.seconds = state["metrics"], state["seconds"]
        self.steps = [StepResult(*step) for step in state["steps"]]
        self._earlier = state["seconds_of_steps"]
        self.log.resume(state["log"])


def draw(plot: Callable[..., None], path: Path, values: Any, config: Config) -> None:
    """Draw a picture of the run; warns when the disk does not take it."""
    try:
        plot(path, values, heading(identifying_settings(config)))
    except RunError as error:
        warn(f"{error}; training goes on without that picture")
