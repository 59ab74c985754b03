"""The course of a training, epoch by epoch: a table and a picture beside its log."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from utils.outputs.headings import heading
from utils.outputs.logs import write_csv
from utils.outputs.plots import plot_training
from utils.process.errors import RunError, warn
from utils.settings.config import Config
from utils.settings.fields import identifying_settings

METRICS = ("train_loss", "train_accuracy", "test_accuracy", "lr")
OF_SFW = ("effective_weight_decay",)
COLUMNS = {"train_loss": "loss"}  # of the table, where they are not named like their metrics
# Drawing takes at most this share of a run's time. A first picture is expected to take a second.
DRAWING_SHARE, FIRST_DRAWING_SECONDS = 0.05, 1.0


class Pace:
    """How often something that takes time can be done, if that is to take a share of the time.

    `expected` is what it takes the first time, in seconds.
    """

    def __init__(self, expected: float = 0.0) -> None:
        self._done_at, self._seconds = time.monotonic(), expected

    def allows(self, share: float) -> bool:
        return self._seconds <= share * (time.monotonic() - self._done_at)

    @contextmanager
    def measured(self) -> Iterator[None]:
        """The block whose duration is measured."""
        started = time.monotonic()
        yield
        self._done_at = time.monotonic()
        self._seconds = self._done_at - started


class History:
    """The epochs of a run so far.

    Each list of `metrics` gets a value for every epoch. Entries of other names are kept in the
    model file, and not in the table. `seconds` is what each epoch took, which no two runs have in
    common. Of epochs before a resume file of an earlier version some values are not known.
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        self._of_method = OF_SFW if config.optimizer == "SFW" else ()
        self.metrics: dict[str, Any] = {name: [] for name in METRICS + self._of_method}
        self.seconds: list[float] = []
        self._pace = Pace(FIRST_DRAWING_SECONDS)

    def columns(self) -> dict[str, list[float | None]]:
        """The table: a value for each epoch, or None, by the name of the column."""
        known = {**self.metrics, "seconds": self.seconds}
        names = *METRICS, "seconds", *self._of_method
        columns = {COLUMNS.get(name, name): known[name] for name in names}
        epochs = len(columns["loss"])
        return {"epoch": list(range(1, epochs + 1))} | {
            name: [None] * (epochs - len(values)) + list(values) for name, values in columns.items()
        }

    def save(self) -> None:
        """Write the table, with six digits; raises RunError when the disk does not take it."""
        columns = self.columns()
        rows = zip(*columns.values(), strict=True)
        cells = [["" if value is None else f"{value:.6g}" for value in row] for row in rows]
        write_csv(self.config.files.train_table, list(columns), cells)

    def draw(self) -> None:
        """Draw the picture, unless it was drawn so lately that this would slow short epochs.

        The last epoch is always drawn. Warns when the disk does not take the picture.
        """
        last = len(self.seconds) == self.config.epoch_num
        if not (last or self._pace.allows(DRAWING_SHARE)):
            return
        with self._pace.measured():
            above = heading(identifying_settings(self.config))
            try:
                plot_training(self.config.files.train_plot, self.columns(), above)
            except RunError as error:
                warn(f"{error}; training goes on without that picture")
