#!/usr/bin/env python3
"""Prune a trained model at 19 ratios, in one shot each, and test it without retraining.

Takes the flags that the model was trained with, or --model_path. Writes a text log, a table and a
picture of accuracy against sparsity to saved_logs/SFW_prune_test/.
"""

import sys

from utils.checkpoint import load_trained
from utils.cli import Parser
from utils.datasets import load_dataset
from utils.device import pick_device, placed
from utils.errors import exit_status
from utils.evaluate import evaluate
from utils.files import TEST_SUFFIXES, check_writable
from utils.logs import TextLog, configuration_line, prune_line, write_csv
from utils.plots import plot_pruning
from utils.prune import RATIOS, MagnitudeRanking


def test(given: dict) -> None:
    """Test the model of these settings at every pruning ratio."""
    trained = load_trained(given, given.pop("model_path", None))
    config, files = trained.config, trained.files
    device = pick_device(config.gpu)
    check_writable([files.prune_test(s) for s in TEST_SUFFIXES], "--output_dir")
    dataset = load_dataset(config.data, config.data_dir, config.color_channel, config.image_size)
    batches = dataset.to(device).test_batches(config.test_batchsize)
    model = placed(trained.model, device, config.precision)

    log = TextLog(files.prune_test(".log"))
    log.add(configuration_line(config))
    ranking = MagnitudeRanking(model)
    count = len(ranking.weights)
    rows = []
    print(f"{config.arch} with {count:,} parameters on {config.data}, pruned by magnitude\n")
    print(f"{'sparsity':>8}  {'remaining':>12}  {'accuracy':>8}")
    for ratio in RATIOS:
        remaining = count - ranking.prune(ratio)
        accuracy = evaluate(model, batches, config.precision)
        log.add(prune_line(ratio, accuracy))
        rows.append((ratio, remaining, count, round(accuracy, 4)))
        print(f"{ratio:>8.0%}  {remaining:>12,}  {accuracy:>6.2f} %", flush=True)
    log.save()
    header = ("sparsity", "remaining", "parameters", "accuracy")
    write_csv(files.prune_test(".csv"), header, rows)
    accuracies = [accuracy for *_, accuracy in rows]
    plot_pruning(files.prune_test(".png"), RATIOS, accuracies, files.run)
    print("\nFiles of this run:", *files.existing(), sep="\n  ")


def main(argv: list[str] | None = None) -> int:
    parser = Parser(__doc__)
    parser.add_model_path()
    return exit_status(lambda: test(vars(parser.parse_args(argv))))


if __name__ == "__main__":
    sys.exit(main())
