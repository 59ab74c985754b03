"""How a tensor lies in memory, as the kernels need to know it."""

import torch
from torch import Tensor


def channels_last(x: Tensor) -> tuple[int, int] | None:
    """The memory format: for channels-last, the number of channels and of entries in one of them.

    The entries are those of one channel of one sample. (1, 1) if x is contiguous; None if x is in
    neither format.
    """
    if x.layout != torch.strided:
        return None
    if x.is_contiguous():
        return 1, 1
    if x.dim() > 2 and x.movedim(1, -1).is_contiguous():
        return x.shape[1], x[0, 0].numel()
    return None
