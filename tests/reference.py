"""Plain references for the constraints and the optimizers: by the letter of the paper, not fast."""

import copy

import torch
import torch.nn.functional as F
from torch.func import functional_call

from constraints import LpBall
from constraints.k_sparse import largest_entries


def k_sparse_lmo(g, k, radius):
    """-radius sign(g) on the K entries of largest magnitude, the first of those that tie."""
    flat = g.flatten()
    chosen = flat.abs().sort(descending=True, stable=True).indices[:k]
    v = torch.zeros_like(flat)
    v[chosen] = -radius * flat[chosen].sign()
    return v.view(g.shape)


def k_support_lmo(g, k, radius):
    """-radius g_S / ||g_S||_2, where S are the entries at which `k_sparse_lmo` is not 0."""
    chosen = g * (k_sparse_lmo(g, k, 1.0) != 0)
    largest = chosen.abs().max()
    if largest > 0:
        chosen = chosen / largest
    return -radius * chosen / chosen.norm().clamp(min=1)


class SparseBall(LpBall):
    """An L2 ball of which only the points with at most K entries are vertices, as a user may write.

    Its vertices are those of the K-support ball (Argyriou et al., NeurIPS 2012), which is smaller.
    """

    vertex_entries = property(lambda self: self.k)

    def __init__(self, n, k, *, radius):
        super().__init__(n, 2, radius=radius)
        self.k = k

    def furthest(self, rows):
        return super().furthest(rows * largest_entries(rows.abs(), self.k))


def sfw_step(theta, g, m, region, *, lr, momentum=0.0, rescale, weight_decay=0.0, lmo=None):
    """theta and m after a step of stochastic Frank-Wolfe (Miao et al., ICLR 2022, algorithm 1).

    `m` is None at the first step. `lmo` replaces the region's own.
    """
    g = g + weight_decay * theta
    m = g if m is None else momentum * m + (1 - momentum) * g
    v = (lmo or region.lmo)(m)
    gamma = {
        "gradient": lambda: (m.norm() / (theta - v).norm()).nan_to_num(0).item(),
        "diameter": lambda: 1 / region.diameter,
        None: lambda: 1.0,
    }[rescale]()
    alpha = min(float(lr) * gamma, 1.0)
    return (1 - alpha) * theta + alpha * v, m


def sfw_init_scales(model, batches, regions, lr, iterations):
    """The scales that SFW-Init learns (algorithm 3), by plain autograd, with Adam written out."""
    model = copy.deepcopy(model).train()
    learned = [name for name, p in model.named_parameters() if p.requires_grad]
    weights = [p.detach().clone() for p in model.parameters() if p.requires_grad]
    regions = [r for r, p in zip(regions, model.parameters(), strict=True) if p.requires_grad]
    scales = torch.ones(len(weights), dtype=weights[0].dtype)
    floor = torch.tensor([0.0 if name.endswith("bias") else 0.01 for name in learned]).to(scales)
    first, second = torch.zeros_like(scales), torch.zeros_like(scales)

    def loss_at(parameters, a, b):
        x, y = torch.cat([a[0], b[0]]), torch.cat([a[1], b[1]])
        return F.cross_entropy(
            functional_call(model, dict(zip(learned, parameters, strict=True)), (x,)), y
        )

    for t in range(iterations):
        shared, one, other = (batches[(3 * t + i) % len(batches)] for i in range(3))
        s = scales.clone().requires_grad_()
        theta = [s[i] * w for i, w in enumerate(weights)]
        g = torch.autograd.grad(loss_at(theta, shared, one), theta, create_graph=True)
        moved = []
        for x, gradient, region in zip(theta, g, regions, strict=True):
            v = region.lmo(gradient.detach())
            alpha = torch.clamp(lr * gradient.norm() / (x - v).norm(), max=1)
            moved.append((1 - alpha) * x + alpha * v)
        (loss_at(moved, shared, other) / lr).backward()
        gradient = s.grad.clamp(-1, 1)
        first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
        step = first / (1 - 0.9 ** (t + 1)) / ((second / (1 - 0.999 ** (t + 1))).sqrt() + 1e-8)
        scales = torch.maximum(scales - 1e-3 * step, floor)
    return dict(zip(learned, scales.tolist(), strict=True))
