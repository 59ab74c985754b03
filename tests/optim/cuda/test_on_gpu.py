"""SFW's steps on a GPU: the compiled one is the plain one, and none waits for the device."""

import pytest
import torch

from constraints import KSparsePolytope, build_constraints, make_feasible
from models import build_model
from optim import SFW, cuda

pytestmark = pytest.mark.cuda
RESCALES = ("gradient", "diameter", None)


def train(fused, rescale, steps=3, device="cuda"):
    """The weights and momentum buffers that a few steps along random gradients leave."""
    torch.manual_seed(0)
    model = build_model("ResNet18", 10, 3, 32)
    regions = build_constraints(model, "k_sparse_constraints", tau=5.0, mode="diameter")
    make_feasible(model, regions)
    model = model.to(device, memory_format=torch.channels_last)
    # With this momentum and these gradients sums are exact, so that both steps see the same ties.
    optimizer = SFW(model.parameters(), regions, lr=0.3, momentum=0.5, rescale=rescale, fused=fused)
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        for p in model.parameters():
            draw = torch.randn(p.shape, generator=generator).mul_(64).round_().div_(64)
            p.grad = torch.empty_like(p).copy_(draw)
        optimizer.step()
    buffers = [optimizer.state[p]["momentum_buffer"] for p in model.parameters()]
    return [x.detach().cpu() for x in (*model.parameters(), *buffers)]


def test_the_compiled_step_works_here():
    assert cuda.available(torch.device("cuda", 0)) is None


@pytest.mark.parametrize("rescale", RESCALES)
def test_the_compiled_step_is_the_plain_one(rescale):
    fused, plain = train(True, rescale), train(False, rescale)
    for x, y, z in zip(fused, plain, train(None, rescale, device="cpu"), strict=True):
        torch.testing.assert_close(x, y)
        torch.testing.assert_close(x, z)


def test_two_runs_give_the_same_bits():
    for x, y in zip(train(True, "gradient"), train(True, "gradient"), strict=True):
        assert torch.equal(x, y)


def test_replays_and_steps_beside_them_do_not_disturb_each_other():
    """Each has its own gradients, at its own address; the learning rate is on the device."""
    region, lr = KSparsePolytope(10_000, 500, radius=0.1), torch.tensor(0.1, device="cuda")
    p, q = (torch.nn.Parameter(torch.zeros(10_000, device="cuda")) for _ in range(2))
    captured, plain = SFW([p], [region], lr=lr, fused=True), SFW([q], [region], lr=lr, fused=False)
    static, graph = torch.zeros(10_000, device="cuda"), torch.cuda.CUDAGraph()
    for i in range(8):
        if i == 1:  # the first step cannot be captured
            p.grad = static
            with torch.cuda.graph(graph):
                captured.step()
        lr.fill_(0.1 / (i + 1))
        q.grad = torch.randn(10_000, device="cuda")
        if i % 3:
            static.copy_(q.grad)
            graph.replay()
        else:
            p.grad = q.grad.clone()
            captured.step()
        plain.step()
        torch.testing.assert_close(p, q)


def test_a_step_can_be_captured_in_a_cuda_graph():
    model, eager = (build_model("ResNet18", 10, 3, 32).cuda() for _ in range(2))
    eager.load_state_dict(model.state_dict())
    regions = build_constraints(model, "k_sparse_constraints", tau=5.0, mode="diameter")
    captured, optimizer = (SFW(m.parameters(), regions, lr=0.1) for m in (model, eager))
    gradients = [torch.randn_like(p) for p in eager.parameters()]
    for m in (model, eager):
        for p, gradient in zip(m.parameters(), gradients, strict=True):
            p.grad = gradient.clone()
    captured.step()  # makes the momentum buffers
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured.step()
    graph.replay()
    graph.replay()
    for _ in range(3):
        optimizer.step()
    for p, q in zip(model.parameters(), eager.parameters(), strict=True):
        torch.testing.assert_close(p, q)


@pytest.mark.parametrize("kind", ["k_sparse_constraints", "l2_constraints"])
@pytest.mark.parametrize("rescale", ["gradient", "diameter", None])
def test_an_sfw_step_never_waits_for_the_device(kind, rescale):
    model = build_model("ResNet18", 10, 3, 32).cuda()
    regions = build_constraints(model, kind, tau=5.0, mode="diameter")
    optimizer = SFW(model.parameters(), regions, rescale=rescale)
    for p in model.parameters():
        p.grad = torch.randn_like(p)
    optimizer.step()  # tries the fused step, which waits
    torch.cuda.set_sync_debug_mode("error")
    try:
        optimizer.step()
        optimizer.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
