"""Trained models, loaded for a test together with the settings they were trained with."""

import hashlib
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
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
from utils.settings.config import FIELDS, Config, with_own_data
from utils.settings.fields import OF_TEST, first_difference, identifying_settings, training_known
from utils.settings.names import RunFiles, file_name

ADVICE = "give another --model_path, or train it again with --resume never"


@dataclass(frozen=True)
class TrainedModel:
    """A trained model, the settings to test it with, and the paths of the results.

    A bare state dict states no settings: then `settings` has those alone that it is tested with.
    """

    model: nn.Module
    config: Config
    files: RunFiles
    source: str  # the name of the model's file
    settings: dict[str, Any]  # those that identify the run
    pruned_before: dict[str, Any] | None = None  # how, if the file holds a pruned model
    train_accuracy: float | None = None  # of the last epoch, in percent, if the file states it
    test_sha256: str | None = None  # the checksum of its test images and labels, if it states that

    @property
    def training_known(self) -> bool:
        return training_known(self.settings)


def prunings(last: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """What the file of a pruned model states of each time it was pruned, the first one first."""
    if last is None:
        return []
    own = {name: value for name, value in last.items() if name != "pruned_before"}
    return [*prunings(last.get("pruned_before")), own]


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
    for unfinished in (config.files.resume, config.files.previous_resume):
        if unfinished.is_file():
            raise UserError(
                f"{path}: the training was stopped before its end; train_prune.py with the same"
                f" flags goes on, and --model_path {unfinished} tests what it has reached"
            )
    if path.is_file():
        return load_model_file(path, vars(config))
    raise UserError(
        f"{path}: no such model; train it first, with train_prune.py and the same flags, or give"
        " --model_path"
    )


def load_model_file(path: Path, explicit: Mapping[str, Any]) -> TrainedModel:
    """The model in this file: a trained one, a pruned one, or a bare state dict.

    `explicit` has the settings of Config that the user gave. Those that identify the run must agree
    with the settings in the file; of a bare state dict they say what it is. Results are named after
    the settings or, of a file that is no finished training, after the file, its bytes and the
    settings. Raises UserError for a file that cannot be used.
    """
    contents = read_contents(path, ADVICE)
    stored, pruning = contents.get("config"), contents.get("pruning")
    if stored is None:
        config = Config(**with_own_data(explicit))
    else:
        config = _config_in_file(path, stored, explicit)
    settings, files = identifying_settings(config), config.files
    if not training_known(stored or {}):
        settings = {name: value for name, value in settings.items() if name in OF_TEST}
    source = path.name.encode(errors="replace").decode()  # bytes that are no text become "?"
    if stored is None or pruning is not None or "optimizer" in contents:  # of a resume file
        digest = hashlib.sha256(path.read_bytes() + config.run_name.encode()).hexdigest()
        files = replace(files, run=file_name({"sha256": digest[:16]}, Path(source).stem))
    metrics = {} if stored is None else contents.get("metrics", {})
    *_, last = None, *metrics.get("train_accuracy", [])  # none before the end of the first epoch
    tested = metrics.get("sha256", {}).get("test")
    model = build_network(path, contents, config)
    return TrainedModel(model, config, files, source, settings, pruning, last, tested)


def load_pruned(path: str | Path, arch: str | None = None) -> nn.Module:
    """The network that test_prune.py --save_pruned wrote to `path`, on the CPU, in evaluation mode.

    Its `state_dict()` is an ordinary dense one. Its memory format is that of the test on a CPU,
    channels_last for convolutions in most networks, so that its outputs are the same bit for bit. A
    network of your own needs its `arch`, as in "nets:small": a file never chooses what code is run.
    Raises UserError when the file is missing or damaged, and when it is of another `arch`.
    """
    trained = load_model_file(Path(path), {} if arch is None else {"arch": arch})
    return placed(trained.model, torch.device("cpu"), trained.config.image_shape).eval()


def build_network(path: Path, contents: dict[str, Any], config: Config) -> nn.Module:
    """The network of these settings with the weights of a model file or a bare state dict.

    A sliced network's file states its widths, and it is built with these. Raises UserError where
    the tensors are those of another network.
    """
    model, state = new_model(config), contents.get("state_dict", contents)
    try:
        with warnings.catch_warnings(action="ignore"):
            if widths := contents.get("widths"):  # otherwise load_state_dict compares all shapes
                set_widths(model, widths, state)
            model.load_state_dict(state)
    except (RuntimeError, TypeError, AttributeError, ValueError):
        raise UserError(
            f"{path}: holds other tensors than {config.arch} for {config.data} has; give the"
            " --arch, --data, --color_channel and --image_size it was trained with or, for a"
            " sliced network, its .npz file"
        ) from None
    return model


def _config_in_file(path: Path, stored: Any, explicit: Mapping[str, Any]) -> Config:
    """The settings to test a model with: those stored in its file, and the others in `explicit`.

    One that identifies the run and is missing was added to this program later, and has its default,
    unless the file is of a pruned bare state dict. Raises UserError for the first that differs.
    """
    if not isinstance(stored, dict) or not {"data", "arch"} <= stored.keys() <= FIELDS.keys():
        raise UserError(f"{path}: its settings are not of this version; train it again")
    names = [name for name, field in FIELDS.items() if field.metadata["identifies_run"]]
    if not training_known(stored):
        names = [name for name in names if name in stored]
    try:
        config = Config(**{n: v for n, v in stored.items() if n in names}, from_file=True)
    except UserError as error:
        raise UserError(f"{path}: holds invalid settings ({error}); train it again") from None
    if is_factory(config.arch) and "arch" not in explicit:
        raise UserError(
            f"{path}: its network is made by {config.arch}, and a file must not choose what code is"
            f" run; give --arch {config.arch} if you trust that code (load_pruned: arch=)"
        )
    settings = {name: getattr(config, name) for name in names}
    if found := first_difference(settings, explicit):
        raise UserError(
            f"{path}: was trained with {found}; give that, or the path of another model"
        )
    return Config(**{**explicit, **settings}, from_file=True)
