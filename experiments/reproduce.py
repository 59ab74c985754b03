#!/usr/bin/env python3
"""Run the paper's main comparison, and draw accuracy against sparsity for all of its methods.

Trains ResNet18 and VGG16 on CIFAR-10 with SGD, with SFW and with SFW after SFW-Init, and prunes
each at 19 ratios. It takes the flags of train_prune.py, but for those that tell the methods apart,
and those of test_prune.py. What is already there is not run again, so that the same command goes on
where it was stopped. Writes one picture and one table to saved_logs/comparison/; with
--bn_recalibrate or --repair, another two with it.
"""

import sys
from collections.abc import Iterable
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from models import ARCHITECTURES
from test_prune import test
from train_prune import train
from utils.compute.device import pick_device
from utils.outputs.model_file import new_model
from utils.outputs.plots import Curves
from utils.process.errors import UserError, exit_status
from utils.process.writing import check_writable
from utils.prune.comparison import comparison_files, read_table, write_comparison
from utils.prune.config import CORRECTIONS, PruneConfig
from utils.prune.correction import check_correction, correction
from utils.settings.cli import Parser
from utils.settings.config import Config
from utils.settings.names import RunFiles, file_name, plain

ARCHS = ("ResNet18", "VGG16")
METHODS: dict[str, dict[str, Any]] = {
    # As is usual for these networks and data (He et al., CVPR 2016): by 10 after 1/3 and 2/3.
    "SGD": dict(
        optimizer="SGD", constraint="unconstraints", mode=None, lr=0.1, weight_decay=5e-4,
        lr_scheme="decrease_3",
    ),
    "SFW": dict(),
    "SFW with SFW-Init": dict(sfw_init=1),
}  # fmt: skip


def compare(given: dict[str, Any]) -> None:
    """Train, prune and draw everything that `given`, the command line's flags, leaves open."""
    lists = {name: given.pop(name) for name in ("archs", "methods", "seeds")}
    prune = PruneConfig.taken_from(given)
    set_here = {"arch", "seed"} | {name for method in METHODS.values() for name in method}
    if refused := sorted(set_here & given.keys()):
        raise UserError(
            f"--{refused[0]}: is set by the comparison; see --archs, --methods, --seeds"
        )
    configs = {
        (arch, method, seed): Config(**given, **METHODS[method], arch=arch, seed=seed)
        for arch, method, seed in product(*lists.values())
    }
    compared = comparisons(prune, next(iter(configs.values())), given, lists)
    for files in compared.values():
        check_writable(comparison_files(files), "--output_dir")
    check_before_training(prune, configs.values())
    curves: dict[str, Curves] = {column: {} for column in compared}
    for (arch, method, seed), config in configs.items():
        print(f"\n== {arch}, {method}, seed {seed} ==", flush=True)
        train(config)  # no finished model is trained again
        files = prune.files(config.files)
        tested, saved = files.prune_test(".csv"), map(files.pruned, map(plain, prune.save_pruned))
        if config.resume == "never" or not all(path.is_file() for path in (tested, *saved)):
            test(given | METHODS[method] | dict(arch=arch, seed=seed) | vars(prune))
        for column, accuracies in read_table(tested).items():
            curves[column].setdefault(f"{arch}, {method}", []).append(accuracies)
    for column, files in compared.items():
        write_comparison(files, curves[column])


def comparisons(
    prune: PruneConfig, first: Config, given: dict[str, Any], lists: dict[str, list]
) -> dict[str, RunFiles]:
    """The files of a comparison for each column of accuracies that pruning so gives."""
    chosen = {name: given[name] for name in first.changing_weights() if name in given}
    joined = {name: "+".join(map(str, values)).replace(" ", "-") for name, values in lists.items()}
    files = RunFiles(first.output_dir, file_name({"data": first.data} | chosen | joined))
    columns = {"accuracy": replace(prune, **dict.fromkeys(CORRECTIONS.values(), 0))}
    if prune.corrected:
        columns[prune.corrected] = prune
    return {column: pruned_so.files(files) for column, pruned_so in columns.items()}


def check_before_training(prune: PruneConfig, configs: Iterable[Config]) -> None:
    """Raise UserError for what the tests would refuse after hours of training."""
    one_each = {config.arch: config for config in configs}.values()
    for config in one_each:
        pick_device(config.gpu)
        check_correction(prune, new_model(config), config.arch)
    if prune.corrected:
        for config in one_each:
            correction(prune, new_model(config), config.load_dataset(), config)


def main(argv: list[str] | None = None) -> int:
    parser = Parser(__doc__, Config, PruneConfig)
    group = parser.add_argument_group("comparison")
    for flag, names, default in (
        ("--archs", ARCHITECTURES, ARCHS),
        ("--methods", METHODS, tuple(METHODS)),
    ):
        text = f"of {', '.join(names)} (default: {', '.join(default)})"
        group.add_argument(
            flag, nargs="+", choices=names, default=default, metavar="NAME", help=text
        )
    group.add_argument("--seeds", nargs="+", type=int, default=[0], metavar="N",
                       help="the runs of each method (default: 0)")  # fmt: skip
    return exit_status(lambda: compare(vars(parser.parse_args(argv))))


if __name__ == "__main__":
    sys.exit(main())
