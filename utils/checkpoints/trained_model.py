"""Trained models, loaded for a test together with the settings they were trained with."""

import dataclasses
import hashlib
import warnings
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from models import is_factory
from utils.checkpoints.model_file import new_model, read_contents
from utils.checkpoints.widths import set_widths
from utils.compute.device import placed
from utils.process.errors import UserError
from utils.settings.cli import Flags
from utils.settings.config import Config, difference
from utils.settings.fields import identifying_settings
from utils.settings.names import RunFiles, file_name, plain

ADVICE = "give another --model_path, or train it again with --resume never"

# The settings that are known even of a bare state dict, since they do not concern the training
# alone.
ALWAYS_KNOWN = {
    "data",
    "arch",
    "color_channel",
    "image_size",
    "own_data",
    "test_batchsize",
    "gpu",
    "data_dir",
    "output_dir",
}


@dataclass(frozen=True)
class TrainedModel:
    """A trained model, the settings to test it with, and the paths of the results.

    `unknown` names the settings of the training that neither the model's file nor the command line
    states. In `config` these are at their defaults, which must not be reported.
    """

    model: nn.Module
    config: Config
    files: RunFiles
    source: str  # the name of the model's file
    unknown: frozenset[str] = frozenset()
    pruned_before: dict[str, Any] | None = None  # how, if the file holds a pruned model
    train_accuracy: float | None = None  # of the last epoch, in percent, if the file states it

    def known_settings(self) -> dict[str, Any]:
        """The settings that identify the training run, as far as they are known."""
        settings = identifying_settings(self.config)
        return {name: value for name, value in settings.items() if name not in self.unknown}


def load_chosen(flags: Flags) -> TrainedModel:
    """The model at --model_path, or else the one that was trained with the same flags."""
    if "model_path" in flags.explicit:
        return load_model_file(flags.explicit["model_path"], flags.explicit_settings(Config))
    return load_trained(flags.settings(Config))


def load_trained(config: Config) -> TrainedModel:
    """The model that train_prune.py saved for these settings.

    Raises UserError when there is none, or when its file holds something else.
    """
    path = config.files.model
    resumable = config.files.resume, config.files.previous_resume
    unfinished = [file for file in resumable if file.is_file()]
    if unfinished and not path.is_file():
        raise UserError(
            f"{path}: the training was stopped before its end; train_prune.py with the same flags"
            f" goes on, and --model_path {unfinished[0]} tests what it has reached"
        )
    if not path.is_file():
        raise UserError(
            f"{path}: no such model; train it first, with train_prune.py and the same flags,"
            " or give --model_path"
        )
    trained = load_model_file(path, vars(config))
    if trained.files != config.files:
        raise UserError(
            f"{path}: was not written by train_prune.py; to test it, give it as --model_path"
        )
    return trained


def load_model_file(path: Path, explicit: Mapping[str, Any]) -> TrainedModel:
    """The model in this file: a trained one, a pruned one, or a bare state dict.

    `explicit` has the settings of Config that the user gave. Those that identify the run must agree
    with the settings in the file. Raises UserError for a file that cannot be used.
    """
    contents, digest = read_contents(path, ADVICE)
    if contents.get("config") is None:
        return _bare_state_dict(path, contents, digest, explicit)
    if contents.get("pruning") is None:
        return _dense_model(path, contents, digest, explicit)
    return _pruned_model(path, contents, digest, explicit)


def load_pruned(path: str | Path, arch: str | None = None) -> nn.Module:
    """The network that test_prune.py --save_pruned wrote to `path`, on the CPU, in evaluation mode.

    Its `state_dict()` is an ordinary dense one. Its memory format is that of the test on a CPU,
    channels_last for convolutions in most networks, so that its outputs are the same bit for bit. A
    network of your own needs its `arch`, as in "nets:small": a file never chooses what code is run.
    Raises UserError when the file is missing or damaged, and when it is of another `arch`.
    """
    trained = load_model_file(Path(path), {} if arch is None else {"arch": arch})
    return placed(trained.model, torch.device("cpu"), trained.config.image_shape).eval()


def _dense_model(
    path: Path, contents: dict[str, Any], digest: "hashlib._Hash", explicit: Mapping[str, Any]
) -> TrainedModel:
    """A model with its settings, whose results are named after these."""
    config = _config_in_file(path, contents["config"], explicit)
    files = config.files
    if "optimizer" in contents:  # a resume file, of a run that has not ended
        files = _files_named_after(path, digest, config)
    metrics = contents.get("metrics")
    accuracies = metrics.get("train_accuracy") if isinstance(metrics, dict) else None
    last = accuracies[-1] if isinstance(accuracies, list) and accuracies else None
    return TrainedModel(
        build_network(path, contents, config),
        config,
        files,
        path.name,
        train_accuracy=last if isinstance(last, float) else None,
    )


def _pruned_model(
    path: Path, contents: dict[str, Any], digest: "hashlib._Hash", explicit: Mapping[str, Any]
) -> TrainedModel:
    """A pruned model. If it was a bare state dict before, some of its settings are unknown."""
    pruning, stored = contents["pruning"], contents["config"]
    if not isinstance(pruning, dict):
        raise UserError(f"{path}: does not state how it was pruned; save it again")
    complete = contents.get("training_known", True)
    config = _config_in_file(path, stored, explicit, complete)
    files = _files_named_after(path, digest, config)
    unknown = frozenset() if complete else _unknown(stored.keys() | explicit.keys())
    return TrainedModel(
        build_network(path, contents, config), config, files, path.name, unknown, pruning
    )


def _bare_state_dict(
    path: Path, contents: dict[str, Any], digest: "hashlib._Hash", explicit: Mapping[str, Any]
) -> TrainedModel:
    """A model without settings: the flags, which must fit its tensors, say what it is."""
    config = Config(**explicit)
    files = _files_named_after(path, digest, config)
    model = build_network(path, contents, config)
    return TrainedModel(model, config, files, path.name, _unknown(explicit.keys()))


def _unknown(stated: Collection[str]) -> frozenset[str]:
    return frozenset(f.name for f in dataclasses.fields(Config)) - ALWAYS_KNOWN - set(stated)


def _files_named_after(path: Path, digest: "hashlib._Hash", config: Config) -> RunFiles:
    """The paths of results, named after a model file, its bytes and the settings."""
    digest.update(config.run_name.encode())
    stem = path.stem.encode(errors="replace").decode()  # bytes that are no text become "?"
    name = file_name({"sha256": digest.hexdigest()[:16]}, stem)
    return dataclasses.replace(config.files, run=name)


def build_network(path: Path, contents: dict[str, Any], config: Config) -> nn.Module:
    """The network of these settings with the weights of a model file or a bare state dict.

    A sliced network's file states its widths, and it is built with these. Raises UserError where
    the tensors are those of another network.
    """
    model, state = new_model(config), contents.get("state_dict", contents)
    try:
        with warnings.catch_warnings(action="ignore"):
            if any(values.is_complex() or values.is_sparse for values in state.values()):
                raise TypeError("load_state_dict would convert them with a mere warning")
            if widths := contents.get("widths"):  # otherwise load_state_dict compares all shapes
                set_widths(model, widths, state)
            model.load_state_dict(state)
    except (RuntimeError, TypeError, AttributeError, ValueError):
        raise UserError(
            f"{path}: holds other tensors than {config.arch} for {config.data} has; give the"
            " --arch, --data and --color_channel it was trained with"
        ) from None
    return model


def _config_in_file(
    path: Path, stored: Any, explicit: Mapping[str, Any], complete: bool = True
) -> Config:
    """The settings to test a model with: those stored in its file, and the others in `explicit`.

    If the file is `complete`, a setting that identifies the run and is missing was added to this
    program later, and has its default. Otherwise it is unknown.
    """
    fields = {field.name: field for field in dataclasses.fields(Config)}
    if not isinstance(stored, dict) or not {"data", "arch"} <= stored.keys() <= fields.keys():
        raise UserError(f"{path}: its settings are not of this version; train it again")
    names = [n for n, field in fields.items() if field.metadata["identifies_run"]]
    if not complete:
        names = [name for name in names if name in stored]
    try:
        known = {name: stored[name] for name in names if name in stored}
        config = Config(**known, from_file=True)
    except UserError as error:
        raise UserError(f"{path}: holds invalid settings ({error}); train it again") from None
    settings = {name: getattr(config, name) for name in names}
    if is_factory(config.arch) and "arch" not in explicit:
        raise UserError(
            f"{path}: its network is made by {config.arch}, and a file must not choose what code is"
            f" run; give --arch {config.arch} if you trust that code (load_pruned: arch=)"
        )
    for name in names:
        if name in explicit and explicit[name] != settings[name]:
            if name == "own_data":
                raise UserError(
                    f"--data {config.data}: {path} was trained on"
                    f" {difference(name, settings[name], explicit[name])}; give the --data_dir of"
                    " that data, or --model_path to test it on this"
                )
            raise UserError(
                f"--{name} {plain(explicit[name])}: {path} was trained with"
                f" {plain(settings[name])}; give that, or the path of another model"
            )
    return Config(**dict(explicit) | settings, from_file=True)
