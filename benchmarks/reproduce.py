#!/usr/bin/env python3
"""Run the paper's main comparison, and draw accuracy against sparsity for all of its methods.

Trains ResNet18 and VGG16 on CIFAR-10 with SGD, with SFW and with SFW after SFW-Init, and prunes
each at 19 ratios. It takes the flags of train_prune.py, but for those that tell the methods apart.
What is already there is not run again, so that the same command goes on where it was stopped.
Writes one picture and one table to saved_logs/comparison/.
"""

import csv
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from models import ARCHITECTURES
from test_prune import test
from train_prune import train
from utils.cli import Parser
from utils.config import Config, file_name
from utils.errors import UserError, exit_status
from utils.files import RunFiles, atomic_write, check_writable
from utils.plots import Curves, plot_comparison

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
SHOWN = (0.0, 0.5, 0.8, 0.9, 0.95, 0.97, 0.98, 0.99)


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
    picture, table = files.comparison(".png"), files.comparison(".md")
    check_writable([picture, table], "--output_dir")
    curves: Curves = {}
    for (arch, method, seed), config in configs.items():
        print(f"\n== {arch}, {method}, seed {seed} ==", flush=True)
        train(config)  # no finished model is trained again
        if not (accuracies := read_accuracies(config)):
            test(given | METHODS[method] | dict(arch=arch, seed=seed))
            accuracies = read_accuracies(config)
        curves.setdefault(f"{arch}, {method}", []).append(accuracies)
    plot_comparison(picture, curves, name)
    text = comparison_table(curves)
    with atomic_write(table) as file:
        file.write(text)
    print(f"\n{text}\nFiles of this comparison:", picture, table, sep="\n  ")


def read_accuracies(config: Config) -> dict[float, float]:
    """Accuracy by pruning ratio, as test_prune.py wrote it; empty where that is missing."""
    path = config.files.prune_test(".csv")
    rows = csv.DictReader(path.read_text().splitlines() if path.is_file() else [])
    return {float(row["sparsity"]): float(row["accuracy"]) for row in rows}


def comparison_table(curves: Curves) -> str:
    """A row for each curve: the mean over its seeds, and their range where there are several."""
    lines = ["| weights removed | " + " | ".join(f"{ratio:.0%}" for ratio in SHOWN) + " |"]
    lines.append("| --- |" + " --- |" * len(SHOWN))
    for label, runs in curves.items():
        cells = []
        for ratio in SHOWN:
            found = [run[ratio] for run in runs]
            spread = f" ({min(found):.2f} to {max(found):.2f})" if len(found) > 1 else ""
            cells.append(f"{sum(found) / len(found):.2f}{spread}")
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


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
