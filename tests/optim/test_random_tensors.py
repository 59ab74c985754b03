"""The fused step is the plain one on tensors of random shapes, sizes of K and memory formats."""

import random

import pytest
import torch

from constraints import KSparsePolytope
from optim import RESCALES, SFW

SIDES = {1: 300_000, 2: 500, 3: 60, 4: 24}  # the longest side of a tensor, by its dimensions
TENSORS, ROUNDS = 8, {"cpu": 2, "cuda": 20}


def stepped(seed, device, rescale, fused):
    """Weights and momentum buffers after three steps from random weights along random gradients."""
    draw, generator = random.Random(seed), torch.Generator().manual_seed(seed)

    def fill(x):
        # Multiples of 1/64, whose sums in m are exact, so that both steps see the same ties. They
        # are about as large as weights: alpha is then at most lr.
        return x.copy_(torch.randn(x.shape, generator=generator).mul_(6).round_().div_(64))

    parameters, regions = [], []
    for dimensions in draw.choices(list(SIDES), k=TENSORS):
        shape = [draw.randint(1, SIDES[dimensions]) for _ in range(dimensions)]
        last = len(shape) == 4 and draw.random() < 0.5
        layout = torch.channels_last if last else torch.contiguous_format
        x = fill(torch.empty(shape, device=device, memory_format=layout))
        parameters.append(torch.nn.Parameter(x))
        k = draw.choice([1, max(1, x.numel() // 20), x.numel()])
        regions.append(KSparsePolytope(x.numel(), k, radius=0.3))
    optimizer = SFW(parameters, regions, lr=0.3, momentum=0.5, rescale=rescale, fused=fused)
    for _ in range(3):
        for p in parameters:
            p.grad = fill(torch.empty_like(p))
        optimizer.step()
    buffers = [optimizer.state[p]["momentum_buffer"] for p in parameters]
    return [x.detach() for x in (*parameters, *buffers)]


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
@pytest.mark.parametrize("rescale", RESCALES)
def test_the_fused_step_is_the_plain_one_on_random_tensors(rescale, device):
    for seed in range(ROUNDS[device]):
        pairs = (stepped(seed, device, rescale, fused) for fused in (True, False))
        for fused, plain in zip(*pairs, strict=True):
            torch.testing.assert_close(fused, plain, rtol=1e-5, atol=1e-6)
