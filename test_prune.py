#!/usr/bin/env python3
"""Prune a trained model at 19 ratios, or at yours, and test it at each without retraining.

Takes the flags that the model was trained with, or --model_path. Writes a text log, a table and a
picture of accuracy against sparsity to saved_logs/SFW_prune_test/, and of where the zeros are to
saved_logs/layer_sparsity/. With --compare it shows such tables of several runs together.
"""

from utils.process.startup import start_script

if __name__ == "__main__":
    start_script()  # before imports that take seconds

import copy
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import nn

from utils.compute.device import pick_device, placed
from utils.compute.measure import evaluate, zeros_by_parameter
from utils.datasets import Dataset
from utils.outputs.formats import FORMATS, check_formats
from utils.outputs.model_file import pruned_metadata
from utils.outputs.onnx_file import InputImages
from utils.outputs.trained_model import TrainedModel, load_chosen
from utils.process.errors import RunError, UserError, exit_status, warn
from utils.process.writing import check_writable
from utils.prune.comparison import compare
from utils.prune.config import PruneConfig
from utils.prune.correction import Correction, build_correction
from utils.prune.ranking import MagnitudeRanking
from utils.prune.report import print_heading, print_result, result_files, write_results
from utils.prune.tables import PrunedResult
from utils.settings.cli import Flags, Parser
from utils.settings.config import Config
from utils.settings.fields import identifying_settings, path
from utils.settings.names import results_line


def test(trained: TrainedModel, prune: PruneConfig) -> None:
    """Test the model at every pruning ratio, and write the results."""
    config, device = trained.config, pick_device(trained.config.gpu)
    check_formats(prune.pruned_format)
    check_writable(result_files(trained, prune), "--output_dir")
    dataset = config.load_dataset().to(device)
    model = placed(trained.model, device, config.image_shape)
    correction = build_correction(prune, model, dataset, config)

    print_heading(trained, prune)
    results = []
    for result in sweep(trained, prune, model, dataset, correction):
        print_result(result, model)
        results.append(result)
    files = prune.files(trained.files)
    write_results(trained, prune, results, files)
    print("\n" + results_line(picture=files.prune_test(".png")))
    if prune.save_pruned:
        print(f"Pruned models: {files.model.parent}/")
    wanted = len({*prune.save_pruned}) * len(prune.pruned_format)
    if sum(len(r.sizes) for r in results) < wanted:
        raise RunError(
            "--save_pruned: some files could not be written; the warnings say why; give the same"
            " command again once that is solved"
        )


def sweep(
    trained: TrainedModel,
    prune: PruneConfig,
    model: nn.Module,
    dataset: Dataset,
    correction: Correction | None,
) -> Iterator[PrunedResult]:
    """Prune `model` in place at each ratio, test it, and save it at the ratios of --save_pruned.

    With a correction, each pruned network is tested before and after it, and saved after it.
    """
    config = trained.config
    batches = dataset.test_batches(config.test_batchsize)
    ranking = MagnitudeRanking(model, prune.allocation, prune.prune_scope)
    dense = None if correction is None else copy.deepcopy(model.state_dict())
    for ratio in sorted({*prune.ratios, *prune.save_pruned}):
        if dense is not None:
            model.load_state_dict(dense)
        remaining = len(ranking.weights) - ranking.prune(ratio)
        uncorrected = accuracy = evaluate(model, batches, config.precision)
        if correction is not None:
            correction()
            accuracy = evaluate(model, batches, config.precision)
        sizes = {}
        if ratio in prune.save_pruned:
            pruning = {"sparsity": ratio, "accuracy": accuracy, "accuracy_uncorrected": uncorrected}
            metadata = pruned_metadata(
                config, pruning | identifying_settings(prune), trained.unknown
            )
            paths = prune.pruned_files(trained.files, ratio)
            sizes = save(paths, model, dataset, metadata)
        count, zeros = len(ranking.weights), zeros_by_parameter(model)
        after_correction = None if correction is None else accuracy
        yield PrunedResult(ratio, remaining, count, zeros, uncorrected, after_correction, sizes)


def save(
    paths: dict[str, Path], model: nn.Module, dataset: Dataset, metadata: dict[str, Any]
) -> dict[str, int]:
    """Save a pruned model; `paths` has a file for each format. Returns their sizes in bytes.

    A format that cannot be written gets a warning, and has no size.
    """
    images = InputImages(dataset.color_channel, dataset.image_size, dataset.mean, dataset.std)
    sizes = {}
    for name, file in paths.items():
        try:
            FORMATS[name].write(file, model, images, metadata)
            sizes[name] = file.stat().st_size
        except RunError as error:
            warn(str(error))
    return sizes


def compare_tables(flags: Flags) -> None:
    """Run --compare, which takes no settings but --output_dir."""
    if others := sorted(flags.explicit.keys() - {"compare", "output_dir"}):
        raise UserError(
            f"--{others[0]}: --compare takes the settings from the files beside its tables; leave"
            " this flag out"
        )
    compare(flags.explicit["compare"], flags.settings(Config).output_dir)


def main(argv: list[str] | None = None) -> int:
    parser = Parser(__doc__, Config, PruneConfig)
    parser.add_model_path()
    parser.add_argument(
        "--compare",
        nargs="+",
        type=path,
        metavar="CSV",
        help="instead of a test, draw these tables of saved_logs/SFW_prune_test/ in one picture and"
        " print them as one table; goes with --output_dir alone",
    )

    def run() -> None:
        flags = parser.parse(argv)
        if "compare" in flags.explicit:
            compare_tables(flags)
        else:
            prune = flags.settings(PruneConfig)
            test(load_chosen(flags), prune)

    return exit_status(run)


if __name__ == "__main__":
    sys.exit(main())
