"""What test_prune.py prints, logs and draws of a network sliced at many ratios."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from utils.checkpoints.trained_model import TrainedModel
from utils.compute.measure import channels_by_layer
from utils.prune.channels.measure import BATCHES, SlicedResult
from utils.prune.config import PruneConfig
from utils.reports.headings import heading_of
from utils.reports.logs import sliced_line, write_csv
from utils.reports.plots import plot_slicing
from utils.reports.tables import tested_columns, write_settings
from utils.reports.weights_report import (
    add_tested,
    curves_of,
    new_log,
    print_model,
    saved_files,
    tested_cells,
    tested_heading,
)
from utils.settings.names import TEST_SUFFIXES, RunFiles, percent


def result_files(trained: TrainedModel, prune: PruneConfig) -> list[Path]:
    """The paths of all files that the test of a network with these settings writes."""
    files = prune.files(trained.files)
    paths = [files.prune_test(suffix) for suffix in (*TEST_SUFFIXES, ".json")]
    return [*paths, files.layer_widths(".csv"), *saved_files(trained, prune)]


def print_heading(trained: TrainedModel, prune: PruneConfig) -> None:
    print_model(trained, prune, "sliced")
    columns = f"{'ratio':>6}  {'removed':>7}  {'multiply-adds':>13}  {'channels':>8}"
    columns += f"  {'parameters':>11}"
    columns += "".join(f"{f'ms, batch {batch} (dense)':>25}" for batch in BATCHES)
    print(columns + tested_heading(prune))


def print_result(result: SlicedResult, model: nn.Module) -> None:
    line = f"{f'{percent(result.ratio)}%':>6}  {100 * result.removed:>5.1f} %"
    line += f"  {result.multiply_adds:>13,}  {sum(result.channels.values()):>8,}"
    line += f"  {result.parameters:>11,}"
    for dense, sliced in result.seconds.values():
        line += f"{f'{1000 * sliced:.2f} ({1000 * dense:.2f})':>25}"
    print(line + tested_cells(result, model), flush=True)


def columns_of(result: SlicedResult) -> dict[str, Any]:
    """What was measured of a sliced network, by the name of its column."""
    columns = {
        "removed": round(result.removed, 6),
        "channels": sum(result.channels.values()),
        "parameters": result.parameters,
        "bytes": result.bytes,
        "multiply_adds": result.multiply_adds,
    }
    for batch, (dense, sliced) in result.seconds.items():
        columns[f"milliseconds_{batch}"] = round(1000 * sliced, 4)
        columns[f"dense_milliseconds_{batch}"] = round(1000 * dense, 4)
    return columns


def write_results(
    trained: TrainedModel, prune: PruneConfig, results: Sequence[SlicedResult], files: RunFiles
) -> None:
    """Write the log, the tables and the picture; raises RunError when writing fails."""
    write_log(trained, prune, results, files)
    write_settings(trained, prune, files)
    write_tables(trained, prune, results, files)
    curves = curves_of(results, "sliced in one shot")
    left = [100 * (1 - r.removed) for r in results]
    times = {
        f"batch of {batch}": [100 * r.seconds[batch][1] / r.seconds[batch][0] for r in results]
        for batch in BATCHES
    }
    above = heading_of(trained, prune.in_name(ratios=False))
    plot_slicing(files.prune_test(".png"), left, curves, times, above)


def write_tables(
    trained: TrainedModel, prune: PruneConfig, results: Sequence[SlicedResult], files: RunFiles
) -> None:
    """Write two CSV files: what was measured by ratio, and channels by ratio and layer."""
    rows = [{"ratio": r.ratio, **columns_of(r), **tested_columns(prune, r)} for r in results]
    write_csv(files.prune_test(".csv"), list(rows[0]), [list(row.values()) for row in rows])
    dense = channels_by_layer(trained.model)
    layers = [
        (r.ratio, name, count, r.channels[name], r.channels[name] / count)
        for r in results
        for name, count in dense.items()
    ]
    header = ("ratio", "layer", "dense_channels", "channels", "fraction")
    write_csv(files.layer_widths(".csv"), header, layers)


def write_log(
    trained: TrainedModel, prune: PruneConfig, results: Sequence[SlicedResult], files: RunFiles
) -> None:
    log = new_log(trained, prune, files)
    for result in results:
        log.add(sliced_line(result.ratio, columns_of(result)))
        add_tested(log, result, trained, prune)
    log.save()
