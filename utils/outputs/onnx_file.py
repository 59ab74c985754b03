"""ONNX files of pruned networks: any batch size, images in 0 ... 1, checked before they are kept.

onnx, onnxscript and onnxruntime are imported where they are used: they are optional.
"""

import copy
import json
import textwrap
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from utils.process.errors import RunError
from utils.process.writing import atomic_write

if TYPE_CHECKING:
    from torch.onnx import ONNXProgram

BATCH_SIZES = (1, 3)  # on which a file is compared with its network
TOLERANCE = 1e-4  # of logits, relative to the largest one if that is greater than 1


@dataclass(frozen=True)
class InputImages:
    """The images that a network takes, and how their pixels in 0 ... 1 are normalised for it."""

    channels: int
    side: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def description(self) -> str:
        return (
            f"float32 (batch, {self.channels}, {self.side}, {self.side}) in 0 ... 1; the network"
            f" subtracts the mean {list(self.mean)} and divides by the deviation {list(self.std)}"
        )


class NormalisedInput(nn.Module):
    """A network that takes pixels in 0 ... 1, and normalises them as they were for its training."""

    def __init__(self, model: nn.Module, images: InputImages) -> None:
        super().__init__()
        self.model = model
        scale = 1 / torch.tensor(images.std).view(-1, 1, 1)
        self.register_buffer("scale", scale)
        self.register_buffer("offset", -torch.tensor(images.mean).view(-1, 1, 1) * scale)

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images * self.scale + self.offset)


def write_onnx(path: Path, model: nn.Module, images: InputImages, metadata: dict[str, Any]) -> None:
    """Write a network in evaluation mode, its input called "images" and its output "logits".

    `metadata` is stored as JSON, and "images" describes the input. Raises RunError when the network
    cannot be exported, or when onnxruntime computes other logits, and then writes no file.
    """
    network = NormalisedInput(copy.deepcopy(model).cpu(), images).eval()
    network.to(memory_format=torch.contiguous_format)
    for p in network.parameters():
        p.requires_grad_(False)
    program = _exported(network, images)
    for key, value in metadata.items():
        program.model.metadata_props[key] = json.dumps(value)
    program.model.metadata_props["images"] = images.description
    try:
        content = program.model_proto.SerializeToString()
    except ValueError as error:  # a protocol buffer holds at most 2 GB
        raise RunError(f"{path.name}: is too large for an ONNX file ({error})") from None
    _check(content, network, images)
    with atomic_write(path, "wb") as file:
        file.write(content)


def _exported(network: nn.Module, images: InputImages) -> "ONNXProgram":
    try:
        with warnings.catch_warnings(action="ignore"), torch.no_grad():
            return torch.onnx.export(
                _captured(network, images),
                dynamo=True,
                verbose=False,
                input_names=["images"],
                output_names=["logits"],
                dynamic_shapes=({0: "batch"},),
            )
    except Exception as error:  # the exporter lets errors of any type pass
        cause = error.__cause__ or error
        raise RunError(
            f"--pruned_format onnx: PyTorch cannot export this network ({type(cause).__name__}:"
            f" {_first_line(cause)}); choose another format"
        ) from None


def _captured(network: nn.Module, images: InputImages) -> torch.export.ExportedProgram:
    """The network's graph for batches of any size."""
    examples = (torch.zeros(2, images.channels, images.side, images.side),)
    free = ({0: torch.export.Dim("batch")},)
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # a single operation, which ONNX does not have
    try:
        return torch.export.export(network, examples, dynamic_shapes=free, strict=False)
    except Exception:  # perhaps since it calls len(images), which only strict export can follow
        return torch.export.export(network, examples, dynamic_shapes=free, strict=True)
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)


def _check(content: bytes, network: nn.Module, images: InputImages) -> None:
    """Raise RunError unless onnxruntime computes the network's logits on random images."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    generator = torch.Generator().manual_seed(0)
    shape = images.channels, images.side, images.side
    batches = [torch.rand(size, *shape, generator=generator) for size in BATCH_SIZES]
    try:
        session = onnxruntime.InferenceSession(content, options, ["CPUExecutionProvider"])
        outputs = [session.run(["logits"], {"images": batch.numpy()})[0] for batch in batches]
        with torch.no_grad():
            logits = [network(batch) for batch in batches]
    except Exception as error:  # onnxruntime's errors have no common type
        raise RunError(
            f"--pruned_format onnx: the network or its export cannot run on batches of"
            f" {BATCH_SIZES} images ({_first_line(error)}); choose another format"
        ) from None
    for expected, found in zip(logits, outputs, strict=True):
        difference = (torch.from_numpy(found) - expected).abs().max().item()
        if not difference <= TOLERANCE * max(1.0, expected.abs().max().item()):
            raise RunError(
                f"--pruned_format onnx: onnxruntime's logits differ by {difference:.2g} from those"
                " of the network; choose another format"
            )


def _first_line(error: BaseException) -> str:
    return textwrap.shorten(str(error).strip().partition("\n")[0], 200, placeholder="...")
