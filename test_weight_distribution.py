#!/usr/bin/env python3
"""Show how large a trained model's weights are.

Takes the flags that the model was trained with, or --model_path. Writes a text log, a table and a
histogram of magnitudes to saved_logs/weight_distribution/. Needs no data set.
"""

import sys

from utils.checkpoints.trained_model import TrainedModel, load_chosen
from utils.compute.device import pick_device
from utils.compute.measure import THRESHOLDS, count_above
from utils.process.errors import exit_status
from utils.process.writing import check_writable
from utils.reports.headings import heading_of
from utils.reports.logs import TextLog, configuration_line, write_csv
from utils.reports.plots import plot_distribution
from utils.settings.cli import Parser
from utils.settings.names import plain, results_line


def test(trained: TrainedModel) -> None:
    """Count the entries of the model above each threshold, and write the results."""
    config, files = trained.config, trained.files
    model = trained.model.to(pick_device(config.gpu))
    suffixes = (".log", ".csv", files.figures)
    paths = log_file, table, picture = [files.weight_distribution(s) for s in suffixes]
    check_writable(paths)

    log = TextLog(log_file)
    log.add(configuration_line(config, trained.training_known))
    count = sum(p.numel() for p in model.parameters())
    rows = []
    how = f"trained on {config.data}" if trained.training_known else "training settings unknown"
    print(f"{config.arch} with {count:,} parameters, {how}\n")
    print(f"{'magnitude':>10}  {'parameters':>12}  {'share':>8}")
    for threshold, above in zip(THRESHOLDS, count_above(model), strict=True):
        log.add(f"Number of weights >{plain(threshold)}: {above}")
        rows.append((threshold, above, above / count))
        print(f"{f'> {threshold:g}':>10}  {above:>12,}  {above / count:>8.2%}")
    log.save()
    write_csv(table, ("threshold", "above", "fraction"), rows)
    plot_distribution(picture, model, heading_of(trained))
    print("\n" + results_line(picture=picture))


def main(argv: list[str] | None = None) -> int:
    parser = Parser(__doc__)
    parser.add_model_path()
    return exit_status(lambda: test(load_chosen(parser.parse(argv))))


if __name__ == "__main__":
    sys.exit(main())
