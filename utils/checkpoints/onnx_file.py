"""ONNX files of pruned networks: any batch size, images in 0 ... 1.

onnx, onnxscript and onnxruntime are imported where they are used: they are optional.
"""

import copy
import io
import json
import logging
import warnings
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from utils.compute.measure import plain_kernels
from utils.process.errors import reason


@dataclass(frozen=True)
class InputImages:
    """The images that a network takes, and how their pixels in 0 ... 1 are normalised for it."""

    channels: int
    side: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


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


def encode_onnx(model: nn.Module, images: InputImages, metadata: dict[str, Any]) -> bytes:
    """An ONNX file of a network in evaluation mode: its input is "images", its output "logits".

    `metadata` is stored as JSON, and "images" describes the input. Raises ValueError when the
    network cannot be exported.
    """
    program = _exported(model, images)
    for node in program.model.graph.all_nodes():
        node.metadata_props.clear()  # has paths of this machine, in stack traces
    for key, value in metadata.items():
        program.model.metadata_props[key] = json.dumps(value)
    program.model.metadata_props["images"] = (
        f"float32 (batch, {images.channels}, {images.side}, {images.side}) in 0 ... 1; the network"
        f" subtracts the mean {list(images.mean)} and divides by the deviation {list(images.std)}"
    )
    return program.model_proto.SerializeToString()


def load_onnx(path: Path, images: InputImages, metadata: dict[str, Any]) -> Callable[..., Tensor]:
    """The network of an ONNX file, as onnxruntime runs it on images in 0 ... 1."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    session = onnxruntime.InferenceSession(path, options, ["CPUExecutionProvider"])
    return lambda batch: torch.from_numpy(session.run(["logits"], {"images": batch.numpy()})[0])


def _exported(model: nn.Module, images: InputImages) -> "torch.onnx.ONNXProgram":
    disabled, nowhere = logging.root.manager.disable, io.StringIO()
    logging.disable()  # before an error the exporter logs and prints graphs and tracebacks
    try:
        with (
            torch.no_grad(),
            warnings.catch_warnings(action="ignore"),
            redirect_stdout(nowhere),
            redirect_stderr(nowhere),
        ):
            # A copy: exporting leaves symbolic tensors in a network that keeps its activations.
            network = NormalisedInput(copy.deepcopy(model).cpu(), images).eval()
            network.to(memory_format=torch.contiguous_format).requires_grad_(False)
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
        raise ValueError(f"PyTorch cannot export this network ({reason(cause)})") from None
    finally:
        logging.disable(disabled)


def _captured(network: nn.Module, images: InputImages) -> torch.export.ExportedProgram:
    """The network's graph for batches of any size."""
    examples = (torch.zeros(2, images.channels, images.side, images.side),)
    free = ({0: torch.export.Dim("batch")},)
    with plain_kernels():
        try:
            return torch.export.export(network, examples, dynamic_shapes=free, strict=False)
        except Exception:  # perhaps since it calls len(images), which only strict export can follow
            return torch.export.export(network, examples, dynamic_shapes=free, strict=True)
