"""The formats in which pruned networks are saved, by the name that --pruned_format gives them."""

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from utils.checkpoints.model_file import read_contents, state_on_cpu
from utils.checkpoints.npz_file import pack
from utils.checkpoints.onnx_file import InputImages, NormalisedInput, encode_onnx, load_onnx
from utils.checkpoints.trained_model import build_network
from utils.compute.device import placed
from utils.process.errors import reason
from utils.process.writing import atomic_write
from utils.settings.config import Config

TOLERANCE = 1e-4  # of logits, relative to the largest one if that is greater than 1


@dataclass(frozen=True)
class PrunedFormat:
    """The end of a file's name, what gives its bytes, and from it a network on images in 0 ... 1.

    `modules` are needed for that. The file is tried on batches of the two `sizes`.
    """

    suffix: str
    encode: Callable[[nn.Module, InputImages, dict[str, Any]], bytes]
    load: Callable[[Path, InputImages, dict[str, Any]], Callable[[Tensor], Tensor]]
    modules: tuple[str, ...] = ()
    sizes: tuple[int, int] = (2, 3)


def encode_npz(model: nn.Module, images: InputImages, metadata: dict[str, Any]) -> bytes:
    return pack(model.state_dict(), metadata)


def encode_state_dict(model: nn.Module, images: InputImages, metadata: dict[str, Any]) -> bytes:
    """An ordinary state dict in the network's own names; it has no place for metadata."""
    content = io.BytesIO()
    torch.save(state_on_cpu(model), content)
    return content.getvalue()


def load_network(path: Path, images: InputImages, metadata: dict[str, Any]) -> nn.Module:
    """That of an .npz file, or of a state dict and the metadata."""
    contents, config = read_contents(path, ""), Config(**metadata["config"], from_file=True)
    state = contents.get("state_dict", contents)
    model = build_network(path, metadata | {"state_dict": state}, config)
    return NormalisedInput(placed(model, torch.device("cpu"), config.image_shape).eval(), images)


FORMATS = {
    "npz": PrunedFormat(".npz", encode_npz, load_network),
    "state_dict": PrunedFormat(".pt", encode_state_dict, load_network),
    "onnx": PrunedFormat(
        ".onnx", encode_onnx, load_onnx, ("onnx", "onnxscript", "onnxruntime"), sizes=(1, 3)
    ),
}


def write_pruned(
    path: Path,
    name: str,
    model: nn.Module,
    images: InputImages,
    metadata: dict[str, Any],
    check: Callable[[Path], None] = lambda path: None,
) -> None:
    """Write a network in the format `name`, read the file again, and compare their logits.

    `metadata` is that of `pruned_metadata`; `check` raises ValueError for a file that is not to be
    kept. Afterwards the model is in evaluation mode. Raises ValueError where the format cannot hold
    the network or the logits differ, and RunError where the file cannot be written; then there is
    no new file.
    """
    form, generator = FORMATS[name], torch.Generator().manual_seed(0)
    shape = images.channels, images.side, images.side
    batches = [torch.rand(size, *shape, generator=generator) for size in form.sizes]
    expected = _logits(model, images, batches)
    content = form.encode(model, images, metadata)
    with atomic_write(path, "wb") as file:
        file.write(content)
        file.flush()
        try:
            with torch.no_grad():
                network = form.load(Path(file.name), images, metadata)
                found = [network(batch) for batch in batches]
        except Exception as error:  # onnxruntime's errors have no common type
            raise ValueError(f"the file cannot be used ({reason(error)})") from None
        _compare(expected, found)
        check(Path(file.name))


@torch.no_grad()
def _logits(model: nn.Module, images: InputImages, batches: list[Tensor]) -> list[Tensor]:
    """Those of the network itself, not of a copy, on the CPU."""
    device = next(model.parameters()).device
    network = NormalisedInput(model.cpu(), images).eval()
    try:
        return [network(batch) for batch in batches]
    except Exception as error:  # whatever the network's own code raises
        sizes = " and ".join(str(len(batch)) for batch in batches)
        raise ValueError(
            f"the network does not run on batches of {sizes} images ({reason(error)})"
        ) from None
    finally:
        model.to(device)


def _compare(expected: list[Tensor], found: list[Tensor]) -> None:
    """Raise ValueError unless these are the same logits, each (batch, classes)."""
    classes = expected[-1].shape[-1]
    for logits, others in zip(expected, found, strict=True):
        if not logits.shape == others.shape == (len(logits), classes):
            raise ValueError(
                f"the network returns logits of shape {tuple(logits.shape)}, the file"
                f" {tuple(others.shape)}; both must be (batch, {classes})"
            )
        one, other = logits.double(), others.double()
        largest = one.nan_to_num(0, 0, 0).abs().max().clamp(min=1).item()
        if not torch.isclose(other, one, rtol=0, atol=TOLERANCE * largest, equal_nan=True).all():
            difference = (other - one).abs().max().item()
            raise ValueError(
                f"the file's logits differ by {difference:.2g} from those of the network"
            )
