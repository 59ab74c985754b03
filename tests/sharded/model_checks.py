"""What must work on sharded networks: FSDP2, tensor parallelism, checkpoints, pruning."""

import torch
import torch.distributed as dist
from tensor_checks import assert_processes_agree, whole
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Partial, Shard, distribute_tensor
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    parallelize_module,
)

from constraints import KSparsePolytope, LpBall, build_constraints, gauges, make_feasible
from optim import SFW, ProjectedSGD, sfw_init
from utils.prune import global_prune
from utils.prune.ranking import MagnitudeRanking


class Block(nn.Module):
    """A layer of a small transformer."""

    def __init__(self, width=12):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.up, self.down = nn.Linear(width, 17), nn.Linear(17, width)

    def forward(self, x):
        y = self.norm(x)
        x = x + nn.functional.scaled_dot_product_attention(
            self.query(y), self.key(y), self.value(y)
        )
        return x + self.down(self.up(x).relu())


def transformer():
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(11, 12), Block(), Block(), nn.Linear(12, 11))


def shard(model):
    """Under FSDP2; four processes have two copies of each shard (HSDP)."""
    world = dist.get_world_size()
    shape, names = ((2, 2), ("copies", "shards")) if world == 4 else ((world,), ("shards",))
    mesh = init_device_mesh("cpu", shape, mesh_dim_names=names)
    for layer in model:
        fully_shard(layer, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def train(model, optimizer, steps=6, seed=0):
    """Each process has the same batch, so that gradients are those of one process."""
    generator, losses = torch.Generator().manual_seed(seed), []
    for _ in range(steps):
        tokens = torch.randint(11, (4, 9), generator=generator)
        loss = nn.functional.cross_entropy(
            model(tokens).flatten(0, 1), tokens.roll(-1, 1).flatten()
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def built(model, kind="k_sparse_constraints", optimizer_class=SFW, lr=0.1):
    constraints = build_constraints(model, kind, tau=3)
    make_feasible(model, constraints)
    return optimizer_class(model.parameters(), constraints, lr=lr)


def check_a_transformer_under_fully_shard():
    for optimizer_class, lr in ((SFW, 0.1), (ProjectedSGD, 0.01)):
        for kind in ("k_sparse_constraints", "l2_constraints"):
            alone, sharded = transformer(), shard(transformer())
            losses = [
                train(model, built(model, kind, optimizer_class, lr)) for model in (alone, sharded)
            ]
            assert losses[0][-1] < losses[0][0]
            torch.testing.assert_close(*map(torch.tensor, losses), rtol=1e-4, atol=1e-5)
            for p, q in zip(alone.parameters(), sharded.parameters(), strict=True):
                torch.testing.assert_close(whole(q), p.detach(), rtol=1e-3, atol=1e-5)
                assert_processes_agree(whole(q))


def check_regions_are_the_same_before_and_after_fully_shard_and_on_the_meta_device():
    def described(model):
        return [region.describe() for region in build_constraints(model, "k_sparse_constraints")]

    with torch.device("meta"):
        meta = transformer()
    expected = described(transformer())
    assert described(shard(transformer())) == described(meta) == described(shard(meta)) == expected


class Scale(nn.Module):
    """A layer without an initialiser."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.randn(7))


class Scaled(nn.Linear):
    """A layer whose initialiser leaves one of its parameters."""

    def __init__(self):
        super().__init__(4, 5)
        self.scale = nn.Parameter(torch.randn(7))


def check_parameters_that_no_initialiser_draws_need_values():
    def radii(model):
        return torch.tensor(
            [region.radius for region in build_constraints(model, "l2_constraints")]
        )

    def network(layer):
        torch.manual_seed(0)
        return nn.Sequential(nn.MultiheadAttention(6, 2), layer(), nn.LayerNorm(3))

    for layer in (Scale, Scaled):
        torch.testing.assert_close(radii(shard(network(layer))), radii(network(layer)))
        with torch.device("meta"):
            meta = network(layer)
        refused(ValueError, "draws the parameter 'scale'", lambda meta=meta: radii(meta))


def check_gauges_of_sharded_parameters():
    alone, sharded = transformer(), shard(transformer())
    constraints = build_constraints(alone, "k_sparse_constraints", tau=3)
    found, expected = gauges(sharded, constraints), gauges(alone, constraints)
    assert found.keys() == expected.keys()
    torch.testing.assert_close(*(torch.tensor(list(x.values())) for x in (found, expected)))


def check_checkpoints_go_on_bit_for_bit():
    for flat in (False, True):
        options = StateDictOptions(flatten_optimizer_state_dict=flat)
        model = shard(transformer())
        optimizer = built(model)
        train(model, optimizer, 2)
        saved = get_optimizer_state_dict(model, optimizer, options=options)
        saved = {**saved} if flat else {"state": {**saved["state"]}, **saved}
        weights = {name: x.clone() for name, x in model.state_dict().items()}
        saved = clone_all(saved)
        expected = train(model, optimizer, 2, seed=1)
        other = shard(transformer())
        resumed = built(other)
        other.load_state_dict(weights)
        set_optimizer_state_dict(other, resumed, saved, options=options)
        buffer = resumed.state[next(other.parameters())]["momentum_buffer"]
        assert isinstance(buffer, DTensor) and buffer.placements == (Shard(0),)
        assert train(other, resumed, 2, seed=1) == expected


def clone_all(x):
    if isinstance(x, dict):
        return {key: clone_all(value) for key, value in x.items()}
    return x.clone() if isinstance(x, torch.Tensor) else x


def check_tensor_parallel_layers_and_both_at_once():
    world = dist.get_world_size()
    mesh = init_device_mesh("cpu", (1, world), mesh_dim_names=("dp", "tp"))
    both = init_device_mesh("cpu", (world, 1), mesh_dim_names=("dp", "tp"))

    def network():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(5, 12), nn.ReLU(), nn.Linear(12, 3))

    def run(model):
        constraints = build_constraints(model, "k_sparse_constraints", tau=3)
        make_feasible(model, constraints)
        optimizer = SFW(model.parameters(), constraints, lr=0.1)
        for seed in range(3):
            x = torch.randn(8, 5, generator=torch.Generator().manual_seed(seed))
            optimizer.zero_grad()
            model(x).square().sum().backward()
            optimizer.step()
        return [whole(p) for p in model.parameters()]

    expected = run(network())
    for grid in (mesh, both):
        model = network()
        plan = {"0": ColwiseParallel(), "2": RowwiseParallel()}
        parallelize_module(model, grid["tp"], plan)
        if grid is both:
            fully_shard(model, mesh=grid["dp"])
        for x, y in zip(run(model), expected, strict=True):
            torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-6)


def check_global_pruning():
    for ratio, levels in ((0.0, None), (0.77, None), (0.3, 4), (1.0, 4)):
        alone, sharded = transformer(), shard(transformer())
        with torch.no_grad():
            for p, q in zip(alone.parameters(), sharded.parameters(), strict=True):
                if levels:
                    p.copy_((p * levels).round() / levels)
                q.copy_(distribute_tensor(p.detach(), q.device_mesh, q.placements))
        assert global_prune(alone, ratio) == global_prune(sharded, ratio)
        for p, q in zip(alone.parameters(), sharded.parameters(), strict=True):
            assert torch.equal(whole(q), p.detach())


def check_what_cannot_be_done_is_refused_in_words():
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    p = nn.Parameter(distribute_tensor(torch.zeros(6), mesh, [Shard(0)]))
    region = KSparsePolytope(6, 2, radius=1.0)
    refused(RuntimeError, "DTensor", lambda: SFW([p], [region], fused=True))
    partial = DTensor.from_local(torch.zeros(6), mesh, [Partial()])
    refused(ValueError, "Partial", lambda: region.shift_inside(partial))
    model = nn.ParameterList([p])
    refused(ValueError, "global_prune", lambda: MagnitudeRanking(model))
    refused(ValueError, "before fully_shard", lambda: sfw_init(model, [], [region]))
    p.grad = distribute_tensor(torch.ones(6), mesh, [Shard(0)])
    optimizer = SFW([p], [region])
    optimizer.state[p].update(step=1, momentum_buffer=torch.zeros(6))
    refused(RuntimeError, "set_optimizer_state_dict", optimizer.step)


def check_fsdp1_and_zero_are_refused_by_name():
    from torch.distributed.fsdp import FullyShardedDataParallel
    from torch.distributed.optim import ZeroRedundancyOptimizer

    for original in (False, True):
        model = FullyShardedDataParallel(
            nn.Linear(6, 4), device_id=torch.device("cpu"), use_orig_params=original
        )
        refused(ValueError, "FSDP1", lambda m=model: build_constraints(m, "k_sparse_constraints"))
        own = [LpBall(p.numel(), 2, radius=1.0) for p in model.parameters()]
        refused(ValueError, "FSDP1", lambda m=model, own=own: SFW(m.parameters(), own))
    model = nn.Linear(6, 4)
    constraints = build_constraints(model, "k_sparse_constraints")
    refused(
        ValueError,
        "ZeroRedundancyOptimizer",
        lambda: ZeroRedundancyOptimizer(model.parameters(), SFW, constraints=constraints),
    )


def refused(error, words, action):
    try:
        action()
    except error as caught:
        assert words in str(caught), caught
    else:
        raise AssertionError(f"not refused: {words}")
