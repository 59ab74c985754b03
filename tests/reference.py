"""Plain references for the constraints and the optimizers: by the letter of the paper, not fast."""

import torch


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
