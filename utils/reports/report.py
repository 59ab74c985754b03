"""What test_prune.py prints, logs, writes and draws of a network pruned at many ratios."""

import json
from dataclasses import dataclass, field
from typing import NamedTuple

from utils.checkpoints.trained_model import TrainedModel, prunings
from utils.compute.measure import Accuracy, channels_by_layer, zeros_by_parameter
from utils.process.errors import say, warn
from utils.process.writing import atomic_write
from utils.prune.channels.measure import BATCHES
from utils.prune.config import CORRECTIONS, PruneConfig
from utils.reports.headings import heading_of
from utils.reports.logs import TextLog, configuration_line, prune_line, settings_line, write_csv
from utils.reports.plots import (
    AS_PRUNED,
    Curves,
    plot_accuracies,
    plot_layer_sparsity,
    plot_slicing,
)
from utils.settings.fields import identifying_settings
from utils.settings.names import plain, shown

# Ends the name of a column: how many of the images behind an accuracy have outputs that are not
# finite.
NOT_FINITE = "_not_finite"


@dataclass(frozen=True)
class Result:
    """A network pruned at one ratio, or to one pattern N:M."""

    ratio: float | str
    measures: dict[str, float]  # what its table has of it, by column
    layers: dict[str, int]  # zeros by parameter, or channels by layer
    accuracies: dict[str, Accuracy]  # by column: as pruned and, if there is one, corrected
    sizes: dict[str, int] = field(default_factory=dict)  # of its files, in bytes, by format


class Layout(NamedTuple):
    """In what the reports of the granularities differ."""

    ratio: str  # the name of its column
    how: str
    printed: dict[str, str]  # columns on the terminal, and how they show the measures
    layers: tuple[str, str, str]  # columns: part of the network, its size, its zeros or channels


TIMES = "{{milliseconds_{0}:.2f}} ({{dense_milliseconds_{0}:.2f}})"
REMOVED, REMAINING = {"removed": "{removed:.1%}"}, {"remaining": "{remaining:,}"}
OF_SLICED = {
    **REMOVED,
    "multiply-adds": "{multiply_adds:,}",
    "channels": "{channels:,}",
    "parameters": "{parameters:,}",
    **{f"ms, batch {n} (dense)": TIMES.format(n) for n in BATCHES},
}
ZEROS = ("parameter", "entries", "zeros")
LAYOUTS = {
    "weights": Layout("sparsity", "pruned by magnitude", REMAINING, ZEROS),
    "N:M": Layout("pattern", "pruned to patterns", REMOVED | REMAINING, ZEROS),
    "channels": Layout("ratio", "sliced", OF_SLICED, ("layer", "dense_channels", "channels")),
}


class Report:
    """What people read of a test: `begin` and `add` print and log, and `save` writes files.

    `paths` are those of all files of the test, with those of --save_pruned.
    """

    def __init__(self, trained: TrainedModel, prune: PruneConfig) -> None:
        self.trained, self.prune = trained, prune
        self.layout, self.of_channels = LAYOUTS[prune.granularity], prune.granularity == "channels"
        self.results: list[Result] = []
        files = prune.files(trained.files)
        self.log, self.settings = TextLog(files.prune_test(".log")), files.prune_test(".json")
        self.table, self.picture = files.prune_test(".csv"), files.prune_test(files.figures)
        of_layers = files.layer_widths if self.of_channels else files.layer_sparsity
        self.layer_table, self.heat_map = of_layers(".csv"), of_layers(files.figures)
        self.paths = [self.log.path, self.table, self.settings, self.picture, self.layer_table]
        self.paths += [] if self.of_channels else [self.heat_map]
        for ratio in prune.save_pruned:
            self.paths += prune.pruned_files(trained.files, ratio).values()

    def begin(self) -> None:
        """Tell which network it is, how it is pruned, and the heads of the columns."""
        trained, model, prune = self.trained, self.trained.model, self.prune
        self.log.add(configuration_line(trained.config, trained.training_known))
        if settings := prune.in_name():
            self.log.add(settings_line("Pruning", settings))
        for before in prunings(trained.pruned_before):
            self.log.add(settings_line("Pruned_Before", before))
        self.zeros = zeros_by_parameter(model)  # before it is pruned
        count = sum(p.numel() for p in model.parameters())
        how = [self.layout.how, *(f"{name} {plain(value)}" for name, value in settings.items())]
        config = trained.config
        say(f"{config.arch} with {count:,} parameters on {config.data}, {', '.join(how)}")
        if not trained.training_known:
            say(f"Training settings unknown: {trained.source} does not state them")
        if trained.pruned_before is not None:
            left = count - sum(self.zeros.values())
            say(f"It is pruned already: {left:,} of its parameters are left")
        heads = [f"{self.layout.ratio:>8}", *(f"{head:>12}" for head in self.layout.printed)]
        heads += [] if prune.corrected_only else [f"{'accuracy':>8}"]
        heads += [f"{CORRECTIONS[prune.correction]:>12}"] if prune.correction else []
        say("\n" + "  ".join([*heads, *(["file"] if prune.save_pruned else [])]))

    def add(self, result: Result) -> None:
        """Tell of a pruned network."""
        self.results.append(result)
        ratio = plain(result.ratio)
        if self.of_channels:
            self.log.add(settings_line(f"Sliced {ratio}", result.measures))
        self.log.add(prune_line(result.ratio, result.accuracies))
        cells = [f"{shown(result.ratio):>8}"]
        for head, form in self.layout.printed.items():
            cells.append(f"{form.format(**result.measures):>{max(len(head), 12)}}")
        for column, accuracy in result.accuracies.items():
            cell = "none" if accuracy.percent is None else f"{accuracy.percent:.2f} %"
            cells.append(f"{cell:>{8 if column == 'accuracy' else 12}}")
        dense = sum(values.nbytes for values in self.trained.model.state_dict().values())
        for name, size in result.sizes.items():
            label = f"{name} " if len(result.sizes) > 1 else ""
            cells.append(f"{label}{size / 1000:,.0f} kB, {100 * size / dense:.1f} % of dense")
            path = self.prune.pruned_files(self.trained.files, result.ratio)[name]
            self.log.add(f"Pruned_Model {ratio} {size} bytes {path.name}")
        for column, accuracy in result.accuracies.items():
            if accuracy.not_finite:
                where = f", first in layer {accuracy.layer}" if accuracy.layer else ""
                images = f"outputs of {accuracy.not_finite:,} images are not finite"
                cells.append(f"{column}: {images}{where}")
        say("  ".join(cells))

    def save(self) -> None:
        """Write log, tables and pictures, and warn of parameters that pruning emptied.

        Raises RunError when writing fails.
        """
        model = self.trained.model
        whole = {name: p.numel() for name, p in model.named_parameters()}
        pruned = {n: size for n, size in whole.items() if self.zeros[n] < size}
        emptied = {} if self.of_channels else first_emptied(pruned, self.results)
        for name, ratio in emptied.items():
            self.log.add(f"Emptied {plain(ratio)} {name}")
        self.log.save()
        self.write_tables(channels_by_layer(model) if self.of_channels else whole)
        self._draw(whole)
        if emptied:
            names = ", ".join(f"{name} (from {shown(ratio)})" for name, ratio in emptied.items())
            warn(f"pruning removes all weights of {names}")

    def write_tables(self, whole: dict[str, int]) -> None:
        """What was measured by ratio, and by ratio and part of the network, as CSV files.

        `whole` has the sizes of the dense network's parts. The settings beside the tables are what
        comparison.py labels them by.
        """
        column, trained, prune = self.layout.ratio, self.trained, self.prune
        rows = []
        for result in self.results:
            row = {column: result.ratio} | result.measures
            for name, accuracy in result.accuracies.items():
                row[name] = None if accuracy.percent is None else round(accuracy.percent, 4)
                row[name + NOT_FINITE] = accuracy.not_finite
            if prune.save_pruned:
                row |= {f"{name}_bytes": result.sizes.get(name) for name in prune.pruned_format}
            rows.append(row)
        write_csv(self.table, list(rows[0]), [list(row.values()) for row in rows])
        layers = [
            (r.ratio, name, size, r.layers[name], r.layers[name] / size)
            for r in self.results
            for name, size in whole.items()
        ]
        write_csv(self.layer_table, (column, *self.layout.layers, "fraction"), layers)
        settings = {
            "model_file": trained.source,
            "training": trained.settings,
            "pruned_before": trained.pruned_before,
            "pruning": identifying_settings(prune),
            prune.listed: getattr(prune, prune.listed),
        }
        with atomic_write(self.settings) as file:
            file.write(json.dumps(settings, indent=1) + "\n")

    def _draw(self, whole: dict[str, int]) -> None:
        """Accuracy against what is removed and, of weights, how much each of `whole` keeps."""
        results, above = self.results, heading_of(self.trained, self.prune.in_name(ratios=False))
        removed = [r.measures["removed"] if self.of_channels else r.ratio for r in results]
        curves: Curves = {}
        for column in results[0].accuracies:
            percents = [r.accuracies[column].percent for r in results]
            title = AS_PRUNED if column == "accuracy" else column
            curves["", title] = [dict(zip(removed, percents, strict=True))]
        if self.of_channels:
            plot_slicing(self.picture, curves, [r.measures for r in results], above)
            return
        plot_accuracies(self.picture, curves, above)
        left = {n: [1 - r.layers[n] / size for r in results] for n, size in whole.items()}
        plot_layer_sparsity(self.heat_map, [r.ratio for r in results], left, above)


def first_emptied(entries: dict[str, int], results: list[Result]) -> dict[str, float]:
    """By parameter, the lowest ratio from which on all its entries are 0.

    Biases, which a network can do without, are left out.
    """
    return {
        name: next(r.ratio for r in results if r.layers[name] == count)
        for name, count in entries.items()
        if results[-1].layers[name] == count and "bias" not in name.rpartition(".")[2]
    }
