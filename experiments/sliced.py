#!/usr/bin/env python3
"""The proxy's networks with channels cut out: SFW against SGD, and against training a smaller one.

Networks are those of proxy.py, and trained where they are missing. Each is sliced to lose 30, 50
and 75 % of its multiply-adds, and recalibrated. Every method's strength, score of channels and
allocation are chosen with seed 0 on held-out images; three seeds are then tested on all test
images. Last, the network that SFW's best choice has at 50 % is trained from scratch by SGD, whose
weight decay is tuned on the held-out images, too. What is already done is not run again. Writes
tables, and one JSON file a run, to saved_logs/sliced/.
"""

import argparse
import itertools
import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1]))

from experiments import proxy
from experiments.methods import METHODS
from experiments.proxy import Run
from experiments.proxy_report import tuning_table
from experiments.workers import RunAll, workers
from utils.compute.measure import evaluate
from utils.datasets import Dataset
from utils.process.errors import exit_status
from utils.process.requirements import require
from utils.process.writing import atomic_write
from utils.prune.channel_scores import SCORES
from utils.prune.config import CHANNEL_ALLOCATIONS
from utils.prune.recalibrate import calibration_batches, recalibrate
from utils.prune.sliced import sizes_of
from utils.prune.slicing import ChannelRanking

RATIOS, SCRATCH_RATIO = (0.0, 0.3, 0.5, 0.75), 0.5
FROM_SCRATCH = "from scratch"
COMPARED = ("SGD", "SFW K-sparse", "SFW K-sparse 0.2", "SFW K-support", "SFW L2")
# How channels are chosen: a score and an allocation.
WAYS = list(itertools.product(SCORES, CHANNEL_ALLOCATIONS))


@dataclass(frozen=True)
class Choice:
    """What a method is tested with."""

    method: str
    strength: float
    score: str
    allocation: str

    @property
    def way(self) -> str:
        return f"{self.score} {self.allocation}"

    def __str__(self) -> str:
        return f"{self.method}, {self.strength:g}, {self.way}"

    def run(self, seed: int, folder: Path) -> Run:
        return Run(self.method, self.strength, seed, folder)


def result_of(run: Run, images: str, way: str) -> Path:
    """Where accuracies and sizes on these images, "held_out" or "test", are kept."""
    name = f"{run.name}_{images}_{way.replace(' ', '_')}.json"
    return run.folder / "saved_logs" / "sliced" / name


def read(run: Run, images: str, way: str) -> dict:
    return json.loads(result_of(run, images, way).read_text())


def write(run: Run, images: str, way: str, contents: dict) -> None:
    with atomic_write(result_of(run, images, way)) as file:
        json.dump(contents, file, indent=1)
    print(f"{run.name}: {way}, measured on {images} images", flush=True)


def example_images() -> torch.Tensor:
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def data_for(images: str, data_dir: Path) -> Dataset:
    """The training images, with "held_out" or "test" images for testing."""
    held_out, tested = proxy.load_data(data_dir)
    return held_out if images == "held_out" else tested


def tested(model: nn.Module, data: Dataset) -> dict[str, float]:
    """Accuracies in percent as it is and recalibrated, and sizes; the model changes in place."""
    batches = data.test_batches(proxy.BATCH_SIZE)
    sliced = evaluate(model, batches, proxy.PRECISION).percent
    calibration = calibration_batches(data, proxy.CALIBRATION_IMAGES, "the experiment")
    recalibrate(model, calibration, proxy.PRECISION)
    recalibrated = evaluate(model, batches, proxy.PRECISION).percent
    _, parameters, _, work = sizes_of(model, example_images())
    accuracies = {"sliced": sliced, "recalibrated": recalibrated}
    return accuracies | {"parameters": parameters, "multiply_adds": work}


def measure(run: Run, images: str, data_dir: Path, ways: Sequence[tuple[str, str]] = WAYS) -> None:
    """Train where need be, slice in these ways, and write the accuracies on these images."""
    missing = [way for way in ways if not result_of(run, images, " ".join(way)).is_file()]
    if not missing:
        return
    data = data_for(images, data_dir)
    model = proxy.train(run, data)
    for score, allocation in missing:
        ranking = ChannelRanking(model, example_images(), allocation, score)
        rows = {str(ratio): tested(ranking.slice(ratio)[0], data) for ratio in RATIOS}
        write(run, images, f"{score} {allocation}", rows)


def scratch_run(smaller: Choice, weight_decay: float, seed: int, folder: Path) -> Run:
    """A run of the network that `smaller` has at SCRATCH_RATIO, from scratch by SGD."""
    name = f"{smaller.run(seed, folder).name}_{smaller.way.replace(' ', '_')}"
    return Run("SGD", weight_decay, seed, folder / "from_scratch" / name)


def measure_scratch(
    smaller: Choice, weight_decay: float, seed: int, images: str, folder: Path, data_dir: Path
) -> None:
    """Train as `scratch_run` says where need be, and write the accuracies on these images."""
    run = scratch_run(smaller, weight_decay, seed, folder)
    if result_of(run, images, FROM_SCRATCH).is_file():
        return
    data = data_for(images, data_dir)
    model = proxy.train(smaller.run(seed, folder), data)
    ranking = ChannelRanking(model, example_images(), smaller.allocation, smaller.score)
    network, _ = ranking.slice(SCRATCH_RATIO)
    torch.manual_seed(seed)
    for layer in network.modules():
        if hasattr(layer, "reset_parameters"):
            layer.reset_parameters()
    write(run, images, FROM_SCRATCH, tested(proxy.train(run, data, network), data))


def judgements(
    method: str, folder: Path, ratios: Sequence[float] | None = None
) -> dict[Choice, float]:
    """By choice, the mean recalibrated accuracy on held-out images over these ratios, or all."""
    means = {}
    for strength, way in itertools.product(METHODS[method].strengths, WAYS):
        choice = Choice(method, strength, *way)
        rows = read(choice.run(proxy.SEEDS[0], folder), "held_out", choice.way)
        means[choice] = fmean(rows[str(ratio)]["recalibrated"] for ratio in ratios or RATIOS)
    return means


def choose(methods: Sequence[str], folder: Path, ratios: Sequence[float] | None = None) -> Choice:
    """The choice of all these methods that is judged best."""
    means = {c: mean for m in methods for c, mean in judgements(m, folder, ratios).items()}
    return max(means, key=means.get)


def by_strength(method: str, folder: Path) -> dict[float, float]:
    """How each strength is judged, sliced in the way that is best for it."""
    best: dict[float, float] = {}
    for choice, mean in judgements(method, folder).items():
        best[choice.strength] = max(mean, best.get(choice.strength, 0.0))
    return best


def table(choices: Sequence[Choice], folder: Path, scratch: Sequence | None) -> str:
    """Recalibrated accuracies, mean and range over the seeds, with mean multiply-adds.

    `scratch` is the label of a last row, and the results of its seeds.
    """
    titles = ["dense", *(f"{ratio:.0%} fewer multiply-adds" for ratio in RATIOS[1:])]
    lines = [f"| method | {' | '.join(titles)} |", "| --- |" + " --- |" * len(titles)]
    for choice in choices:
        runs = [read(choice.run(seed, folder), "test", choice.way) for seed in proxy.SEEDS]
        cells = [cell([run[str(ratio)] for run in runs]) for ratio in RATIOS]
        lines.append(f"| {choice} | {' | '.join(cells)} |")
    if scratch:
        label, rows = scratch
        cells = [cell(rows) if ratio == SCRATCH_RATIO else "" for ratio in RATIOS]
        lines.append(f"| {label} | {' | '.join(cells)} |")
    return "\n".join(lines)


def cell(rows: Sequence[dict]) -> str:
    accuracies = [row["recalibrated"] for row in rows]
    spread = f"{min(accuracies):.1f} to {max(accuracies):.1f}"
    millions = fmean(row["multiply_adds"] for row in rows) / 1e6
    thousands = fmean(row["parameters"] for row in rows) / 1e3
    return f"{fmean(accuracies):.1f} ({spread}; {millions:.1f} M, {thousands:.0f} k)"


def train_smaller(
    smaller: Choice, folder: Path, data_dir: Path, run_all: RunAll
) -> tuple[dict[float, float], str, list[dict]]:
    """Tune, train with three seeds and test the network that `smaller` has, from scratch.

    Returns how each weight decay was judged, the best one in words, and its results.
    """

    def measure_all(images: str, decays: Iterable[float], seeds: Iterable[int]) -> list[dict]:
        runs = list(itertools.product(decays, seeds))
        run_all(measure_scratch, [(smaller, *run, images, folder, data_dir) for run in runs])
        return [read(scratch_run(smaller, *run, folder), images, FROM_SCRATCH) for run in runs]

    decays = METHODS["SGD"].strengths
    judged = [row["recalibrated"] for row in measure_all("held_out", decays, proxy.SEEDS[:1])]
    best = decays[judged.index(max(judged))]
    label = f"the network of {smaller}, {FROM_SCRATCH} by SGD"
    tested = measure_all("test", [best], proxy.SEEDS)
    return dict(zip(decays, judged, strict=True)), f"{label}, {best:g}", tested


def compare(options: argparse.Namespace) -> None:
    """Choose, test with three seeds, train the smaller network, and write the tables."""
    require("experiments/sliced.py", "torch_pruning")
    folder, methods, data_dir = options.output_dir, options.methods, options.data_dir
    with workers(options.jobs, options.threads) as run_all:
        pairs = [(m, strength) for m in methods for strength in METHODS[m].strengths]
        first = proxy.SEEDS[0]
        run_all(measure, [(Run(*pair, first, folder), "held_out", data_dir) for pair in pairs])
        judged = {method: by_strength(method, folder) for method in methods}
        choices = [choose([method], folder) for method in methods]
        runs = [(choice, choice.run(seed, folder)) for choice in choices for seed in proxy.SEEDS]
        run_all(measure, [(r, "test", data_dir, [(c.score, c.allocation)]) for c, r in runs])
        scratch = None
        if ours := [method for method in methods if method != "SGD"]:
            smaller = choose(ours, folder, [SCRATCH_RATIO])
            judged[FROM_SCRATCH], *scratch = train_smaller(smaller, folder, data_dir, run_all)
    text = f"{tuning_table(judged)}\n\n{table(choices, folder, scratch)}"
    path = folder / "saved_logs" / "sliced" / "sliced.md"
    with atomic_write(path) as file:
        file.write(text + "\n")
    print(f"\n{text}\n\nWritten to {path}")


def main(argv: list[str] | None = None) -> int:
    parser = proxy.parser_of(__doc__, COMPARED)
    return exit_status(lambda: compare(parser.parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())
