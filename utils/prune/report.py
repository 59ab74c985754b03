"""What a sweep over the pruning ratios found: lines for people, log, tables and pictures."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from utils.compute.measure import zeros_by_parameter
from utils.outputs.logs import (
    TextLog,
    configuration_line,
    emptied_line,
    prune_line,
    pruned_file_line,
    pruning_line,
    write_csv,
)
from utils.outputs.model_file import TrainedModel
from utils.outputs.plots import plot_layer_sparsity, plot_pruning
from utils.process.errors import warn
from utils.prune.config import PruneConfig
from utils.settings.names import RunFiles, plain


@dataclass(frozen=True)
class PrunedResult:
    """A network pruned at one ratio. Accuracies are in percent, `size` is of its file, in bytes."""

    ratio: float
    remaining: int
    count: int  # of entries that were ranked
    zeros: dict[str, int]  # by parameter
    accuracy: float
    corrected: float | None = None  # accuracy with what PruneConfig.corrected tells
    size: int | None = None


def print_heading(trained: TrainedModel, prune: PruneConfig) -> None:
    config, count = trained.config, sum(p.numel() for p in trained.model.parameters())
    how = "".join(f", {name} {plain(value)}" for name, value in prune.in_name().items())
    print(f"{config.arch} with {count:,} parameters on {config.data}, pruned by magnitude{how}")
    if trained.pruned is not None:
        zeros = sum(zeros_by_parameter(trained.model).values())
        print(f"It is pruned already: {count - zeros:,} of its parameters are left")
    print()
    columns = f"{'sparsity':>8}  {'remaining':>12}  {'accuracy':>8}"
    if prune.corrected:
        columns += f"  {prune.corrected:>12}"
    print(columns + ("  file" if prune.save_pruned else ""))


def print_result(result: PrunedResult, model: nn.Module) -> None:
    line = f"{f'{100 * result.ratio:.6g}%':>8}  {result.remaining:>12,}  {result.accuracy:>6.2f} %"
    if result.corrected is not None:
        line += f"  {result.corrected:>10.2f} %"
    if result.size is not None:
        dense = sum(values.nbytes for values in model.state_dict().values())
        line += f"  {result.size / 1000:,.0f} kB, {100 * result.size / dense:.1f} % of dense"
    print(line, flush=True)


def write_results(
    trained: TrainedModel, prune: PruneConfig, results: Sequence[PrunedResult], files: RunFiles
) -> None:
    """Write the sweep's files, and warn of what it emptied. Raises RunError if the disk is full."""
    entries = {name: p.numel() for name, p in trained.model.named_parameters()}
    emptied = first_emptied(entries, results)
    write_log(trained, prune, results, emptied, files)
    write_tables(prune, results, entries, files)
    ratios = [r.ratio for r in results]
    curves = {"pruned in one shot": [r.accuracy for r in results]}
    if prune.corrected:
        curves[prune.corrected] = [r.corrected for r in results]
    plot_pruning(files.prune_test(".png"), ratios, curves, files.run)
    left = {name: [1 - r.zeros[name] / n for r in results] for name, n in entries.items()}
    plot_layer_sparsity(files.layer_sparsity(".png"), ratios, left, files.run)
    if emptied:
        names = ", ".join(f"{name} (from {100 * ratio:.6g}%)" for name, ratio in emptied.items())
        warn(f"nothing passes through layers that pruning empties altogether: {names}")


def write_tables(
    prune: PruneConfig, results: Sequence[PrunedResult], entries: dict[str, int], files: RunFiles
) -> None:
    """Two CSV files: accuracy by ratio, and zeros by ratio and parameter."""
    rows = []
    for r in results:
        row = {"sparsity": r.ratio, "remaining": r.remaining, "parameters": r.count,
               "accuracy": round(r.accuracy, 4)}  # fmt: skip
        if prune.corrected:
            row[prune.corrected] = round(r.corrected, 4)
        if prune.save_pruned:
            row["file_bytes"] = r.size
        rows.append(row)
    write_csv(files.prune_test(".csv"), list(rows[0]), [list(row.values()) for row in rows])
    layers = [
        (r.ratio, name, count, r.zeros[name], r.zeros[name] / count)
        for r in results for name, count in entries.items()
    ]  # fmt: skip
    header = ("sparsity", "parameter", "entries", "zeros", "fraction")
    write_csv(files.layer_sparsity(".csv"), header, layers)


def first_emptied(entries: dict[str, int], results: Sequence[PrunedResult]) -> dict[str, float]:
    """The ratio from which on a parameter is all 0, by name; biases, which a network can do
    without, apart."""
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
    log.add(configuration_line(trained.config))
    if settings := prune.in_name():
        log.add(pruning_line("Pruning", settings))
    if trained.pruned is not None:
        log.add(pruning_line("Pruned_Before", trained.pruned))
    for r in results:
        again = {prune.corrected: r.corrected} if prune.corrected else {}
        log.add(prune_line(r.ratio, r.accuracy, **again))
        if r.size is not None:
            log.add(pruned_file_line(r.ratio, r.size, files.pruned(plain(r.ratio))))
    for name, ratio in emptied.items():
        log.add(emptied_line(ratio, name))
    log.save()
