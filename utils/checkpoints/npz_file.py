"""Files of pruned networks: NumPy's compressed .npz, an array for each tensor, under its own name.

Any NumPy opens them. The entry METADATA is a JSON text of what is known beside the tensors. Pickle
is neither written nor read.
"""

import io
import json
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

METADATA = "__metadata__"
RESERVED = {METADATA, "file", "allow_pickle"}  # the other two are parameters of savez_compressed


def pack(state: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> bytes:
    """The bytes of a file with the tensors of a state dict, and metadata of plain types.

    Raises ValueError, which names the tensor, for one that has no place in such a file.
    """
    if taken := sorted(RESERVED & state.keys()):
        raise ValueError(f"an .npz file has no place for a tensor called {taken[0]}")
    arrays = {name: _array(name, values) for name, values in state.items()}
    arrays[METADATA] = np.array(json.dumps(metadata))
    content = io.BytesIO()
    np.savez_compressed(content, allow_pickle=False, **arrays)
    return content.getvalue()


def _array(name: str, values: Tensor) -> np.ndarray:
    """The values, with 0 for -0.0, which would be stored as an entry that is left.

    Of a type that NumPy lacks, such as bfloat16, float32 holds every value exactly.
    """
    values = values.detach().cpu().contiguous()
    try:
        array = values.numpy()
    except TypeError:
        if not values.is_floating_point():
            raise ValueError(f"{name} is {values.dtype}, a type that NumPy lacks") from None
        array = values.float().numpy()
    return np.where(array == 0, array.dtype.type(0), array)


def is_npz(archive: zipfile.ZipFile) -> bool:
    """Whether all entries are arrays."""
    return all(name.endswith(".npy") for name in archive.namelist())


def unpack(archive: zipfile.ZipFile) -> dict[str, Any]:
    """The metadata that `pack` stored, with the tensors as "state_dict".

    Raises ValueError for a file that is damaged or that something else wrote.
    """
    if f"{METADATA}.npy" not in archive.namelist():
        raise ValueError("is an .npz file, but not one that --save_pruned writes")
    try:
        arrays = {
            # Read whole, so that its checksum is compared: np.load reads as far as its header says.
            name.removesuffix(".npy"): np.lib.format.read_array(
                io.BytesIO(archive.read(name)), allow_pickle=False
            )
            for name in archive.namelist()
        }
        metadata = json.loads(arrays.pop(METADATA).item())
        return metadata | {"state_dict": {n: torch.from_numpy(a) for n, a in arrays.items()}}
    except Exception:  # damaged bytes can raise any error
        raise ValueError("is damaged: some of its bytes have changed") from None
