"""Model files: weights with the settings, metrics and versions behind them."""

import io
import platform
import warnings
import zipfile
from collections.abc import Mapping
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from models import build_model
from utils.checkpoints.npz_file import unpack
from utils.process.errors import UserError
from utils.process.writing import atomic_write
from utils.settings.config import Config


def new_model(config: Config) -> nn.Module:
    """The network of these settings; its initial weights depend on the seed alone.

    For an `arch` MODULE:FACTORY this imports and runs that code: no file may choose it. Raises
    UserError when it makes no network that can be used.
    """
    images = config.color_channel, config.image_size
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(config.seed)
        try:
            return build_model(config.arch, config.num_classes, *images)
        except ValueError as error:
            raise UserError(f"--arch {config.arch}: {error}") from error


class DamagedFileError(UserError):
    """A model or resume file whose bytes are not those that were written."""


def model_contents(
    model: nn.Module, config: Config, epoch: int, metrics: dict[str, Any]
) -> dict[str, Any]:
    """The contents of a model file: tensors and plain types, which `weights_only` loading reads."""
    return {
        "state_dict": state_on_cpu(model),
        "config": config.as_dict(),
        "epoch": epoch,
        "metrics": metrics,
        "versions": versions(),
    }


def state_on_cpu(model: nn.Module) -> dict[str, Tensor]:
    """The model's state dict, as files hold it: on the CPU, and contiguous."""
    return {name: values.cpu().contiguous() for name, values in model.state_dict().items()}


def versions() -> dict[str, str]:
    """The versions of Python and of the libraries that affect the exact bits of a result."""
    return {
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "numpy": str(np.__version__),
        "numba": next((d.version for d in distributions(name="numba")), "none"),
    }


def write_contents(path: Path, contents: dict[str, Any], keep_former: Path | None = None) -> None:
    """Write a model or resume file, as `atomic_write` does; raises RunError when that fails."""
    serialised = io.BytesIO()  # torch.save reports a full disk by an error of its own
    torch.save(contents, serialised)
    with atomic_write(path, "wb", keep_former) as file:
        file.write(serialised.getbuffer())


def pruned_metadata(settings: Mapping[str, Any], pruning: Mapping[str, Any]) -> dict[str, Any]:
    """What a pruned model's file states beside its tensors; `pruning` has its accuracy, too."""
    return {"config": dict(settings), "pruning": dict(pruning), "versions": versions()}


def read_contents(path: Path, advice: str) -> dict[str, Any]:
    """The contents of a model, pruned or resume file.

    Reading executes no code from the file. Raises DamagedFileError for a file whose bytes have
    changed, and UserError for one that cannot be read or is of another kind; both messages end in
    `advice`.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); {advice}") from None
    if path.suffix == ".onnx":
        raise UserError(f"{path}: ONNX files are for other programs and are not read; {advice}")
    try:
        return parsed(content)
    except ValueError as error:
        raise DamagedFileError(f"{path}: {error}; {advice}") from None


def parsed(content: bytes) -> dict[str, Any]:
    """What the bytes of a file hold. Raises ValueError, which says what is wrong with them."""
    if content.startswith(b"PK"):  # otherwise perhaps a bare state dict in PyTorch's older format
        try:
            archive = zipfile.ZipFile(io.BytesIO(content))
            is_npz = all(name.endswith(".npy") for name in archive.namelist())
            packed = any(entry.compress_type for entry in archive.infolist())
            changed = (is_npz or not packed) and archive.testzip()
        except Exception:  # damaged bytes can raise any error
            raise ValueError("is truncated") from None
        if changed:
            raise ValueError("is damaged: some of its bytes have changed")
        if is_npz:
            return unpack(content)
        if packed:
            raise ValueError("holds compressed data, which torch.save never writes")
    try:
        with warnings.catch_warnings(action="ignore"):
            contents = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception:
        contents = None
    if not isinstance(contents, dict):
        raise ValueError("is no model file, or a damaged one")
    return contents
