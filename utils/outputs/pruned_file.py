"""Files of pruned models: safetensors that store the non-zero entries and their positions.

A tensor NAME with enough zeros is stored as two tensors: NAME:values, its non-zero entries in
order, and their positions, in the smaller of two forms. NAME:mask has a bit for each entry of the
tensor. NAME:gaps has a byte for each value, the number of zeros before it, and more bytes where
that number is large. Other tensors are stored unchanged, and so is one beside a tensor that has
one of these names. Settings and accuracy are JSON in the header. Reading a file executes no code
from it.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from safetensors.torch import load, save
from torch import Tensor

from utils.process.errors import RunError

FORMAT = "pruned model, version 1"
LARGEST_GAP = 254
SKIP = 255  # in NAME:gaps: this many zeros, with no value after them
INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def pack(contents: dict[str, Any]) -> bytes:
    """The bytes of a file with these contents: a "state_dict", and plain types at other keys.

    Raises RunError for a tensor whose name safetensors keeps for itself.
    """
    state = contents["state_dict"]
    if "__metadata__" in state:
        raise RunError("a tensor called __metadata__ has no place in a safetensors file")
    tensors: dict[str, Tensor] = {}
    for name, values in state.items():
        values = values.detach().cpu().contiguous()
        taken = state.keys() & {f"{name}:{part}" for part in ("values", "mask", "gaps")}
        parts = None if taken else _compressed(name, values)
        if parts is None:
            parts = {name: values.clone()}  # safetensors refuses tensors that share memory
        tensors |= parts
    header = {key: value for key, value in contents.items() if key != "state_dict"}
    header["shapes"] = {name: list(values.shape) for name, values in state.items()}
    metadata = {key: json.dumps(value) for key, value in header.items()} | {"format": FORMAT}
    return save(tensors, metadata | {"sha256": _digest(metadata, tensors)})


def looks_packed(content: bytes) -> bool:
    """Whether the bytes start as a safetensors file does: a length of 8 bytes, then JSON."""
    return content[8:9] == b"{"


def unpack(content: bytes) -> dict[str, Any]:
    """The contents that `pack` stored, with dense tensors; raises ValueError for a bad file."""
    try:
        length = int.from_bytes(content[:8], "little")
        metadata = json.loads(content[8 : 8 + length]).get("__metadata__") or {}
        ours = metadata.get("format") == FORMAT
        tensors = load(content) if ours else {}
    except Exception as error:  # damaged bytes can raise any error
        raise ValueError("is damaged, or no safetensors file") from error
    if not ours:
        raise ValueError("is a safetensors file, but not one that --save_pruned writes")
    if metadata.pop("sha256", None) != _digest(metadata, tensors):
        raise ValueError("is damaged: some of its bytes have changed")
    del metadata["format"]
    try:
        contents = {key: json.loads(text) for key, text in metadata.items()}
        shapes = contents.pop("shapes").items()
        return contents | {"state_dict": {n: _dense(n, shape, tensors) for n, shape in shapes}}
    except Exception as error:  # a forged file with a valid checksum can raise any error
        raise ValueError("is damaged: its parts do not fit together") from error


def _compressed(name: str, values: Tensor) -> dict[str, Tensor] | None:
    """The tensors that are stored for the contiguous one called `name`; None if no smaller."""
    # Compared as integers, -0.0 is not zero, and so it is stored.
    filled = values.reshape(-1).view(INTEGERS[values.element_size()]).numpy() != 0
    gaps, mask = _gaps(filled), np.packbits(filled)
    places = {"mask": mask} if len(mask) <= len(gaps) else {"gaps": gaps}
    left = values.reshape(-1)[torch.from_numpy(filled)]
    parts = {key: torch.from_numpy(where) for key, where in places.items()} | {"values": left}
    if sum(part.nbytes for part in parts.values()) >= values.nbytes:
        return None
    return {f"{name}:{key}": part for key, part in parts.items()}


def _gaps(filled: np.ndarray) -> np.ndarray:
    """For each True entry, the number of False entries before it since the last True one.

    Each number is a byte; SKIPs before it stand for SKIP False entries each. SKIPs at the end stand
    for False entries after the last True one.
    """
    places = np.append(np.flatnonzero(filled), len(filled))
    skips, rest = np.divmod(np.diff(places, prepend=-1) - 1, SKIP)
    gaps = np.full(int(skips.sum()) + len(rest), SKIP, np.uint8)
    gaps[np.cumsum(skips + 1) - 1] = rest
    return gaps[:-1]  # the last byte belongs to the end of the tensor, not to a True entry


def _dense(name: str, shape: list[int], tensors: Mapping[str, Tensor]) -> Tensor:
    """The dense tensor called `name`, restored from what `_compressed` made of it."""
    if name in tensors:
        return tensors[name].clone()
    values, count = tensors[f"{name}:values"], math.prod(shape)
    if f"{name}:mask" in tensors:
        mask = tensors[f"{name}:mask"].numpy()
        excess, positions = 8 * len(mask) - count, int(np.bitwise_count(mask).sum())
    else:
        gaps = tensors[f"{name}:gaps"].numpy()
        steps = np.where(gaps == SKIP, SKIP, gaps.astype(np.int64) + 1)
        excess, positions = count - int(steps.sum()), int((gaps != SKIP).sum())
    # Checked before memory is allocated: a small file may claim to be a large tensor.
    if not 0 <= excess <= LARGEST_GAP or positions != len(values):
        raise ValueError(f"{name} is not of shape {shape} or has not {positions} non-zero entries")
    if f"{name}:mask" in tensors:
        places = np.flatnonzero(np.unpackbits(mask))
    else:
        places = np.cumsum(steps)[gaps != SKIP] - 1
    dense = np.zeros(count, f"i{values.element_size()}")  # integers hold the bits of any type
    dense[places] = values.view(INTEGERS[values.element_size()]).numpy()
    return torch.from_numpy(dense).view(values.dtype).view(shape)


def _digest(metadata: Mapping[str, str], tensors: Mapping[str, Tensor]) -> str:
    """A checksum of a file's whole contents; the safetensors format has none."""
    digest = hashlib.sha256(json.dumps(metadata, sort_keys=True).encode())
    for name in sorted(tensors):
        values = tensors[name]
        digest.update(f"{name} {values.dtype} {list(values.shape)}".encode())
        digest.update(values.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
