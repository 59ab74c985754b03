"""Model files: weights with their settings, metrics and versions; reading one runs no code."""

import dataclasses
import hashlib
import io
import platform
import warnings
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from models import build_model
from utils.outputs.pruned_file import looks_packed, pack, unpack
from utils.process.errors import UserError
from utils.process.writing import atomic_write
from utils.settings.config import Config
from utils.settings.names import RunFiles, file_name, plain


@dataclass(frozen=True)
class TrainedModel:
    """A model as it was trained, the settings to test it with, and where results go."""

    model: nn.Module
    config: Config
    files: RunFiles
    pruned: dict[str, Any] | None = None  # how, where it was saved pruned


def new_model(config: Config) -> nn.Module:
    """The network of these settings; its initial weights depend on the seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(config.seed)
        return build_model(config.arch, config.num_classes, config.color_channel, config.image_size)


class DamagedFileError(UserError):
    """A model or resume file whose bytes are not those that were written."""


def model_contents(
    model: nn.Module, config: Config, epoch: int, metrics: dict[str, Any]
) -> dict[str, Any]:
    """What a model file holds: plain types and tensors, so that `weights_only` loading works."""
    return {
        "state_dict": {k: v.cpu().contiguous() for k, v in model.state_dict().items()},
        "config": config.as_dict(),
        "epoch": epoch,
        "metrics": metrics,
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    """What the bits of a result depend on."""
    found = {
        "python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__,
    }  # fmt: skip
    return {name: str(version) for name, version in found.items()}


def write_contents(path: Path, contents: dict[str, Any], keep_former: Path | None = None) -> None:
    """Write a model or resume file; raises RunError if the disk does not take it."""
    serialised = io.BytesIO()  # torch.save reports a full disk in words of its own
    torch.save(contents, serialised)
    with atomic_write(path, "wb", keep_former) as file:
        file.write(serialised.getbuffer())


def write_pruned(path: Path, model: nn.Module, config: Config, pruning: dict[str, Any]) -> int:
    """Write a pruned model; `pruning` is how it was pruned and what it reached, in plain types.

    Returns the file's size in bytes; raises RunError if the disk does not take it.
    """
    contents = {"state_dict": model.state_dict(), "config": config.changing_weights(),
                "pruning": pruning, "versions": versions()}  # fmt: skip
    packed = pack(contents)
    with atomic_write(path, "wb") as file:
        file.write(packed)
    return len(packed)


def read_contents(path: Path, way_out: str) -> tuple[dict[str, Any], "hashlib._Hash"]:
    """What a model, pruned or resume file holds, and a checksum of its bytes; executes nothing.

    Raises DamagedFileError for a file that is not as it was written, and UserError for what cannot
    be read or is no such file; both end in `way_out`.
    """
    try:
        content = path.read_bytes()
    except IsADirectoryError:
        raise UserError(f"{path}: is a folder where a file is to be; {way_out}") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); {way_out}") from None
    if looks_packed(content):
        try:
            return unpack(content), hashlib.sha256(content)
        except ValueError as error:
            raise DamagedFileError(f"{path}: {error}; {way_out}") from None
    if problem := _damage(content):
        raise DamagedFileError(f"{path}: {problem}; {way_out}")
    try:
        with warnings.catch_warnings(action="ignore"):
            contents = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception:  # a damaged file fails in whatever way its bytes lead to
        contents = None
    if not isinstance(contents, dict):
        raise DamagedFileError(f"{path}: is no model file, or a damaged one; {way_out}")
    return contents, hashlib.sha256(content)


def _damage(content: bytes) -> str | None:
    """What is wrong with the bytes of a file that torch.save wrote; None if nothing is."""
    if not content:
        return "is empty"
    if not content.startswith(b"PK"):
        return None  # not an archive: perhaps a bare state dict in PyTorch's older format
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            if any(r.compress_type or r.file_size > len(content) for r in archive.infolist()):
                return "holds compressed data, which torch.save never writes"
            changed = archive.testzip()
    except Exception:  # zipfile raises whatever the bytes lead to
        return "is truncated"
    return changed and "is damaged: some of its bytes have changed"


def load_trained(given: dict[str, Any], model_path: Path | None) -> TrainedModel:
    """The model at `model_path`, or else the one that training with the settings `given` wrote.

    Settings that change the weights come from the file; `given`, those of the command line, must
    not contradict them. A bare state dict holds no settings: there `given` says what it is. Results
    of a bare state dict or a pruned model are named after its file. Raises UserError when there is
    no such model.
    """
    path, files, wanted = model_path, None, given
    if path is None:
        config = Config(**given)
        path, files, wanted = config.files.model, config.files, vars(config)
        if not path.is_file():
            raise UserError(
                f"{path}: no such model; train it first, with train_prune.py and the same flags,"
                " or give --model_path"
            )
    contents, digest = read_contents(
        path, "give another --model_path, or train it again with --resume never"
    )
    saved = contents.get("config")
    config = Config(**(given if saved is None else _settings(path, saved, wanted, given)))
    pruned = contents.get("pruning")
    if not isinstance(pruned, dict | None):
        raise UserError(f"{path}: does not tell how it was pruned; save it again")
    if saved is not None and pruned is None:
        files = config.files
    elif files is None or pruned is not None:
        digest.update(config.run_name.encode())
        stem = path.stem.encode(errors="replace").decode()  # bytes that are no text become "?"
        name = file_name({"sha256": digest.hexdigest()[:16]}, stem)
        files = RunFiles(config.output_dir, name)
    model = new_model(config)
    try:
        with warnings.catch_warnings(action="ignore"):
            state = contents.get("state_dict", contents)
            if any(values.is_complex() or values.is_sparse for values in state.values()):
                raise TypeError("these would be converted, with a warning")
            model.load_state_dict(state)
    except (RuntimeError, TypeError, AttributeError):
        raise UserError(
            f"{path}: holds other tensors than {config.arch} for {config.data} has; give the"
            " --arch, --data and --color_channel it was trained with"
        ) from None
    return TrainedModel(model, config, files, pruned)


def load_pruned(path: str | Path) -> nn.Module:
    """The network that test_prune.py --save_pruned wrote to `path`, on the CPU, in evaluation mode.

    Its `state_dict()` is an ordinary dense one. Raises UserError when there is no such file or it
    is damaged.
    """
    return load_trained({}, Path(path)).model.eval()


def _settings(
    path: Path, saved: Any, wanted: dict[str, Any], given: dict[str, Any]
) -> dict[str, Any]:
    """The saved settings that change the weights, checked against `wanted`; the rest as given."""
    settings = {s.name: s for s in dataclasses.fields(Config)}
    if not isinstance(saved, dict) or not {"data", "arch"} <= saved.keys() <= settings.keys():
        raise UserError(f"{path}: its settings are not of this version; train it again")
    changing = {name: s for name, s in settings.items() if s.metadata["changes_weights"]}
    kept = {name: saved.get(name, s.default) for name, s in changing.items()}
    try:
        kept = {name: getattr(Config(**kept), name) for name in kept}
    except UserError as error:
        raise UserError(f"{path}: holds settings that are none ({error}); train it again") from None
    for name in changing.keys() & wanted.keys():
        if kept[name] != wanted[name]:
            raise UserError(
                f"--{name} {plain(wanted[name])}: {path} was trained with {plain(kept[name])};"
                " give that, or the path of another model"
            )
    return kept | {name: value for name, value in given.items() if name not in changing}
