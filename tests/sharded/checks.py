"""What must hold of sharded parameters; each check runs in groups of processes on the CPU.

`python checks.py FOLDER GROUPS` writes for each process what failed. GROUPS is a JSON object: for
each number of processes the names of the checks, such as '{"2": ["steps"]}'. test_sharded.py starts
it, since processes are forked from one that has no threads.
"""

import json
import math
import sys
import traceback
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

import optim.cpu.step  # noqa: F401  before processes are forked, since it takes a second
from constraints import KSparsePolytope, LpBall, build_constraints, gauges, make_feasible
from optim import SFW, ProjectedSGD, sfw_init
from utils.prune import global_prune
from utils.prune.weights.ranking import MagnitudeRanking

# Shapes that two and four processes cannot share evenly, some of which leave a process nothing.
SHAPES = [(), (7,), (5, 4), (1, 6)]


def cases():
    """Pairs of equal parameters, whole and sharded, with a region for both."""
    world, generator = dist.get_world_size(), torch.Generator().manual_seed(0)
    line = init_device_mesh("cpu", (world,))
    grid = init_device_mesh("cpu", (1, world) if world % 2 else (2, world // 2))
    layouts = [(line, (Shard(0),)), (line, (Shard(1),)), (line, (Replicate(),)),
               (grid, (Shard(0), Shard(1))), (grid, (Shard(0), Shard(0))),
               (grid, (Replicate(), Shard(0)))]  # fmt: skip
    for mesh, placements in layouts:
        for shape in SHAPES:
            if max((p.dim for p in placements if not p.is_replicate()), default=-1) >= len(shape):
                continue
            n = math.prod(shape)
            for region in (KSparsePolytope(n, max(1, n // 3), radius=0.5), LpBall(n, 2, radius=1)):
                x = torch.randn(shape, generator=generator)
                # A replica has the memory of what it is made from, if that is not copied.
                yield x, distribute_tensor(x.clone(), mesh, placements), region


def whole(x):
    return x.detach().full_tensor() if isinstance(x, DTensor) else x.detach()


def check_steps():
    """They are those of one process, bit for bit: entries that tie, half precision, weight decay,
    and gradients that are yet to be summed."""
    for optimizer_class in (SFW, ProjectedSGD):
        for dtype in (torch.float32, torch.bfloat16):
            pairs = [
                (nn.Parameter(x.to(dtype)), nn.Parameter(y.to(dtype)), r)
                for x, y, r in list(cases())[:: 1 if dtype == torch.float32 else 3]
            ]
            regions = [region for _, _, region in pairs]
            both = [
                optimizer_class([pair[side] for pair in pairs], regions, lr=0.2, weight_decay=0.1)
                for side in (0, 1)
            ]
            for seed in range(2):
                generator = torch.Generator().manual_seed(seed)
                for p, q, _ in pairs:
                    p.grad = torch.randn(p.shape, generator=generator).mul(2).round().to(dtype)
                    q.grad = distribute_tensor(p.grad.clone(), q.device_mesh, q.placements)
                for optimizer in both:
                    optimizer.step()
                for p, q, region in pairs:
                    assert torch.equal(whole(q), p.detach()), (region, q.placements)
                    assert both[1].state[q]["momentum_buffer"].placements == q.placements
            if optimizer_class is SFW:
                assert torch.equal(*(optimizer.mean_alpha() for optimizer in both))


def check_gradients_that_are_yet_to_be_summed():
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    p = nn.Parameter(distribute_tensor(torch.zeros(6), mesh, [Shard(0)]))
    p.grad = DTensor.from_local(torch.arange(6.0), mesh, [Partial()])
    SFW([p], [KSparsePolytope(6, 2, radius=1.0)], rescale=None).step()
    assert whole(p).tolist() == [0, 0, 0, 0, -1, -1]


def check_a_broken_entry_breaks_its_whole_parameter():
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for optimizer_class in (SFW, ProjectedSGD):
        p = nn.Parameter(distribute_tensor(torch.zeros(7), mesh, [Shard(0)]))
        p.grad = distribute_tensor(torch.tensor([1.0] * 6 + [math.nan]), mesh, [Shard(0)])
        optimizer_class([p], [KSparsePolytope(7, 2, radius=1.0)]).step()
        assert whole(p).isnan().all()


class Block(nn.Module):
    """A layer of a small transformer."""

    def __init__(self, width=12):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.up, self.down = nn.Linear(width, 17), nn.Linear(17, width)

    def forward(self, x):
        y = self.norm(x)
        y = self.query(y), self.key(y), self.value(y)
        x = x + nn.functional.scaled_dot_product_attention(*y)
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


def train(model, optimizer, steps=3, seed=0):
    """Each process has the same batch, so that gradients are those of one process."""
    generator, losses = torch.Generator().manual_seed(seed), []
    for _ in range(steps):
        tokens = torch.randint(11, (4, 9), generator=generator)
        logits, targets = model(tokens).flatten(0, 1), tokens.roll(-1, 1).flatten()
        loss = nn.functional.cross_entropy(logits, targets)
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
    """Training, gauges and regions; copies of a shard keep the same bits."""
    for optimizer_class, lr in ((SFW, 0.1), (ProjectedSGD, 0.01)):
        alone, sharded = transformer(), shard(transformer())
        both = [built(model, optimizer_class=optimizer_class, lr=lr) for model in (alone, sharded)]
        regions = [[r.describe() for r in o.param_groups[0]["constraints"]] for o in both]
        assert regions[0] == regions[1]
        losses = [train(model, o) for model, o in zip((alone, sharded), both, strict=True)]
        assert losses[0][-1] < losses[0][0]
        torch.testing.assert_close(*map(torch.tensor, losses), rtol=1e-4, atol=1e-5)
        for p, q in zip(alone.parameters(), sharded.parameters(), strict=True):
            torch.testing.assert_close(whole(q), p.detach(), rtol=1e-3, atol=1e-5)
            first = whole(q).clone()
            dist.broadcast(first, 0)
            assert torch.equal(first, whole(q))
        regions = both[0].param_groups[0]["constraints"]
        found, expected = gauges(sharded, regions), gauges(alone, regions)
        assert found.keys() == expected.keys()
        torch.testing.assert_close(*(torch.tensor(list(x.values())) for x in (found, expected)))


def check_regions_are_the_same_on_the_meta_device():
    def described(model):
        return [region.describe() for region in build_constraints(model, "k_sparse_constraints")]

    with torch.device("meta"):
        meta = transformer()
    assert described(meta) == described(transformer())
    assert described(shard(meta)) == described(meta)


def check_tensor_parallel_layers():
    """Alone, and with fully_shard on top."""
    world = dist.get_world_size()

    def run(model):
        optimizer = built(model)
        for seed in range(3):
            x = torch.randn(8, 5, generator=torch.Generator().manual_seed(seed))
            optimizer.zero_grad()
            model(x).square().sum().backward()
            optimizer.step()
        return [whole(p) for p in model.parameters()]

    def network():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(5, 12), nn.ReLU(), nn.Linear(12, 3))

    expected = run(network())
    for shape in ((1, world), (world, 1)):
        grid, model = init_device_mesh("cpu", shape, mesh_dim_names=("dp", "tp")), network()
        plan = {"0": ColwiseParallel(), "2": RowwiseParallel()}
        parallelize_module(model, grid["tp"], plan)
        if shape[0] > 1:
            fully_shard(model, mesh=grid["dp"])
        for x, y in zip(run(model), expected, strict=True):
            torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-6)


def check_checkpoints_go_on_bit_for_bit():
    model = shard(transformer())
    optimizer = built(model)
    train(model, optimizer, 2)
    saved = clone_all(get_optimizer_state_dict(model, optimizer))
    weights = {name: x.clone() for name, x in model.state_dict().items()}
    expected = train(model, optimizer, 2, seed=1)
    other = shard(transformer())
    resumed = built(other)
    other.load_state_dict(weights)
    set_optimizer_state_dict(other, resumed, saved)
    buffer = resumed.state[next(other.parameters())]["momentum_buffer"]
    assert isinstance(buffer, DTensor)
    assert train(other, resumed, 2, seed=1) == expected


def clone_all(x):
    if isinstance(x, dict):
        return {key: clone_all(value) for key, value in x.items()}
    return x.clone() if isinstance(x, torch.Tensor) else x


def check_pruning():
    for ratio, levels in ((0.77, None), (0.3, 4)):
        alone, sharded = transformer(), shard(transformer())
        with torch.no_grad():
            for p, q in zip(alone.parameters(), sharded.parameters(), strict=True):
                if levels:  # many entries tie
                    p.copy_((p * levels).round() / levels)
                q.copy_(distribute_tensor(p.detach(), q.device_mesh, q.placements))
        assert global_prune(alone, ratio) == global_prune(sharded, ratio)
        for p, q in zip(alone.parameters(), sharded.parameters(), strict=True):
            assert torch.equal(whole(q), p.detach())
        by_layer = [MagnitudeRanking(model, "uniform", "weights") for model in (alone, sharded)]
        assert by_layer[0].prune(0.9) == by_layer[1].prune(0.9)
        assert all(map(torch.equal, map(whole, sharded.parameters()), alone.parameters()))


def check_what_cannot_be_done_is_refused_in_words():
    from torch.distributed.fsdp import FullyShardedDataParallel

    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    p = nn.Parameter(distribute_tensor(torch.zeros(6), mesh, [Shard(0)]))
    region, model = KSparsePolytope(6, 2, radius=1.0), nn.ParameterList([p])
    with pytest.raises(TypeError, match="full_tensor"):
        region.shift_inside(p)
    with pytest.raises(ValueError, match="before fully_shard"):
        sfw_init(model, [], [region])
    partial = nn.Parameter(DTensor.from_local(torch.zeros(6), mesh, [Partial()]))
    with pytest.raises(ValueError, match="Partial"):
        SFW([partial], [region])
    p.grad = distribute_tensor(torch.ones(6), mesh, [Shard(0)])
    optimizer = SFW([p], [region])
    optimizer.state[p].update(step=1, momentum_buffer=torch.zeros(6))
    with pytest.raises(RuntimeError, match="set_optimizer_state_dict"):
        optimizer.step()
    for original in (False, True):
        options = dict(device_id=torch.device("cpu"), use_orig_params=original)
        flat = FullyShardedDataParallel(nn.Linear(6, 4), **options)
        with pytest.raises(ValueError, match="FSDP1"):
            build_constraints(flat, "k_sparse_constraints")
        with pytest.raises(ValueError, match="FSDP1"):
            SFW(flat.parameters(), [LpBall(p.numel(), 2, radius=1.0) for p in flat.parameters()])


def work(rank, world, folder, names):
    torch.set_num_threads(1)
    store = f"file://{folder}/store{world}"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=world)
    path, outcomes = Path(folder) / f"{world}_{rank}.json", {}
    try:
        for name in names:
            globals()[f"check_{name}"]()
            outcomes[name] = ""
    except Exception:  # the other processes may wait for this one: nothing goes on
        outcomes |= dict.fromkeys(names[names.index(name) :], traceback.format_exc())
        raise
    finally:
        path.write_text(json.dumps(outcomes))
    dist.destroy_process_group()


if __name__ == "__main__":
    for size, names in json.loads(sys.argv[2]).items():
        mp.start_processes(work, (int(size), sys.argv[1], names), int(size), start_method="fork")
