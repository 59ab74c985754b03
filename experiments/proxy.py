#!/usr/bin/env python3
"""A comparison that two CPU cores finish in a night: SFW, SGD and CrAM+ on a narrow ResNet18.

CIFAR-10, the first 15,000 training images, a ResNet18 with 16 channels in its first stage, 12
epochs, cosine schedule. Every method's one regularisation strength is tuned with seed 0 on 5,000
training images that are held out, by the accuracies that --tuned_for names. Then the best strength
is trained with three seeds and tested on all test images. Runs that have results are not repeated;
started several times, the command shares the runs. Writes tables, pictures, and one JSON file for
each run, to saved_logs/proxy/.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1]))

from experiments.methods import METHODS, build
from experiments.results import (
    COLUMNS,
    RECALIBRATED,
    best_of,
    by_name,
    judgements,
    read_results,
    tuned,
)
from experiments.tables import RATIOS, accuracy_table, draw, tuning_table
from models import ResNet18
from utils.checkpoints.model_file import versions, write_contents
from utils.compute.device import autocast, pick_device, placed
from utils.compute.measure import evaluate
from utils.datasets import Dataset, load_dataset
from utils.process.errors import exit_status
from utils.process.locks import LockedError, run_lock
from utils.process.writing import atomic_write
from utils.prune.corrections.recalibrate import calibration_batches, recalibrate
from utils.prune.weights.patterns import PatternRanking
from utils.prune.weights.ranking import MagnitudeRanking
from utils.settings.config import Config
from utils.settings.fields import path
from utils.settings.names import results_line
from utils.train.trials import learning_rates

WIDTH, EPOCHS, BATCH_SIZE, PRECISION = 16, 12, 128, "bf16"
TRAIN_IMAGES, HELD_OUT_IMAGES, CALIBRATION_IMAGES = 15_000, 5_000, 2_000
# The ratios at which a strength is judged on held-out images, and those that the tables show.
JUDGED, SHOWN = (0.0, 0.8, 0.9, 0.95, 0.98), (0.0, 0.8, 0.9, 0.95, 0.97, 0.98)
PATTERNS = RATIOS["N:M"]
SEEDS = (0, 1, 2)
TITLE = f"Narrow ResNet18, {TRAIN_IMAGES:,} images of CIFAR-10, {EPOCHS} epochs"
POLL_SECONDS = 0.2
SCOPES = {"all": "all parameters", "weights": "weights alone"}
# What is measured on held-out and on test images: scopes, and the ratios of each.
MEASURED = {"held_out": (["all"], JUDGED), "test": (SCOPES, SHOWN), "patterns": (["N:M"], PATTERNS)}


@dataclass(frozen=True)
class Run:
    """One training of a method of METHODS, and where its files lie."""

    method: str
    strength: float
    seed: int
    folder: Path

    @property
    def name(self) -> str:
        return f"{self.method.replace(' ', '-')}_strength={self.strength:g}_seed={self.seed}"

    @property
    def model(self) -> Path:
        return self.folder / "saved_models" / "proxy" / f"{self.name}.pt"

    def result(self, images: str) -> Path:
        """Where the accuracies on "held_out" or "test" images, or of "patterns", are kept."""
        return self.folder / "saved_logs" / "proxy" / f"{self.name}_{images}.json"


def load_data(data_dir: Path, held_out: bool) -> Dataset:
    """The training images, with the held-out ones or all test images for testing."""
    data = load_dataset("cifar10", data_dir)
    images, labels = data.train_images, data.train_labels
    if held_out:
        last = slice(-HELD_OUT_IMAGES, None)
        data = replace(data, test_images=images[last], test_labels=labels[last])
    return replace(data, train_images=images[:TRAIN_IMAGES], train_labels=labels[:TRAIN_IMAGES])


def train(run: Run, data: Dataset) -> nn.Module:
    """The trained network, read from the run's file if there is one."""
    method, device = METHODS[run.method], torch.device("cpu")
    config = method.config(run.strength, EPOCHS)
    torch.manual_seed(run.seed)
    model = placed(ResNet18(10, 3, 32, width=WIDTH), device)
    if run.model.is_file():
        model.load_state_dict(torch.load(run.model, weights_only=True)["state_dict"])
        return model
    # SFW-Init has a generator of its own, as in train_prune.py.
    halves = data.train_batches(BATCH_SIZE // 2, torch.Generator().manual_seed(run.seed + 1))
    with autocast(device, PRECISION):
        optimizer = build(config, model, halves)
    batches = data.train_batches(BATCH_SIZE, torch.Generator().manual_seed(run.seed))
    model.train()
    epochs, losses = config.epoch_num, []
    for epoch in range(epochs):
        rates = learning_rates(config, epoch, len(batches), losses)
        steps = range(epoch * len(batches), (epoch + 1) * len(batches))
        total = 0.0
        for rate, step, (inputs, targets) in zip(rates, steps, batches, strict=True):
            optimizer.param_groups[0]["lr"] = rate
            with autocast(device, PRECISION):
                sparsity = method.sparsity(step, epochs * len(steps))
                loss = method.gradient(model, inputs, targets, sparsity)
            total += loss.item()
            optimizer.step()
        losses.append(total / len(steps))
        print(f"{run.name}: epoch {epoch + 1}/{epochs}, loss {losses[-1]:.4f}", flush=True)
    write_contents(run.model, {"state_dict": model.state_dict()})
    return model


def accuracies(
    model: nn.Module, data: Dataset, ratios: Iterable[float | str], scope: str
) -> dict[str, tuple[float, float]]:
    """By ratio or, with a scope "N:M", by pattern: accuracies that COLUMNS names on test images."""
    calibration = calibration_batches(data, CALIBRATION_IMAGES, "the proxy")
    batches = data.test_batches(BATCH_SIZE)
    dense = {name: values.clone() for name, values in model.state_dict().items()}
    ranking = PatternRanking(model) if scope == "N:M" else MagnitudeRanking(model, scope=scope)
    found = {}
    for ratio in ratios:
        model.load_state_dict(dense)
        ranking.prune(ratio)
        pruned = evaluate(model, batches, PRECISION).percent or 0.0  # where no output is finite
        recalibrate(model, calibration, PRECISION)
        found[str(ratio)] = pruned, evaluate(model, batches, PRECISION).percent or 0.0
    model.load_state_dict(dense)
    return found


def measure_all(runs: Sequence[Run], images: str, data_dir: Path) -> None:
    """Measure the runs that have no results; those that other processes measure are waited for."""
    while left := [run for run in runs if not run.result(images).is_file()]:
        for run in left:
            with suppress(LockedError), run_lock(run.model.with_suffix(".lock")):
                if not run.result(images).is_file():
                    measure(run, images, data_dir)
        time.sleep(POLL_SECONDS)


def measure(run: Run, images: str, data_dir: Path) -> None:
    """Train where need be, and write the accuracies of `Run.result(images)`."""
    data = load_data(data_dir, images == "held_out")
    model = train(run, data)
    scopes, ratios = MEASURED[images]
    contents = {
        "method": run.method,
        "strength": run.strength,
        "seed": run.seed,
        "images": "held_out" if images == "held_out" else "test",
        "precision": PRECISION,
        "threads": torch.get_num_threads(),
        "versions": versions(),
        "accuracies": {scope: accuracies(model, data, ratios, scope) for scope in scopes},
    }
    with atomic_write(run.result(images)) as file:
        json.dump(contents, file, indent=1)
    print(f"{run.name}: measured, {images}", flush=True)


def compare(options: argparse.Namespace) -> None:
    """Tune, train with three seeds, test, and write tables and pictures."""
    pick_device(-1)
    folder, methods, column = options.output_dir, options.methods, options.tuned_for
    runs = [
        Run(m, strength, SEEDS[0], folder) for m in methods for strength in METHODS[m].strengths
    ]
    measure_all(runs, "held_out", options.data_dir)
    patterns = [f"{method.replace(' ', '-')}_strength=*" for method in methods]
    results = folder / "saved_logs" / "proxy"
    judged = judgements(read_results(patterns, results, images="held_out"), column)
    parts = [tuning_table(judged, column)]
    print("\n" + parts[0], flush=True)
    runs = [Run(*pair, seed, folder) for pair in best_of(judged).items() for seed in SEEDS]
    for images in ("test", "patterns"):
        measure_all(runs, images, options.data_dir)
    name, pictures = "proxy" if column == RECALIBRATED else f"proxy_{column.replace(' ', '_')}", {}
    kinds = [(scope, f"removed from {text}", SHOWN) for scope, text in SCOPES.items()]
    for scope, text, ratios in (*kinds, ("N:M", "pruned to patterns", PATTERNS)):
        asked = {"granularity": scope} if scope == "N:M" else {"prune_scope": scope}
        rows = by_name(tuned(read_results(patterns, results, **asked), judged))
        for shown in COLUMNS:
            parts.append(f"{text.capitalize()}, {shown}:")
            parts.append(accuracy_table(rows, [shown], ratios))
        pictures[text] = results / f"{name}_{scope.replace(':', '-')}.png"
        draw(pictures[text], rows, f"{TITLE}, {text}")
    table = results / f"{name}.md"
    with atomic_write(table) as file:
        file.write("\n\n".join(parts) + "\n")
    print("\n" + "\n\n".join(parts))
    print("\n" + results_line(table=table, **pictures))


def add_data_dir(parser: argparse.ArgumentParser) -> None:
    text = "folder of the data set: NAME.npz or torchvision's files (default: %(default)s)"
    default = Config.data_dir
    parser.add_argument("--data_dir", type=path, default=default, metavar="FOLDER", help=text)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    add = parser.add_argument
    add_data_dir(parser)
    text = "folder for saved_logs/ and saved_models/ (default: .)"
    add("--output_dir", type=path, default=Path("."), metavar="FOLDER", help=text)
    names, text = list(METHODS), f"of {', '.join(METHODS)} (default: all)"
    add("--methods", nargs="+", choices=names, default=names, metavar="NAME", help=text)
    text = "the accuracies by which the strengths are chosen (default: %(default)s)"
    add("--tuned_for", choices=COLUMNS, default=RECALIBRATED, help=text)
    return exit_status(lambda: compare(parser.parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())
