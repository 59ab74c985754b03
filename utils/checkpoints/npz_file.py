"""Files of pruned networks: NumPy's compressed .npz, an array for each tensor, under its own name.

Any NumPy opens them. The entry METADATA is a JSON text of what is known beside the tensors. Pickle
is neither written nor read.
"""

import io
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

METADATA = "__metadata__"


def pack(state: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> bytes:
    """The bytes of a file with the tensors of a state dict, and metadata of plain types.

    Raises ValueError for a tensor called as a parameter of numpy.savez_compressed, such as `file`.
    """
    arrays = {name: _array(values) for name, values in state.items()}
    arrays[METADATA] = np.array(json.dumps(metadata))
    content = io.BytesIO()
    try:
        np.savez_compressed(content, allow_pickle=False, **arrays)
    except TypeError as error:
        raise ValueError(f"NumPy stores no array of a tensor's name ({error})") from None
    return content.getvalue()


def _array(values: Tensor) -> np.ndarray:
    """The values, with 0 for -0.0, which would be stored as an entry that is left.

    Of a type that NumPy lacks, such as bfloat16, float32 holds every value exactly.
    """
    values = values.detach().cpu().contiguous()
    try:
        array = values.numpy()
    except TypeError:
        array = values.float().numpy()
    return np.where(array == 0, array.dtype.type(0), array)


def unpack(content: bytes) -> dict[str, Any]:
    """The metadata that `pack` stored, and "state_dict"; raises ValueError for another file."""
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as file:
            arrays = dict(file)
        metadata = json.loads(arrays.pop(METADATA).item())
        return metadata | {"state_dict": {n: torch.from_numpy(a) for n, a in arrays.items()}}
    except Exception:  # whatever a foreign entry raises
        raise ValueError("is an .npz file, but not one that --save_pruned writes") from None
