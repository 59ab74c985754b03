"""What test_prune.py prints, logs and draws of a model pruned at many ratios."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from utils.checkpoints.trained_model import TrainedModel
from utils.compute.measure import zeros_by_parameter
from utils.process.errors import warn
from utils.prune.config import PruneConfig
from utils.reports.headings import heading_of
from utils.reports.logs import (
    TextLog,
    configuration_line,
    emptied_line,
    prune_line,
    pruned_file_line,
    pruning_line,
)
from utils.reports.plots import plot_layer_sparsity, plot_pruning
from utils.reports.tables import PrunedResult, write_settings, write_tables
from utils.settings.names import TEST_SUFFIXES, RunFiles, percent, plain


def result_files(trained: TrainedModel, prune: PruneConfig) -> list[Path]:
    """The paths of all files that the test of a model with these settings writes."""
    files = prune.files(trained.files)
    paths = [files.prune_test(suffix) for suffix in (*TEST_SUFFIXES, ".json")]
    paths += [files.layer_sparsity(suffix) for suffix in (".csv", ".png")]
    return paths + saved_files(trained, prune)


def saved_files(trained: TrainedModel, prune: PruneConfig) -> list[Path]:
    """The paths of the files of --save_pruned."""
    saved = [prune.pruned_files(trained.files, ratio) for ratio in prune.save_pruned]
    return [path for by_format in saved for path in by_format.values()]


def print_heading(trained: TrainedModel, prune: PruneConfig) -> None:
    print_model(trained, prune, "pruned by magnitude")
    print(f"{'sparsity':>8}  {'remaining':>12}" + tested_heading(prune))


def tested_heading(prune: PruneConfig) -> str:
    """The columns that any pruned network has in what is printed."""
    corrected = f"  {prune.correction_column:>12}" if prune.correction else ""
    return f"  {'accuracy':>8}" + corrected + ("  file" if prune.save_pruned else "")


def print_model(trained: TrainedModel, prune: PruneConfig, what: str) -> None:
    """Print which network it is, and how it is pruned: `what` is done, with which settings."""
    config, count = trained.config, sum(p.numel() for p in trained.model.parameters())
    how = "".join(f", {name} {plain(value)}" for name, value in prune.in_name().items())
    print(f"{config.arch} with {count:,} parameters on {config.data}, {what}{how}")
    if not trained.training_known:
        print(f"Training settings unknown: {trained.source} does not state them")
    if trained.pruned_before is not None:
        zeros = sum(zeros_by_parameter(trained.model).values())
        print(f"It is pruned already: {count - zeros:,} of its parameters are left")
    print()


def print_result(result: PrunedResult, model: nn.Module) -> None:
    line = f"{f'{percent(result.ratio)}%':>8}  {result.remaining:>12,}"
    print(line + tested_cells(result, model), flush=True)


def tested_cells(result: Any, model: nn.Module) -> str:
    """The accuracies and file sizes of any pruned network; `model` is the dense one."""
    text, dense = "", sum(v.nbytes for v in model.state_dict().values())
    for column, accuracy in result.accuracies.items():
        cell = "none" if accuracy.percent is None else f"{accuracy.percent:.2f} %"
        text += f"  {cell:>{8 if column == 'accuracy' else 12}}"
    for name, size in result.sizes.items():
        label = f"{name} " if len(result.sizes) > 1 else ""
        text += f"  {label}{size / 1000:,.0f} kB, {100 * size / dense:.1f} % of dense"
    for column, accuracy in result.accuracies.items():
        if accuracy.not_finite:
            text += f"  {column}: outputs of {accuracy.not_finite:,} images are not finite"
            text += f", first in layer {accuracy.layer}" if accuracy.layer else ""
    return text


def curves_of(results: Sequence[Any], uncorrected: str) -> dict[str, list[float | None]]:
    """The accuracies of pruned networks by label, which is `uncorrected` for those as pruned."""
    return {
        uncorrected if column == "accuracy" else column: [
            r.accuracies[column].percent for r in results
        ]
        for column in results[0].accuracies
    }


def write_results(
    trained: TrainedModel, prune: PruneConfig, results: Sequence[PrunedResult], files: RunFiles
) -> None:
    """Write the log, the tables and the pictures, and warn of parameters that pruning emptied.

    Raises RunError when writing fails.
    """
    entries = {name: p.numel() for name, p in trained.model.named_parameters()}
    emptied = first_emptied(entries, results)
    write_log(trained, prune, results, emptied, files)
    write_settings(trained, prune, files)
    write_tables(prune, results, entries, files)
    ratios = [r.ratio for r in results]
    above = heading_of(trained, prune.in_name(ratios=False))
    curves = curves_of(results, "pruned in one shot")
    plot_pruning(files.prune_test(".png"), ratios, curves, above)
    left = {name: [1 - r.zeros[name] / n for r in results] for name, n in entries.items()}
    plot_layer_sparsity(files.layer_sparsity(".png"), ratios, left, above)
    if emptied:
        names = ", ".join(f"{name} (from {percent(ratio)}%)" for name, ratio in emptied.items())
        warn(f"pruning removes all weights of {names}")


def first_emptied(entries: dict[str, int], results: Sequence[PrunedResult]) -> dict[str, float]:
    """By parameter, the lowest ratio from which on all its entries are 0.

    Biases, which a network can do without, are left out.
    """
    return {
        name: next(r.ratio for r in results if r.zeros[name] == count)
        for name, count in entries.items()
        if results[-1].zeros[name] == count and "bias" not in name.rpartition(".")[2]
    }


def write_log(
    trained: TrainedModel,
    prune: PruneConfig,
    results: Sequence[PrunedResult],
    emptied: dict[str, float],
    files: RunFiles,
) -> None:
    log = new_log(trained, prune, files)
    for result in results:
        add_tested(log, result, trained, prune)
    for name, ratio in emptied.items():
        log.add(emptied_line(ratio, name))
    log.save()


def new_log(trained: TrainedModel, prune: PruneConfig, files: RunFiles) -> TextLog:
    """A log that begins with the settings of training and pruning."""
    log = TextLog(files.prune_test(".log"))
    log.add(configuration_line(trained.config, trained.training_known))
    if settings := prune.in_name():
        log.add(pruning_line("Pruning", settings))
    if trained.pruned_before is not None:
        log.add(pruning_line("Pruned_Before", trained.pruned_before))
    return log


def add_tested(log: TextLog, result: Any, trained: TrainedModel, prune: PruneConfig) -> None:
    """Log the accuracies and the files of any pruned network."""
    log.add(prune_line(result.ratio, result.accuracies))
    saved = prune.pruned_files(trained.files, result.ratio)
    for name, size in result.sizes.items():
        log.add(pruned_file_line(result.ratio, size, saved[name]))
