"""The formats in which pruned networks are saved, by the name that --pruned_format gives them."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from utils.outputs.model_file import state_on_cpu, write_contents
from utils.outputs.onnx_file import InputImages, write_onnx
from utils.outputs.pruned_file import pack
from utils.process.requirements import require
from utils.process.writing import atomic_write

# Writes a network, whose images are described, with metadata: plain types by name. Raises RunError.
WriteNetwork = Callable[[Path, nn.Module, InputImages, dict[str, Any]], None]


@dataclass(frozen=True)
class PrunedFormat:
    """How pruned networks are saved: the end of the file's name, and what writes it.

    `column` holds the files' sizes in the table of test_prune.py. `modules` are needed to write it.
    """

    suffix: str
    write: WriteNetwork
    column: str
    modules: tuple[str, ...] = ()


def write_safetensors(
    path: Path, model: nn.Module, images: InputImages, metadata: dict[str, Any]
) -> None:
    """The non-zero entries and their positions, which `load_pruned` reads."""
    packed = pack({"state_dict": model.state_dict()} | metadata)
    with atomic_write(path, "wb") as file:
        file.write(packed)


def write_state_dict(
    path: Path, model: nn.Module, images: InputImages, metadata: dict[str, Any]
) -> None:
    """An ordinary state dict in the network's own names; it has no place for metadata."""
    write_contents(path, state_on_cpu(model))


FORMATS = {
    "safetensors": PrunedFormat(".safetensors", write_safetensors, "file_bytes"),
    "state_dict": PrunedFormat(".pt", write_state_dict, "state_dict_bytes"),
    "onnx": PrunedFormat(".onnx", write_onnx, "onnx_bytes", ("onnx", "onnxscript", "onnxruntime")),
}


def check_formats(names: tuple[str, ...]) -> None:
    """Raise UserError where these formats, keys of FORMATS, need what is not installed."""
    for name in names:
        require(f"--pruned_format {name}", *FORMATS[name].modules)
