#!/usr/bin/env python3
"""Prune a trained model at 19 ratios, or at yours, and test it at each without retraining.

Takes the flags that the model was trained with, or --model_path. Writes a text log, a table and a
picture of accuracy against sparsity to saved_logs/SFW_prune_test/, and of where the zeros are to
saved_logs/layer_sparsity/. With --granularity channels it cuts channels out, and writes accuracy
against multiply-adds and time; with N:M it prunes to patterns. With --compare it shows tables of
several runs together.
"""

import copy
import dataclasses
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from utils.checkpoints.formats import write_pruned
from utils.checkpoints.model_file import new_model, pruned_metadata
from utils.checkpoints.onnx_file import InputImages
from utils.checkpoints.trained_model import TrainedModel, load_chosen
from utils.checkpoints.widths import widths_of
from utils.compute.device import pick_device, placed
from utils.compute.measure import Accuracy, channels_by_layer, evaluate, zeros_by_parameter
from utils.datasets import Dataset
from utils.process.errors import (
    RunError,
    ScriptError,
    UserError,
    exit_status,
    is_out_of_memory,
    notify,
    reason,
    say,
    warn,
)
from utils.process.writing import check_writable
from utils.prune.channels.measure import measured, training_images
from utils.prune.channels.slicing import ChannelRanking
from utils.prune.config import CORRECTIONS, PruneConfig
from utils.prune.corrections.correction import Correction, build_correction
from utils.prune.corrections.recalibrate import note_stale_statistics
from utils.prune.weights.patterns import DENSE, PatternRanking
from utils.prune.weights.ranking import MagnitudeRanking
from utils.prune.weights.saved import check_pattern
from utils.reports.comparison import Comparison, compare
from utils.reports.report import Report, Result
from utils.settings.cli import Parser
from utils.settings.config import Config
from utils.settings.fields import identifying_settings
from utils.settings.names import results_line

# At what a network is pruned: a ratio, or a pattern N:M.
Ratio = float | str
# Gives a pruned network's accuracies by column, and the sizes of its files, saved at some ratios.
Tester = Callable[[nn.Module, Ratio], tuple[dict[str, Accuracy], dict[str, int]]]


def test(trained: TrainedModel, prune: PruneConfig) -> None:
    """Test the model at every pruning ratio, and write the results."""
    config, device = trained.config, pick_device(trained.config.gpu)
    prune = prune.beside(config.precision)
    if prune.test_precision:
        config = dataclasses.replace(config, precision=prune.test_precision, from_file=True)
    report = Report(trained, prune)
    check_writable(report.paths)
    dataset = config.load_dataset().to(device)
    if config.own_data is None and trained.test_sha256 not in (None, dataset.sha256["test"]):
        warn(f"--data_dir {config.data_dir}: has other test images than when the model was trained")
    model = placed(trained.model, device, config.image_shape)
    correction = build_correction(prune, model, dataset, config)
    tested = tester(trained, config, prune, dataset, correction)
    sweep = slice_channels if prune.granularity == "channels" else prune_weights
    tests = sweep(model, prune, dataset, config, tested)

    report.begin()
    for result in tests:
        report.add(result)
        if result.ratio in (0, DENSE) and prune.correction is None:
            accuracy = result.accuracies["accuracy"].percent
            note_stale_statistics(config, model, dataset, trained.train_accuracy, accuracy)
    report.save()
    say("\n" + results_line(picture=report.picture))
    if prune.save_pruned:
        say(f"Pruned models: {trained.files.model.parent}/")
    wanted = len(prune.save_pruned) * len(prune.pruned_format)
    if sum(len(r.sizes) for r in report.results) < wanted:
        raise RunError("--save_pruned: some files could not be written; the warnings say why")


def prune_weights(
    model: nn.Module, prune: PruneConfig, dataset: Dataset, config: Config, tested: Tester
) -> Iterator[Result]:
    """Prune `model` in place at each ratio or pattern, and test it."""
    if of_patterns := prune.granularity == "N:M":
        ranking = PatternRanking(model)
        tell_left_dense(ranking, prune.all_ratios[1:])
    else:
        ranking = MagnitudeRanking(model, prune.allocation, prune.prune_scope)
    count = sum(p.numel() for p in ranking.parameters)
    dense = copy.deepcopy(model.state_dict()) if prune.correction else None

    def pruned_at(ratio: Ratio) -> Result:
        if dense:  # a correction changes more than pruning restores
            model.load_state_dict(dense)
        removed = ranking.prune(ratio)
        measures = {"removed": round(removed / count, 6)} if of_patterns else {}
        measures |= {"remaining": count - removed, "parameters": count}
        results = tested(model, ratio)
        return Result(ratio, measures, zeros_by_parameter(model), *results)

    return map(pruned_at, prune.all_ratios)


def tell_left_dense(ranking: PatternRanking, patterns: list[str]) -> None:
    """Name the weights that patterns leave as they are, once for patterns that leave the same.

    Raises UserError for a pattern that leaves all so.
    """
    told: dict[str, list[str]] = {}
    for pattern in patterns:
        names = ranking.left_dense(pattern)
        if len(names) == len(ranking.parameters):
            m = pattern.partition(":")[2]
            raise UserError(
                f"--patterns {pattern}: no linear layer or convolution that computes with its own"
                f" weights has a number of inputs that is a multiple of {m}; choose another"
                " pattern, or prune to ratios"
            )
        if names:
            told.setdefault(", ".join(names), []).append(pattern)
    for names, its_patterns in told.items():
        notify(f"{', '.join(its_patterns)}: these weights do not fit and stay dense: {names}")


def slice_channels(
    model: nn.Module, prune: PruneConfig, dataset: Dataset, config: Config, tested: Tester
) -> Iterator[Result]:
    """Test a copy of `model` at each ratio, with as many channels cut out as that takes."""
    images = training_images(dataset)
    ranking = ChannelRanking(
        model, images[:2], prune.allocation, prune.channel_score, prune.round_to
    )

    def sliced_at(ratio: float) -> Result:
        try:
            sliced, removed = ranking.slice(ratio)
            measures = {"removed": round(removed, 6)}
            measures |= measured(model, sliced, images, config.precision)
            return Result(ratio, measures, channels_by_layer(sliced), *tested(sliced, ratio))
        except Exception as error:  # of the network's own code: what it does depends on its inputs
            if isinstance(error, ScriptError) or is_out_of_memory(error):
                raise
            raise RunError(
                f"--granularity channels: the network sliced at ratio {ratio:g} does not run"
                f" ({reason(error)}); prune this network's weights instead"
            ) from None

    return map(sliced_at, prune.all_ratios)


def tester(
    trained: TrainedModel,
    config: Config,
    prune: PruneConfig,
    dataset: Dataset,
    correction: Correction | None,
) -> Tester:
    """What tests a pruned network, as it is and corrected, and then saves it at --save_pruned."""
    batches = dataset.test_batches(config.test_batchsize)
    built = new_model(config) if prune.save_pruned else None

    def tested(pruned: nn.Module, ratio: Ratio) -> tuple[dict[str, Accuracy], dict[str, int]]:
        accuracies = {}
        if not prune.corrected_only:
            accuracies["accuracy"] = evaluate(pruned, batches, config.precision)
        if correction is not None:
            correction(pruned)
            accuracies[CORRECTIONS[prune.correction]] = evaluate(pruned, batches, config.precision)
        if ratio not in prune.save_pruned:
            return accuracies, {}
        *_, accuracy = accuracies.values()
        pruning = {"sparsity": ratio, "accuracy": accuracy.percent}
        if "accuracy" in accuracies:
            pruning["accuracy_uncorrected"] = accuracies["accuracy"].percent
        if accuracy.not_finite:
            pruning["not_finite"] = accuracy.not_finite
        if trained.pruned_before is not None:
            pruning["pruned_before"] = trained.pruned_before
        metadata = pruned_metadata(trained.settings, pruning | identifying_settings(prune))
        metadata["metrics"] = {"sha256": {"test": trained.test_sha256}}
        if widths := widths_of(pruned, built):
            metadata["widths"] = widths
        return accuracies, save(prune.pruned_files(trained.files, ratio), pruned, dataset, metadata)

    return tested


def save(
    paths: dict[str, Path], model: nn.Module, dataset: Dataset, metadata: dict[str, Any]
) -> dict[str, int]:
    """Save a pruned model; `paths` has a file for each format. Returns their sizes in bytes.

    A format that cannot be written gets a warning, and has no size.
    """
    images = InputImages(dataset.color_channel, dataset.image_size, dataset.mean, dataset.std)
    sizes, ratio = {}, metadata["pruning"]["sparsity"]
    checks = [partial(check_pattern, model=model, pattern=ratio)] if isinstance(ratio, str) else []
    for name, file in paths.items():
        try:
            write_pruned(file, name, model, images, metadata, *checks)
            sizes[name] = file.stat().st_size
        except ValueError as error:
            warn(f"--pruned_format {name}: {error}; choose another format")
        except RunError as error:
            warn(f"{error}; give the same command again once that is solved")
    return sizes


def main(argv: list[str] | None = None) -> int:
    parser = Parser(__doc__, Config, PruneConfig, Comparison)
    parser.add_model_path()

    def run() -> None:
        flags = parser.parse(argv)
        own = flags.explicit_settings(Comparison)
        others = flags.explicit.keys() - own - {"output_dir", "figure_format"}
        if "compare" not in own:
            if own:
                raise UserError(f"--{min(own)}: is of a comparison; add --compare, or leave it out")
            prune = flags.settings(PruneConfig)
            test(load_chosen(flags), prune)
        elif others:
            raise UserError(
                f"--{min(others)}: --compare takes the settings from the files beside its tables;"
                " leave this flag out"
            )
        else:
            compare(flags.settings(Comparison), flags.settings(Config))

    return exit_status(run)


if __name__ == "__main__":
    sys.exit(main())
