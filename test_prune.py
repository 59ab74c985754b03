#!/usr/bin/env python3
"""Prune a trained model at 19 ratios, in one shot each, and test it without retraining.

Takes the flags that the model was trained with, or --model_path. Writes a text log, a table and a
picture of accuracy against sparsity to saved_logs/SFW_prune_test/, and of where the zeros are to
saved_logs/layer_sparsity/. With --compare it shows such tables of several runs together.
"""

from utils.process.startup import start_script

if __name__ == "__main__":
    start_script()  # before imports that take seconds

import copy
import sys
from collections.abc import Callable, Iterator

from torch import nn

from utils.compute.device import pick_device, placed
from utils.compute.measure import evaluate, zeros_by_parameter
from utils.datasets.batches import Batches
from utils.outputs.model_file import load_trained, write_pruned
from utils.process.errors import RunError, exit_status, warn
from utils.process.writing import check_writable
from utils.prune.comparison import compare
from utils.prune.config import PruneConfig
from utils.prune.correction import check_correction, correction
from utils.prune.ranking import RATIOS, MagnitudeRanking
from utils.prune.report import PrunedResult, print_heading, print_result, write_results
from utils.settings.cli import Parser
from utils.settings.config import Config
from utils.settings.fields import path
from utils.settings.names import TEST_SUFFIXES, RunFiles, plain


def test(given: dict) -> None:
    """Test the model of these settings at every pruning ratio."""
    prune = PruneConfig.taken_from(given)
    trained = load_trained(given, given.pop("model_path", None))
    config, device = trained.config, pick_device(trained.config.gpu)
    check_correction(prune, trained.model, config.arch)
    files = prune.files(trained.files)
    written = [files.prune_test(suffix) for suffix in TEST_SUFFIXES]
    written += [files.layer_sparsity(suffix) for suffix in (".csv", ".png")]
    written += [files.pruned(plain(ratio)) for ratio in prune.save_pruned]
    check_writable(written, "--output_dir")
    dataset = config.load_dataset().to(device)
    batches = dataset.test_batches(config.test_batchsize)
    model = placed(trained.model, device)
    correct = correction(prune, model, dataset, config)

    print_heading(trained, prune)
    results = []
    for result in sweep(config, prune, model, batches, correct, files):
        print_result(result, model)
        results.append(result)
    write_results(trained, prune, results, files)
    print("\nFiles of this run:", *files.existing(), sep="\n  ")
    if any(r.ratio in prune.save_pruned and r.size is None for r in results):
        raise RunError("--save_pruned: not all is saved; mend that, then give the command again")


def sweep(
    config: Config,
    prune: PruneConfig,
    model: nn.Module,
    batches: Batches,
    correct: Callable[[], None] | None,
    files: RunFiles,
) -> Iterator[PrunedResult]:
    """Prune the model in place at each ratio, test it, and save it where that is asked for.

    `correct` changes the pruned model; it is tested without and with it then, and saved with it.
    """
    ranking = MagnitudeRanking(model, prune.allocation, prune.prune_scope)
    dense = None if correct is None else copy.deepcopy(model.state_dict())
    for ratio in sorted({*RATIOS, *prune.save_pruned}):
        if dense is not None:
            model.load_state_dict(dense)
        remaining = len(ranking.weights) - ranking.prune(ratio)
        accuracy, corrected, size = evaluate(model, batches, config.precision), None, None
        if correct is not None:
            correct()
            corrected = evaluate(model, batches, config.precision)
        if ratio in prune.save_pruned:
            own = accuracy if corrected is None else corrected
            pruning = {"sparsity": ratio, "accuracy": own, "accuracy_uncorrected": accuracy}
            pruning |= {k: v for k, v in vars(prune).items() if k != "save_pruned"}
            try:
                size = write_pruned(files.pruned(plain(ratio)), model, config, pruning)
            except RunError as error:
                warn(str(error))
        zeros = zeros_by_parameter(model)
        yield PrunedResult(ratio, remaining, len(ranking.weights), zeros, accuracy, corrected, size)


def main(argv: list[str] | None = None) -> int:
    parser = Parser(__doc__, Config, PruneConfig)
    parser.add_model_path()
    parser.add_argument("--compare", nargs="+", type=path, metavar="CSV",
                        help="tables in saved_logs/SFW_prune_test/: draw them in one picture and"
                        " print one table, instead; goes with --output_dir alone")  # fmt: skip

    def run() -> None:
        given = vars(parser.parse_args(argv))
        (compare if "compare" in given else test)(given)

    return exit_status(run)


if __name__ == "__main__":
    sys.exit(main())
