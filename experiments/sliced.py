#!/usr/bin/env python3
"""The proxy's networks with channels cut out: SFW against SGD, and against training a smaller one.

Networks are those of proxy.py, and trained where they are missing. Each is sliced to lose 30, 50
and 75 % of its multiply-adds, and recalibrated. Every method's strength, score of channels and
allocation are chosen with seed 0 on held-out images; three seeds are then tested on all test
images. Last, the widths that the best SFW method has at 50 % are trained from scratch by SGD, with
the weight decay that is best for dense networks. What is already done is not run again. Writes a
table, and one JSON file a run, to saved_logs/sliced/.
"""

import argparse
import copy
import itertools
import json
import multiprocessing
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1]))

from experiments import proxy
from experiments.methods import METHODS
from experiments.proxy import Run
from utils.compute.measure import evaluate, multiply_adds
from utils.datasets import Dataset
from utils.process.errors import exit_status
from utils.process.writing import atomic_write
from utils.prune.channel_scores import SCORES
from utils.prune.config import CHANNEL_ALLOCATIONS
from utils.prune.recalibrate import calibration_batches, recalibrate
from utils.prune.slicing import ChannelRanking

RATIOS, SCRATCH_RATIO = (0.0, 0.3, 0.5, 0.75), 0.5
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

    def run(self, seed: int, folder: Path) -> Run:
        return Run(self.method, self.strength, seed, folder)


def result_of(run: Run, images: str) -> Path:
    return run.folder / "saved_logs" / "sliced" / f"{run.name}_{images}.json"


def read(run: Run, images: str) -> dict:
    return json.loads(result_of(run, images).read_text())


def write(run: Run, images: str, contents: dict) -> None:
    with atomic_write(result_of(run, images)) as file:
        json.dump(contents, file, indent=1)
    print(f"{run.name}: sliced and measured on {images} images", flush=True)


def example_images() -> torch.Tensor:
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def sizes(model: nn.Module) -> dict[str, int]:
    parameters = sum(p.numel() for p in model.parameters())
    return {"parameters": parameters, "multiply_adds": multiply_adds(model, example_images()[:1])}


def tested(model: nn.Module, data: Dataset) -> dict[str, float]:
    """Accuracies in percent as it is and recalibrated, and sizes; the model changes in place."""
    batches = data.test_batches(proxy.BATCH_SIZE)
    found = {"sliced": evaluate(model, batches, proxy.PRECISION)}
    calibration = calibration_batches(data, proxy.CALIBRATION_IMAGES, "the experiment")
    recalibrate(model, calibration, proxy.PRECISION)
    return found | {"recalibrated": evaluate(model, batches, proxy.PRECISION)} | sizes(model)


def measure(run: Run, images: str, data_dir: Path, ways: Sequence[tuple[str, str]] = WAYS) -> None:
    """Train where need be, slice in these ways, and write the accuracies on these images."""
    if result_of(run, images).is_file():
        return
    held_out, whole = proxy.load_data(data_dir)
    data = held_out if images == "held_out" else whole
    model, found = proxy.train(run, whole), {}
    for score, allocation in ways:
        ranking = ChannelRanking(model, example_images(), allocation, score)
        rows = {str(ratio): tested(ranking.slice(ratio)[0], data) for ratio in RATIOS}
        found[f"{score} {allocation}"] = rows
    write(run, images, found)


def measure_scratch(smaller: Choice, run: Run, options: argparse.Namespace) -> None:
    """Train the network that `smaller` has at SCRATCH_RATIO anew, as `run` says."""
    seed = run.seed
    if result_of(run, "test").is_file():
        return
    _, data = proxy.load_data(options.data_dir)
    model = proxy.train(smaller.run(seed, options.output_dir), data)
    ranking = ChannelRanking(model, example_images(), smaller.allocation, smaller.score)
    network = copy.deepcopy(ranking.slice(SCRATCH_RATIO)[0])
    torch.manual_seed(seed)
    for layer in network.modules():
        if hasattr(layer, "reset_parameters"):
            layer.reset_parameters()
    network = proxy.train(run, data, network)
    write(run, "test", tested(network, data))


def choose(methods: Sequence[str], folder: Path, ratios: Sequence[float] | None = None) -> Choice:
    """What does best on held-out images: the mean recalibrated accuracy over the ratios."""
    means = {}
    for method, way in itertools.product(methods, WAYS):
        for strength in METHODS[method].strengths:
            choice = Choice(method, strength, *way)
            rows = read(choice.run(proxy.SEEDS[0], folder), "held_out")[choice.way]
            means[choice] = fmean(rows[str(ratio)]["recalibrated"] for ratio in ratios or RATIOS)
    return max(means, key=means.get)


def table(choices: Sequence[Choice], scratch: Sequence[dict], folder: Path) -> str:
    """Recalibrated accuracies, mean and range over the seeds, with mean multiply-adds."""
    titles = ["dense", *(f"{ratio:.0%} fewer multiply-adds" for ratio in RATIOS[1:])]
    lines = [f"| method | {' | '.join(titles)} |", "| --- |" + " --- |" * len(titles)]
    for choice in choices:
        runs = [read(choice.run(seed, folder), "test")[choice.way] for seed in proxy.SEEDS]
        cells = [cell([run[str(ratio)] for run in runs]) for ratio in RATIOS]
        label = f"{choice.method}, {choice.strength:g}, {choice.way}"
        lines.append(f"| {label} | {' | '.join(cells)} |")
    if scratch:
        cells = [cell(scratch) if ratio == SCRATCH_RATIO else "" for ratio in RATIOS]
        lines.append(f"| the smaller network from scratch | {' | '.join(cells)} |")
    return "\n".join(lines)


def cell(rows: Sequence[dict]) -> str:
    accuracies = [row["recalibrated"] for row in rows]
    spread = f"{min(accuracies):.1f} to {max(accuracies):.1f}"
    millions = fmean(row["multiply_adds"] for row in rows) / 1e6
    thousands = fmean(row["parameters"] for row in rows) / 1e3
    return f"{fmean(accuracies):.1f} ({spread}; {millions:.1f} M, {thousands:.0f} k)"


def compare(options: argparse.Namespace) -> None:
    """Choose, test with three seeds, train the smaller network, and write the table."""
    folder, methods, data = options.output_dir, options.methods, options.data_dir
    first = proxy.SEEDS[0]
    with ProcessPoolExecutor(
        options.jobs,
        multiprocessing.get_context("spawn"),
        proxy.prepare_worker,
        (options.threads,),
    ) as pool:

        def finish(task, arguments: list[tuple]) -> None:
            for done in [pool.submit(task, *one) for one in arguments]:
                done.result()

        pairs = [(m, strength) for m in methods for strength in METHODS[m].strengths]
        finish(measure, [(Run(*pair, first, folder), "held_out", data) for pair in pairs])
        choices = {method: choose([method], folder) for method in methods}
        runs = [(c, c.run(seed, folder)) for c in choices.values() for seed in proxy.SEEDS]
        finish(measure, [(r, "test", data, [(c.score, c.allocation)]) for c, r in runs])
        scratch, ours = [], [method for method in methods if method != "SGD"]
        if ours and "SGD" in methods:
            smaller, trained = choose(ours, folder), choose(["SGD"], folder, [0.0])
            again = [trained.run(seed, folder / "from_scratch") for seed in proxy.SEEDS]
            finish(measure_scratch, [(smaller, run, options) for run in again])
            scratch = [read(run, "test") for run in again]
    text = table(list(choices.values()), scratch, folder)
    path = folder / "saved_logs" / "sliced" / "sliced.md"
    with atomic_write(path) as file:
        file.write(text + "\n")
    print(f"\n{text}\n\nWritten to {path}")


def main(argv: list[str] | None = None) -> int:
    parser = proxy.parser_of(__doc__, COMPARED)
    return exit_status(lambda: compare(parser.parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())
