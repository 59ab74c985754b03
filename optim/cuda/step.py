"""SFW's step on a GPU, for all parameters of an optimizer at once.

The step of `optim.sfw.plain_step` for float32 tensors and regions whose vertices are sparse sign
vectors. However many tensors there are, it takes eleven launches of the kernels in
`optim.cuda.kernels`, most of which work on blocks of 4,096 entries. Bytes are those that each
launch moves for an entry; what else it touches is small.

    launch          reads          writes    bytes
    advance         g, m (theta)   m         12, or 16 with weight decay
    select                                            digit 1 of the K-th largest |m|
    refine          m                        4
    select                                            digit 2
    refine          m                        4
    select                                            digit 3: the magnitude is exact
    count_ties      (m)                               where more tie there than v has room for
    limit_ties                                        the last of them that v chooses
    measure         theta, m                 8        ||theta - v||^2
    set_alpha                                         by tensor, on the device
    move            theta, m       theta     12

That is 40 bytes an entry, 450 MB for the 11.2 million of a ResNet18. Neither v nor theta - v is
stored. Without rescale "gradient", `measure` moves nothing.

A step never makes the host wait for the device: no decision of the host depends on a value there.
It can be captured in a CUDA graph, but for the first step of a set of parameters, which uploads
tables of their addresses, sizes and regions. What may change from step to step, the addresses of
gradients and the numbers of parameter groups, travels as arguments of a further launch, `write`,
when it has changed and whenever a graph is captured. A graph therefore holds the addresses of its
own gradients, and no host memory needs to outlive the launch.

Two runs give the same bits: integers alone are added atomically, and sums by block in one order.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from constraints import Region
from optim.cuda import kernels

# Entries of a block; tensors that one program goes through at a time; words that one `write` takes.
BLOCK, CHUNK, WRITTEN = 4096, 1024, 128
# Without fused multiply-adds a GPU rounds as the interpreter, with which the tests run, does.
OPTIONS = {"num_warps": 16, "enable_fp_fusion": False}
# The digits after the first one, as (bits, place of the last bit).
LATER_DIGITS = ((10, 10), (10, 0))


class Slot(NamedTuple):
    """What a step needs of one parameter.

    `steps` counts the steps taken, as a float32 tensor without dimensions: at 0 the next one is the
    first, at which m <- g. `group` is its parameter group, with "lr" (a number, or a float32 tensor
    without dimensions), "momentum", "weight_decay", "rescale" and, if it is there, "maximize".
    """

    weights: Tensor
    gradient: Tensor
    momentum: Tensor
    steps: Tensor
    region: Region
    group: dict[str, Any]

    def is_taken(self) -> bool:
        """Whether FusedStep takes it: float32 tensors on one device, in one of two formats."""
        tensors = self.weights, self.gradient, self.momentum
        n = self.weights.numel()
        return (
            self.region.vertex_entries is not None
            and all(x.dtype == torch.float32 and x.layout == torch.strided for x in tensors)
            and {x.device for x in tensors} == {self.steps.device}
            and {x.shape for x in tensors} == {self.weights.shape}
            and n == self.region.n
            and 0 < n < 2**31 - BLOCK
            and _channels_last(self.weights) is not None
            and len({_channels_last(x) for x in tensors}) == 1
        )


def _channels_last(x: Tensor) -> tuple[int, int] | None:
    """Channels, and entries of one channel of one sample, if x has its channels last in memory.

    (1, 1) if x is contiguous; None for other formats.
    """
    if x.is_contiguous():
        return 1, 1
    if x.dim() > 2 and x.movedim(1, -1).is_contiguous():
        return x.shape[1], x[0, 0].numel()
    return None


class FusedStep:
    """Takes steps, and keeps the tables of the parameters it took the last one for."""

    def __init__(self) -> None:
        self.plans: dict[torch.device, Plan] = {}
        self.captured: list[Plan] = []  # graphs may be replayed that use their memory

    def __reduce__(self) -> tuple[type["FusedStep"], tuple[()]]:
        return FusedStep, ()

    def __call__(self, slots: Sequence[Slot]) -> None:
        """Advance momentum buffers, move weights and count the step, all in place.

        Each slot must be one that `is_taken`. Raises RuntimeError while a CUDA graph is captured
        if no step was taken for these parameters before.
        """
        for device in dict.fromkeys(slot.weights.device for slot in slots):
            with _current(device):
                self._step(device, [slot for slot in slots if slot.weights.device == device])
        torch.autograd.graph.increment_version([slot.weights for slot in slots])

    def _step(self, device: torch.device, slots: Sequence[Slot]) -> None:
        groups = list({id(slot.group): slot.group for slot in slots}.values())
        identity = [_identity(slot, groups) for slot in slots]
        capturing = _is_capturing(device)
        plan = self.plans.get(device)
        if plan is None or plan.identity != identity:
            if capturing:
                raise RuntimeError("take a step of SFW with these parameters before capturing one")
            plan = self.plans[device] = Plan(slots, groups, identity)
        if capturing and not plan.captured:
            plan.captured = True
            self.captured.append(plan)
        plan.write(list(_words(slots, groups)))
        plan.launch()


def _is_capturing(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def _current(device: torch.device) -> AbstractContextManager:
    """Triton launches on the current device."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def _identity(slot: Slot, groups: Sequence[dict[str, Any]]) -> tuple:
    """What the tables hold of a parameter."""
    addresses = (x.data_ptr() for x in (slot.weights, slot.momentum, slot.steps))
    region, rescale = slot.region, slot.group["rescale"]
    size = region.n, region.vertex_entries, region.radius, region.diameter
    group = next(i for i, group in enumerate(groups) if group is slot.group)
    return *addresses, *size, group, rescale, _channels_last(slot.weights)


def _words(slots: Sequence[Slot], groups: Sequence[dict[str, Any]]) -> Iterator[int]:
    """What may change from step to step, as `kernels` has it."""
    yield from (slot.gradient.data_ptr() for slot in slots)
    for group in groups:
        lr, address = group["lr"], 0
        if isinstance(lr, Tensor) and lr.device == slots[0].weights.device:
            lr, address = 0.0, lr.data_ptr()
        sign = -1.0 if group.get("maximize") else 1.0
        numbers = float(lr), 1 - group["momentum"], group["weight_decay"], sign
        yield from (address, *_bits(numbers), 0, 0, 0)


def _bits(numbers: Sequence[float]) -> list[int]:
    """The bits of numbers as float32."""
    return np.array(numbers, np.float32).view(np.uint32).tolist()


class Plan:
    """Tables and workspace on the device for the steps of some parameters."""

    def __init__(
        self, slots: Sequence[Slot], groups: Sequence[dict[str, Any]], identity: list[tuple]
    ) -> None:
        self.identity, self.captured, device = identity, False, slots[0].weights.device
        blocks = np.array([-(-slot.region.n // BLOCK) for slot in slots])
        ends = blocks.cumsum()
        rows = np.zeros((len(slots), kernels.COLUMNS.value), np.int64)
        for i, known in enumerate(identity):
            *addresses, n, k, radius, diameter, group, rescale, channels = known
            gamma = {"gradient": 0.0, "diameter": 1 / diameter, None: 1.0}[rescale]
            rows[i, :12] = (
                *addresses, n, k, *channels, ends[i] - blocks[i], ends[i], *_bits((radius, gamma)),
                len(slots) + group * kernels.GROUP_WORDS.value,
            )  # fmt: skip
        self.rows = _upload(rows, device)
        self.blocks = _upload(np.repeat(np.arange(len(slots), dtype=np.int32), blocks), device)
        count = len(slots) + len(groups) * kernels.GROUP_WORDS.value
        self.written = [-1] * (-(-count // WRITTEN) * WRITTEN)

        def zeros(size: int, dtype: torch.dtype) -> Tensor:
            return torch.zeros(size, dtype=dtype, device=device)

        self.words = zeros(len(self.written), torch.int64)
        self.counts = zeros(len(slots) * kernels.BINS.value, torch.int32)
        self.state = zeros(len(slots) * kernels.STATE.value, torch.int32)
        self.alphas = zeros(len(slots), torch.float32)
        self.ties = zeros(len(self.blocks), torch.int32)
        self.squares, self.distances = (zeros(len(self.blocks), torch.float32) for _ in range(2))

    def write(self, words: list[int]) -> None:
        """Bring `words` up to date on the device.

        Once a graph is captured, its replays may have written others since.
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
        sums, wide = (self.squares, self.distances, self.alphas), {"BLOCK": BLOCK, **OPTIONS}
        kernels.advance[by_block](rows, words, blocks, self.counts, self.squares, **wide)
        kernels.select[by_tensor](
            rows, self.counts, state, BITS=11, FIRST=True, LAST=False, **OPTIONS
        )
        for bits, shift in LATER_DIGITS:
            kernels.refine[by_block](
                rows, blocks, self.counts, state, BITS=bits, SHIFT=shift, **wide
            )
            kernels.select[by_tensor](
                rows, self.counts, state, BITS=bits, FIRST=False, LAST=shift == 0, **OPTIONS
            )
        kernels.count_ties[by_block](rows, blocks, state, self.ties, **wide)
        kernels.limit_ties[by_tensor](rows, state, self.ties, CHUNK=CHUNK, **wide)
        kernels.measure[by_block](rows, blocks, state, self.distances, **wide)
        kernels.set_alpha[by_tensor](rows, words, *sums, CHUNK=CHUNK, **OPTIONS)
        kernels.move[by_block](rows, blocks, state, self.alphas, **wide)


def _upload(values: np.ndarray, device: torch.device) -> Tensor:
    """The values on the device, without waiting for it: pinned memory is kept until it is read."""
    tensor = torch.from_numpy(values)
    if device.type != "cuda":
        return tensor
    return tensor.pin_memory().to(device, non_blocking=True)
