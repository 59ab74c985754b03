#!/usr/bin/env python3
"""Run the paper's main comparison, and draw accuracy against sparsity for all of its methods.

Trains ResNet18 and VGG16 on CIFAR-10 with SGD, with SFW and with SFW after SFW-Init, and prunes
each at 19 ratios. It takes the flags of train_prune.py, but for those that tell the methods apart.
What is already there is not run again, so that the same command goes on where it was stopped.
Writes one picture and one table to saved_logs/comparison/.
"""

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from models import ARCHITECTURES
from test_prune import test
from train_prune import train
from utils.cli import Parser
from utils.comparison import comparison_files, read_table, write_comparison
from utils.config import Config, file_name
from utils.errors import UserError, exit_status
from utils.files import RunFiles, check_writable
from utils.plots import Curves

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
    archs, methods = given.pop("archs"), given.pop("methods")
    seeds = given.pop("seeds")
    set_here = {"arch", "seed"} | {name for method in METHODS.values() for name in method}
    if refused := sorted(set_here & given.keys()):
        raise UserError(
            f"--{refused[0]}: is set by the comparison; see --archs, --methods, --seeds"
        )
    configs = {
        (arch, method, seed): Config(**given, **METHODS[method], arch=arch, seed=seed)
        for arch in archs for method in methods for seed in seeds
    }  # fmt: skip
    first = next(iter(configs.values()))
    chosen = {name: given[name] for name in first.changing_weights() if name in given}
    lists = {"archs": archs, "methods": methods, "seeds": seeds}
    joined = {name: "+".join(map(str, values)).replace(" ", "-") for name, values in lists.items()}
    name = file_name({"data": first.data} | chosen | joined)
    files = RunFiles(first.output_dir, name)
    check_writable(comparison_files(files), "--output_dir")
    curves: Curves = {}
    for (arch, method, seed), config in configs.items():
        print(f"\n== {arch}, {method}, seed {seed} ==", flush=True)
        train(config)  # no finished model is trained again
        tested = config.files.prune_test(".csv")
        if not tested.is_file():
            test(given | METHODS[method] | dict(arch=arch, seed=seed))
        curves.setdefault(f"{arch}, {method}", []).append(read_table(tested)["accuracy"])
    write_comparison(files, curves)


def main(argv: list[str] | None = None) -> int:
    parser = Parser(__doc__)
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
