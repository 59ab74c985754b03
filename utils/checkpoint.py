"""Model files: written with all that tells how the model came about, read without trusting them."""

import dataclasses
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from models import build_model
from utils.config import Config, plain
from utils.datasets import DATASETS
from utils.errors import UserError
from utils.files import RunFiles, atomic_write


@dataclass(frozen=True)
class TrainedModel:
    """A model as it was trained, the settings to test it with, and where results go."""

    model: nn.Module
    config: Config
    files: RunFiles


def new_model(config: Config) -> nn.Module:
    """The network of these settings; its initial weights depend on the seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        classes = DATASETS[config.data].classes
        return build_model(config.arch, classes, config.color_channel, config.image_size)


def save_model(
    path: Path, model: nn.Module, config: Config, epoch: int, metrics: dict[str, Any]
) -> None:
    """Write a model file: plain types and tensors only, so that `weights_only` loading works."""
    versions = {
        "python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__,
    }  # fmt: skip
    contents = {
        "state_dict": {name: values.cpu() for name, values in model.state_dict().items()},
        "config": config.as_dict(),
        "epoch": epoch,
        "metrics": metrics,
        "versions": {name: str(version) for name, version in versions.items()},
    }
    with atomic_write(path, "wb") as file:
        torch.save(contents, file)


def load_trained(given: dict[str, Any], model_path: Path | None) -> TrainedModel:
    """The model at `model_path`, or else the one that training with the settings `given` wrote.

    Settings that change the weights come from the file; `given`, those of the command line, must
    not contradict them. A bare state dict holds no settings: there `given` says what it is, and a
    result is named after the file. Raises UserError when there is no such model.
    """
    if model_path is None:
        config = Config(**given)
        path, files, wanted = config.files.model, config.files, vars(config)
        if not path.is_file():
            raise UserError(
                f"{path}: no such model; train it first, with train_prune.py and the same flags,"
                " or give --model_path"
            )
    else:
        path, files, wanted = model_path, None, given
    contents = _read(path)
    saved = contents.get("config")
    if saved is not None:
        given = _settings(path, saved, wanted, given)
    config = Config(**given)
    if files is None:
        files = config.files if saved is not None else RunFiles(config.output_dir, path.stem[:184])
    model = new_model(config)
    try:
        model.load_state_dict(contents.get("state_dict", contents))
    except (RuntimeError, TypeError, AttributeError):
        raise UserError(
            f"{path}: holds other tensors than {config.arch} for {config.data} has; give the"
            " --arch, --data and --color_channel it was trained with"
        ) from None
    return TrainedModel(model, config, files)


def _read(path: Path) -> dict[str, Any]:
    try:
        contents = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"--model_path {path}: no such file") from None
    except Exception as error:  # a damaged file fails in whatever way its bytes lead to
        reason = str(error).split("\n")[0][:100]
        raise UserError(
            f"{path}: is no model file, or a truncated one ({reason}); train it again"
        ) from None
    if not isinstance(contents, dict):
        raise UserError(f"{path}: is no model file: it holds a {type(contents).__name__}")
    return contents


def _settings(
    path: Path, saved: dict[str, Any], wanted: dict[str, Any], given: dict[str, Any]
) -> dict[str, Any]:
    """The saved settings that change the weights, checked against `wanted`; the rest as given."""
    changing = {f.name for f in dataclasses.fields(Config) if f.metadata["changes_weights"]}
    known = {f.name for f in dataclasses.fields(Config)}
    if not isinstance(saved, dict) or not saved.keys() <= known:
        raise UserError(f"{path}: its settings are not of this version; train it again")
    for name in changing & saved.keys() & wanted.keys():
        if saved[name] != wanted[name]:
            raise UserError(
                f"--{name} {plain(wanted[name])}: {path} was trained with {plain(saved[name])};"
                " give that, or the path of another model"
            )
    kept = {name: saved[name] for name in changing & saved.keys()}
    return kept | {name: value for name, value in given.items() if name not in changing}
