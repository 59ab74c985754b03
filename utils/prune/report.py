"""What test_prune.py prints, logs and draws of a model pruned at many ratios."""

from collections.abc import Sequence
from pathlib import Path

from torch import nn

from utils.compute.measure import zeros_by_parameter
from utils.outputs.logs import (
    TextLog,
    configuration_line,
    emptied_line,
    prune_line,
    pruned_file_line,
    pruning_line,
)
from utils.outputs.plots import plot_layer_sparsity, plot_pruning
from utils.outputs.trained_model import TrainedModel
from utils.process.errors import warn
from utils.prune.config import PruneConfig
from utils.prune.tables import PrunedResult, write_settings, write_tables
from utils.settings.names import TEST_SUFFIXES, RunFiles, plain


def result_files(trained: TrainedModel, prune: PruneConfig) -> list[Path]:
    """The paths of all files that the test of a model with these settings writes."""
    files = prune.files(trained.files)
    paths = [files.prune_test(suffix) for suffix in (*TEST_SUFFIXES, ".json")]
    paths += [files.layer_sparsity(suffix) for suffix in (".csv", ".png")]
    saved = [prune.pruned_files(trained.files, ratio) for ratio in prune.save_pruned]
    return paths + [path for by_format in saved for path in by_format.values()]


def print_heading(trained: TrainedModel, prune: PruneConfig) -> None:
    config, count = trained.config, sum(p.numel() for p in trained.model.parameters())
    how = "".join(f", {name} {plain(value)}" for name, value in prune.in_name().items())
    print(f"{config.arch} with {count:,} parameters on {config.data}, pruned by magnitude{how}")
    if trained.unknown:
        print(f"Training settings unknown: {trained.source} does not state them")
    if trained.pruned_before is not None:
        zeros = sum(zeros_by_parameter(trained.model).values())
        print(f"It is pruned already: {count - zeros:,} of its parameters are left")
    print()
    columns = f"{'sparsity':>8}  {'remaining':>12}  {'accuracy':>8}"
    if prune.correction:
        columns += f"  {prune.correction_column:>12}"
    print(columns + ("  file" if prune.save_pruned else ""))


def print_result(result: PrunedResult, model: nn.Module) -> None:
    line = f"{f'{100 * result.ratio:.6g}%':>8}  {result.remaining:>12,}  {result.accuracy:>6.2f} %"
    if result.accuracy_after_correction is not None:
        line += f"  {result.accuracy_after_correction:>10.2f} %"
    dense = sum(values.nbytes for values in model.state_dict().values())
    for name, size in result.sizes.items():
        label = f"{name} " if len(result.sizes) > 1 else ""
        line += f"  {label}{size / 1000:,.0f} kB, {100 * size / dense:.1f} % of dense"
    print(line, flush=True)


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
    curves = {"pruned in one shot": [r.accuracy for r in results]}
    if prune.correction:
        curves[prune.correction_column] = [r.accuracy_after_correction for r in results]
    above = trained.heading(prune.in_name(ratios=False))
    plot_pruning(files.prune_test(".png"), ratios, curves, above)
    left = {name: [1 - r.zeros[name] / n for r in results] for name, n in entries.items()}
    plot_layer_sparsity(files.layer_sparsity(".png"), ratios, left, above)
    if emptied:
        names = ", ".join(f"{name} (from {100 * ratio:.6g}%)" for name, ratio in emptied.items())
        warn(f"nothing passes through layers that pruning empties altogether: {names}")


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
    log = TextLog(files.prune_test(".log"))
    log.add(configuration_line(trained.config, trained.unknown))
    if settings := prune.in_name():
        log.add(pruning_line("Pruning", settings))
    if trained.pruned_before is not None:
        log.add(pruning_line("Pruned_Before", trained.pruned_before))
    for r in results:
        column, accuracy = prune.correction_column, r.accuracy_after_correction
        log.add(prune_line(r.ratio, r.accuracy, **({column: accuracy} if column else {})))
        saved = prune.pruned_files(trained.files, r.ratio)
        for name, size in r.sizes.items():
            log.add(pruned_file_line(r.ratio, size, saved[name]))
    for name, ratio in emptied.items():
        log.add(emptied_line(ratio, name))
    log.save()
