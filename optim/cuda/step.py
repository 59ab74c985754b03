"""SFW's step on a GPU, for all parameters of an optimizer at once.

It is `optim.foreach.plain_step` for float32 tensors and regions whose vertices are sparse
sign vectors. However many tensors there are, it takes eleven launches of the kernels in
`optim.cuda.kernels`. Launches that read or write whole tensors work on blocks of 4,096 entries;
the table states how many bytes they move for each entry.

    launch       reads         writes   bytes
    advance      g, m          m        12      and theta, 4 bytes more, with weight decay
    select                                      digit 1 of the K-th largest |m|
    refine       m                      4
    select                                      digit 2
    refine       m                      4
    select                                      digit 3: now it is exact
    count_ties   (m)                            only where more entries tie with it than v has
    limit_ties                                    room for: the last one that v chooses
    measure      theta, m               8       ||theta - v||^2, only for rescale "gradient"
    set_alpha                                   the step length of each tensor
    move         theta, m      theta    12

That is 40 bytes an entry, 450 MB for the 11.2 million of ResNet18. Neither v nor theta - v is ever
stored.

A step never makes the host wait for the device: nothing that the host decides depends on a value
there. A step can be captured in a CUDA graph, except the first one with a set of parameters, which
uploads tables of their addresses, sizes and regions. What may change from step to step, such as the
addresses of gradients and the learning rate, is passed in the arguments of a further launch,
`write`. It is launched when something has changed, and always while a graph is captured. So a graph
holds the addresses of its own gradients, and reads no memory of the host when it is replayed.

Two runs give the same bits: only integers are added atomically, and sums by block in one order.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from optim.base import TensorStep, channels_last
from optim.cuda import kernels
from optim.foreach import rescaling

# Entries of a block; blocks that a tensor's program looks at together; words of one `write`.
BLOCK, CHUNK, WRITTEN = 4096, 1024, 128
# Without fused multiply-adds a GPU rounds as Triton's interpreter does, which the tests use.
OPTIONS = {"num_warps": 16, "enable_fp_fusion": False}
# The digits after the first one: how many bits they have, and how many follow.
LATER_DIGITS = ((10, 10), (10, 0))


class CudaStep:
    """Takes steps of many tensors together, and keeps the tables of the parameters for the next."""

    def __init__(self) -> None:
        self.plans: dict[torch.device, Plan] = {}
        self.captured: list[Plan] = []  # kept, since graphs that may be replayed use their memory

    def __call__(self, steps: Sequence[TensorStep]) -> None:
        """Advance the momentum buffers and move the weights, in place.

        `optim.cuda.obstacle` must be None for each of them. Raises RuntimeError for a first step
        with these parameters while a CUDA graph is captured.
        """
        for device in dict.fromkeys(s.theta.device for s in steps):
            own = [s for s in steps if s.theta.device == device]
            with torch.cuda.device_of(own[0].theta):  # Triton launches on the current device
                self._step(device, own)
        torch.autograd.graph.increment_version([s.theta for s in steps])

    def _step(self, device: torch.device, steps: Sequence[TensorStep]) -> None:
        groups = list({id(s.group): s.group for s in steps}.values())
        identity = [_identity(s, groups) for s in steps]
        capturing = _is_capturing(device)
        plan = self.plans.get(device)
        if plan is None or plan.identity != identity:
            if capturing:
                raise RuntimeError("take a step of SFW with these parameters before capturing one")
            plan = self.plans[device] = Plan(identity, len(groups), device)
        if capturing and not plan.captured:
            plan.captured = True
            self.captured.append(plan)
        rates = [_rate(group["lr"], device) for group in groups]
        plan.write(list(_words(steps, groups, rates)))
        plan.launch()
        for s, alpha in zip(steps, plan.alphas.unbind(), strict=True):
            s.alpha = alpha


def _is_capturing(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def _identity(s: TensorStep, groups: Sequence[dict[str, Any]]) -> tuple:
    """What the tables hold of a parameter."""
    addresses = s.theta.data_ptr(), s.momentum_buffer.data_ptr()
    sizes = s.region.n, s.region.vertex.entries, *channels_last(s.theta), s.region.radius
    group = next(i for i, group in enumerate(groups) if group is s.group)
    return *addresses, *sizes, rescaling(s) or 0.0, group


def _rate(lr: float | Tensor, device: torch.device) -> float | Tensor:
    """The learning rate as the kernels take it: a number, or a float32 tensor on the device."""
    return lr.to(torch.float32) if isinstance(lr, Tensor) and lr.device == device else float(lr)


def _words(
    steps: Sequence[TensorStep], groups: Sequence[dict[str, Any]], rates: Sequence[float | Tensor]
) -> Iterator[int]:
    """What may change from step to step, in the order that `kernels` describes."""
    for s in steps:
        yield from (s.gradient.data_ptr(), *_bits(1 - s.momentum))
    for group, lr in zip(groups, rates, strict=True):
        address, number = (lr.data_ptr(), 0.0) if isinstance(lr, Tensor) else (0, lr)
        yield from (address, *_bits(number, group["weight_decay"]), 0)


def _bits(*numbers: float) -> list[int]:
    """The bits of numbers as float32."""
    return np.array(numbers, np.float32).view(np.uint32).tolist()


class Plan:
    """Tables and workspace on the device for the steps of some parameters."""

    def __init__(self, identity: list[tuple], groups: int, device: torch.device) -> None:
        self.identity, self.captured = identity, False
        tensors, rows = len(identity), np.zeros((len(identity), kernels.COLUMNS.value), np.int64)
        block, count = 0, []
        for row, known in zip(rows, identity, strict=True):
            *integers, radius, gamma, group = known
            count.append(-(-integers[kernels.SIZE.value] // BLOCK))
            place = tensors * kernels.TENSOR_WORDS.value + group * kernels.GROUP_WORDS.value
            values = (*integers, block, block + count[-1], *_bits(radius, gamma), place)
            row[: len(values)] = values
            block += count[-1]
        self.rows = _upload(rows, device)
        self.blocks = _upload(np.repeat(np.arange(tensors, dtype=np.int32), count), device)
        words = tensors * kernels.TENSOR_WORDS.value + groups * kernels.GROUP_WORDS.value
        self.written = [-1] * (-(-words // WRITTEN) * WRITTEN)

        def zeros(size: int, dtype: torch.dtype) -> Tensor:
            return torch.zeros(size, dtype=dtype, device=device)

        self.words = zeros(len(self.written), torch.int64)
        self.counts = zeros(tensors * kernels.BINS.value, torch.int32)
        self.state = zeros(tensors * kernels.STATE.value, torch.int32)
        self.alphas = zeros(tensors, torch.float32)
        self.ties = zeros(block, torch.int32)
        self.squares, self.distances = (zeros(block, torch.float32) for _ in range(2))

    def write(self, words: list[int]) -> None:
        """Bring the words on the device up to date.

        If a graph was captured, all are written: its replays may have changed them.
        """
        words += [0] * (len(self.written) - len(words))
        for start in range(0, len(words), WRITTEN):
            part = words[start : start + WRITTEN]
            if self.captured or part != self.written[start : start + WRITTEN]:
                values = tuple(2 * word + 1 | kernels.HIGHEST.value for word in part)
                kernels.write[(1,)](self.words, start, values, **OPTIONS | {"num_warps": 1})
        self.written = words

    def launch(self) -> None:
        """The launches, in the order of the table above."""
        by_block, by_tensor = (len(self.blocks),), (len(self.alphas),)
        rows, words, blocks, state = self.rows, self.words, self.blocks, self.state
        counts = self.counts
        wide, digit = {"BLOCK": BLOCK, **OPTIONS}, {"FIRST": False, "LAST": False, **OPTIONS}
        kernels.advance[by_block](rows, words, blocks, counts, self.squares, **wide)
        kernels.select[by_tensor](rows, counts, state, BITS=11, **digit | {"FIRST": True})
        for bits, shift in LATER_DIGITS:
            kernels.refine[by_block](rows, blocks, counts, state, BITS=bits, SHIFT=shift, **wide)
            digit["LAST"] = shift == 0
            kernels.select[by_tensor](rows, counts, state, BITS=bits, **digit)
        kernels.count_ties[by_block](rows, blocks, state, self.ties, **wide)
        kernels.limit_ties[by_tensor](rows, state, self.ties, CHUNK=CHUNK, **wide)
        kernels.measure[by_block](rows, blocks, state, self.distances, **wide)
        kernels.set_alpha[by_tensor](
            rows, words, self.squares, self.distances, self.alphas, CHUNK=CHUNK, **OPTIONS
        )
        kernels.move[by_block](rows, blocks, state, self.alphas, **wide)


def _upload(values: np.ndarray, device: torch.device) -> Tensor:
    """The values on the device; PyTorch keeps the pinned memory until the device has read it."""
    tensor = torch.from_numpy(values)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor
