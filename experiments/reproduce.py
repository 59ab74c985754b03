#!/usr/bin/env python3
"""Run the paper's main comparison, and draw accuracy against sparsity for all of its methods.

Trains ResNet18 and VGG16 on CIFAR-10 with SGD, with SFW and with SFW after SFW-Init, prunes each at
19 ratios or at those of --ratios, and compares the results as test_prune.py --compare does. It
takes the flags of train_prune.py, except those in which the methods differ, and those of
test_prune.py. Results that exist are kept, so that the same command continues where it was stopped;
started several times, with the same --output_dir, it shares the runs.
"""

import sys
from itertools import product
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from models import ARCHITECTURES
from test_prune import tell_left_dense, test
from train_prune import train
from utils.checkpoints.model_file import new_model
from utils.checkpoints.trained_model import load_trained
from utils.process.errors import RunError, UserError, exit_status, warn
from utils.process.locks import LockedError, run_lock
from utils.prune.config import PruneConfig
from utils.prune.corrections.correction import build_correction
from utils.prune.weights.patterns import PatternRanking
from utils.reports.comparison import Comparison, compare
from utils.reports.report import Report
from utils.settings.cli import Flags, Parser
from utils.settings.config import Config, with_own_data

METHODS: dict[str, dict[str, Any]] = {
    # Usual for these networks and data (He et al., CVPR 2016): divided by 10 after 1/3 and 2/3.
    "SGD": dict(optimizer="SGD", constraint="unconstraints", lr=0.1)
    | dict(weight_decay=5e-4, lr_scheme="decrease_3"),
    "SFW": dict(),
    "SFW with SFW-Init": dict(sfw_init=1),
}


def reproduce(flags: Flags) -> None:
    """Train and test every run that has no results yet, and compare the results of all.

    A run that another process has begun is left to that.
    """
    configs, prune = planned_runs(flags)
    todo, left, failed = [], configs, 0
    while len(left) != len(todo):  # until others are at all that is left
        todo, left = left, []
        for config in todo:
            try:
                carry_out(config, prune)
            except LockedError:
                left.append(config)
            except RunError as error:
                warn(f"{config.run_name}: {error}")
                failed += 1
    if failed:
        raise RunError(f"runs that failed: {failed} of {len(configs)}; the warnings above say why")
    if left:
        print(f"\nRuns that others are doing: {len(left)}; who ends last compares all of them")
        return
    tables = tuple(prune.files(config.files).prune_test(".csv") for config in configs)
    compare(Comparison(tables), configs[0])


def planned_runs(flags: Flags) -> tuple[list[Config], PruneConfig]:
    """All runs of the comparison; raises UserError for settings that one of them would refuse."""
    common, prune = flags.explicit_settings(Config), flags.settings(PruneConfig)
    if varied := sorted({"arch", "seed"}.union(*METHODS.values()) & common.keys()):
        raise UserError(f"--{varied[0]}: varies in this comparison; leave this flag out")
    runs = product(*(flags.explicit[name] for name in ("archs", "methods", "seeds")))
    common = with_own_data(common)
    configs = [Config(**common, **METHODS[m], arch=arch, seed=seed) for arch, m, seed in runs]
    if prune.granularity == "channels":
        raise UserError("--granularity channels: is not compared; leave it out")
    prune = prune.beside(configs[0].precision)
    # The test would refuse these only after hours of training.
    for config in {config.arch: config for config in configs}.values():
        if prune.granularity == "N:M":
            tell_left_dense(PatternRanking(new_model(config)), prune.all_ratios[1:])
        if prune.correction:
            build_correction(prune, new_model(config), config.load_dataset(), config)
    return configs, prune


def carry_out(config: Config, prune: PruneConfig) -> None:
    """Train and test a network unless its results exist; LockedError if another process does."""
    with run_lock(config.files.job_lock):
        print(f"\n== {config.run_name} ==", flush=True)
        train(config)  # does nothing if the model is trained already
        trained = load_trained(config)
        results = Report(trained, prune).paths
        if config.resume == "never" or not all(path.is_file() for path in results):
            test(trained, prune)


def main(argv: list[str] | None = None) -> int:
    parser = Parser(__doc__, Config, PruneConfig)
    group = parser.add_argument_group("comparison")
    lists = {"archs": (ARCHITECTURES, ["ResNet18", "VGG16"]), "methods": (METHODS, list(METHODS))}
    for name, (choices, default) in lists.items():
        text = f"of {', '.join(choices)} (default: {', '.join(default)})"
        several = {"nargs": "+", "choices": choices, "metavar": "NAME"}
        group.add_argument(f"--{name}", default=default, help=text, **several)
    text = "seeds of the runs of each method (default: 0)"
    group.add_argument("--seeds", nargs="+", type=int, default=[0], metavar="N", help=text)
    return exit_status(lambda: reproduce(parser.parse(argv)))


if __name__ == "__main__":
    sys.exit(main())
