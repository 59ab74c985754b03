"""SFW(fused=...): which step is taken, and what an error says where a fused one cannot be."""

import pytest
import torch
from torch import nn

from constraints import KSparsePolytope, LpBall
from optim import SFW
from optim.cpu.step import CpuStep


@pytest.mark.parametrize(
    "region",
    [KSparsePolytope(5000, 250, radius=1.0), *(LpBall(5000, p, radius=1.0) for p in (1, 2))],
    ids=repr,
)
def test_the_fused_step_is_taken_by_itself_where_it_can_be(region, monkeypatch):
    calls, take = [], CpuStep._take
    monkeypatch.setattr(CpuStep, "_take", lambda *a: calls.append(1) or take(*a))
    for fused in (None, True, False):
        p = nn.Parameter(torch.zeros(5000))
        p.grad = torch.linspace(0, 1, 5000)
        SFW([p], [region], fused=fused).step()
        calls.append(fused)
    assert calls == [1, None, 1, True, False]


def strided_gradient():
    p = nn.Parameter(torch.zeros(6))
    p.grad = torch.ones(12)[::2]
    return p


POLYTOPE = KSparsePolytope(6, 2, radius=1.0)


@pytest.mark.parametrize(
    ("make", "region", "message"),
    [
        (
            lambda: nn.Parameter(torch.zeros(6)),
            LpBall(6, 3, radius=1.0),
            "there is none for LpBall.n=6",
        ),
        (lambda: nn.Parameter(torch.zeros(6, device="meta")), POLYTOPE, "no fused step on meta"),
        (strided_gradient, POLYTOPE, "lie in memory alike"),
    ],
)
def test_a_required_fused_step_that_cannot_be_taken_says_why(make, region, message):
    p = make()
    with pytest.raises(RuntimeError, match=message):
        SFW([p], [region], fused=True).step()


def test_a_required_fused_step_is_refused_before_anything_moves():
    p, q = nn.Parameter(torch.zeros(6)), strided_gradient()
    p.grad = torch.ones(6)
    optimizer = SFW([p, q], [POLYTOPE, POLYTOPE], fused=True)
    with pytest.raises(RuntimeError, match="lie in memory alike"):
        optimizer.step()
    assert torch.equal(p, torch.zeros(6)) and optimizer.state[p]["step"] == 0


def test_a_group_has_its_own_choice_of_step():
    p, q = nn.Parameter(torch.zeros(6)), nn.Parameter(torch.zeros(4))
    groups = [{"params": [p], "fused": True}, {"params": [q], "fused": False}]
    optimizer = SFW(groups, [POLYTOPE, LpBall(4, 2, radius=1.0)], lr=0.5)
    p.grad, q.grad = torch.ones(6), torch.ones(4)
    optimizer.step()
    assert p.norm() > 0 and q.norm() > 0


@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.Parameter(torch.ones(6, dtype=torch.bfloat16)),
        lambda: nn.Parameter(torch.ones(6, dtype=torch.float16)),
        lambda: nn.Parameter(torch.ones(2, 6)[:, ::2]),
        lambda: nn.Parameter(torch.ones(3, 2).T),
    ],
    ids=["bfloat16", "float16", "strided", "transposed"],
)
def test_parameters_of_any_type_and_layout_are_stepped(make):
    p, region = make(), KSparsePolytope(6, 2, radius=1.0)
    p.grad = torch.arange(6.0).view(p.shape).to(p.dtype)
    SFW([p], [region], rescale=None).step()
    assert p.detach().flatten().tolist() == [0, 0, 0, 0, -1, -1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_state_follows_a_parameter_into_another_memory_format(dtype):
    p = nn.Parameter(torch.zeros(2, 3, 2, 2, dtype=dtype))
    optimizer = SFW([p], [KSparsePolytope(24, 2, radius=1.0)], rescale=None, fused=True)
    for layout in (torch.contiguous_format, torch.channels_last):
        p.data = p.data.contiguous(memory_format=layout)
        p.grad = torch.arange(24.0).view(2, 3, 2, 2).to(dtype, memory_format=layout)
        optimizer.step()
    assert p.detach().flatten().tolist() == [0] * 22 + [-1, -1]


def test_gradients_laid_out_unlike_their_weights_are_taken():
    p = nn.Parameter(torch.zeros(2, 3, 2, 2).contiguous(memory_format=torch.channels_last))
    p.grad = torch.arange(24.0).view(2, 3, 2, 2).contiguous()
    SFW([p], [KSparsePolytope(24, 2, radius=1.0)], rescale=None).step()
    assert p.detach().flatten().tolist() == [0] * 22 + [-1, -1]


def test_autograd_notices_that_weights_moved():
    p = nn.Parameter(torch.ones(3))
    loss = (p * p).sum()
    p.grad = torch.ones(3)
    SFW([p], [KSparsePolytope(3, 1, radius=1.0)]).step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
