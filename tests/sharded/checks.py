"""What sharded parameters must do, checked in groups of two to four processes on the CPU.

`python checks.py FOLDER GROUPS` writes for each process what failed. GROUPS is a JSON object: for
each number of processes the names of the checks, such as '{"2": ["sfw", "projected_sgd"]}'.
test_sharded.py starts it, since processes are forked from one that has no threads.
"""

import inspect
import json
import math
import sys
import traceback
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    parallelize_module,
)
from torch.distributed.tensor.placement_types import _StridedShard

from constraints import KSparsePolytope, LpBall, Region, build_constraints, gauges, make_feasible
from constraints.dtensor import entries, positions
from constraints.parts import Norm, wholes_of
from optim import SFW, ProjectedSGD, sfw_init
from utils.prune import global_prune
from utils.prune.ranking import MagnitudeRanking

# Shapes that two and three processes cannot share evenly, some of which leave a process nothing.
SHAPES = [(), (7,), (5, 4), (1, 6), (4, 3, 2, 2)]


class Cube(Region):
    """A user's region that knows nothing of shards."""

    def __init__(self, n, k, *, radius=None, diameter=None):
        self._set_size(n, radius, diameter, 2 * n**0.5)

    def lmo(self, g):
        assert not isinstance(g, DTensor)
        return -self.radius * g.sign()

    def shift_inside(self, x):
        return x * (self.radius / x.abs().max()).clamp(max=1)

    def euclidean_project(self, x):
        assert not isinstance(x, DTensor)
        return x.clamp(-self.radius, self.radius)


def regions(n):
    ks = {1, max(1, n // 3), n}
    return [
        *(KSparsePolytope(n, k, radius=0.5) for k in ks),
        *(LpBall(n, p, radius=0.5) for p in (1, 2, 3, math.inf)),
        Cube(n, 1, radius=0.4),
    ]


def meshes():
    """A mesh of all processes, and for each dimension of it the placements to try."""
    world = dist.get_world_size()
    line = init_device_mesh("cpu", (world,))
    yield line, [(Shard(0),), (Shard(1),), (Replicate(),)]
    grid = init_device_mesh("cpu", (1, world) if world % 2 else (2, world // 2))
    yield grid, [(Shard(0), Shard(1)), (Shard(0), Shard(0)), (Replicate(), Shard(0))]


def cases():
    """Pairs of equal parameters, whole and sharded, with a region for both, in all combinations."""
    generator = torch.Generator().manual_seed(0)
    for mesh, choices in meshes():
        for placements in choices:
            for shape in SHAPES:
                least = max((p.dim for p in placements if not p.is_replicate()), default=-1)
                if least >= len(shape):
                    continue
                for i, region in enumerate(regions(math.prod(shape))):
                    x = torch.randn(shape, generator=generator) * 2
                    x = (x * 2).round() / 2 if i % 2 else x
                    # A replica has the memory of what it is made from, if that is not copied.
                    sharded = distribute_tensor(x.clone(), mesh, placements)
                    yield nn.Parameter(x), nn.Parameter(sharded), region


def set_gradients(pairs, seed, levels=2.0):
    """The same gradients for both, of few values, so that many entries tie or are 0."""
    generator = torch.Generator().manual_seed(seed)
    for i, (p, q, _) in enumerate(pairs):
        g = torch.randn(p.shape, generator=generator)
        p.grad = ((g * levels).round() / levels if i % 3 else g).to(p.dtype)
        q.grad = distribute_tensor(p.grad.clone(), q.device_mesh, q.placements)


def whole(x):
    return x.detach().full_tensor() if isinstance(x, DTensor) else x.detach()


def assert_same(pairs):
    for p, q, region in pairs:
        torch.testing.assert_close(
            whole(q), p.detach(), equal_nan=True,
            msg=lambda m, q=q, region=region: f"{region} {q.shape} {q.placements}: {m}",
        )  # fmt: skip


def steps_are_those_of_one_process(optimizer_class, dtype=None, **options):
    pairs = list(cases())[:: 1 if optimizer_class is SFW and not dtype and not options else 4]
    if dtype is not None:
        pairs = [(nn.Parameter(p.to(dtype)), nn.Parameter(q.to(dtype)), r) for p, q, r in pairs]
    both = []
    for side in (0, 1):
        half = len(pairs) // 2
        groups = [
            {"params": [pair[side] for pair in part], "constraints": [pair[2] for pair in part]}
            for part in (pairs[:half], pairs[half:])
        ]
        groups[1]["weight_decay"] = 0.1
        both.append(optimizer_class(groups, [], lr=0.2, **options))
    for seed in range(3 if optimizer_class is ProjectedSGD or dtype else 6):
        set_gradients(pairs, seed)
        for optimizer in both:
            optimizer.step()
        assert_same(pairs)
        if optimizer_class is SFW:
            alone, sharded = (optimizer.mean_alpha() for optimizer in both)
            torch.testing.assert_close(sharded, alone)
            assert_processes_agree(sharded)


def check_sfw():
    steps_are_those_of_one_process(SFW)


def check_sfw_without_gradient_rescaling():
    steps_are_those_of_one_process(SFW, dtype=torch.float64, rescale="diameter")


def check_sfw_in_half_precision():
    steps_are_those_of_one_process(SFW, dtype=torch.bfloat16)


def check_projected_sgd():
    steps_are_those_of_one_process(ProjectedSGD)


def check_one_vertex_for_every_layout():
    """All magnitudes tie: the first in the tensor's own order are chosen, however it is sharded."""
    for mesh, choices in meshes():
        for placements in choices:
            for shape in [(6, 4), (3, 5)]:
                n = math.prod(shape)
                g = torch.ones(shape)
                v = KSparsePolytope(n, 7, radius=1.0).lmo(distribute_tensor(g, mesh, placements))
                assert whole(v).flatten().tolist() == [-1.0] * 7 + [0.0] * (n - 7), placements


def check_positions_are_places_in_the_whole_tensor():
    for mesh, choices in meshes():
        if mesh.ndim == 1:  # a placement that fully_shard makes of tensor-parallel layers
            choices.append([_StridedShard(0, split_factor=2)])
        for placements in choices:
            for shape in [(6, 4), (3, 5), (1, 6)]:
                places = torch.arange(math.prod(shape)).view(shape)
                x = distribute_tensor(places, mesh, placements, src_data_rank=None)
                own = entries(x).flatten()
                assert torch.equal(positions(x, torch.arange(own.numel())), own), placements


def check_methods_of_regions_take_sharded_tensors():
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for shape in [(1, 6), (5, 4)]:
        for region in regions(math.prod(shape))[:-1]:
            x = torch.randn(shape, generator=torch.Generator().manual_seed(1)) * 3
            for values in (x, x / 100, torch.full_like(x, math.nan)):
                sharded = distribute_tensor(values, mesh, [Shard(0)])
                for method in ("lmo", "shift_inside", "euclidean_project"):
                    result = getattr(region, method)(sharded)
                    expected = getattr(region, method)(values)
                    torch.testing.assert_close(whole(result), expected, equal_nan=True)
                    assert result.placements == sharded.placements
                gauge = region.gauge(sharded)
                torch.testing.assert_close(gauge, region.gauge(values), equal_nan=True)


def check_a_broken_entry_breaks_its_whole_parameter_and_no_other():
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for optimizer_class in (SFW, ProjectedSGD):
        for value in (math.nan, math.inf):
            params = [
                nn.Parameter(distribute_tensor(torch.zeros(7), mesh, [Shard(0)])) for _ in "ab"
            ]
            g = torch.ones(7)
            g[6] = value
            for p, gradient in zip(params, (g, torch.ones(7)), strict=True):
                p.grad = distribute_tensor(gradient, mesh, [Shard(0)])
            optimizer_class(params, [KSparsePolytope(7, 2, radius=1.0)] * 2).step()
            assert whole(params[0]).isnan().all() and not whole(params[1]).isnan().any()


def check_nan_is_the_largest_value_whatever_its_sign():
    world = dist.get_world_size()
    mesh = init_device_mesh("cpu", (world,))
    for nan in (math.nan, -math.nan):
        for broken in range(world):
            own = nan if dist.get_rank() == broken else 1.0
            for values in (torch.tensor([own, 2.0]), (own, 2.0)):
                first, second = wholes_of([Norm(values, math.inf)], mesh, [0])[0]
                assert math.isnan(first) and second == 2


def check_replicas_take_one_of_their_sums():
    """As if each replica, here of one process, had rounded in its own way."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(), 1))
    (total,) = wholes_of([Norm(torch.tensor(1 + dist.get_rank() / 2**20))], mesh, [1])
    assert_processes_agree(total)


def check_replicas_stay_the_same_bits():
    """The sums that steps depend on are rounded in one way for all replicas."""
    world = dist.get_world_size()
    if world % 2:
        return
    mesh = init_device_mesh("cpu", (2, world // 2))
    p = nn.Parameter(distribute_tensor(torch.zeros(50), mesh, [Replicate(), Shard(0)]))
    optimizer = SFW([p], [KSparsePolytope(50, 5, radius=1.0)], lr=0.3)
    for seed in range(3):
        g = torch.randn(50, generator=torch.Generator().manual_seed(seed))
        p.grad = distribute_tensor(g, mesh, p.placements)
        optimizer.step()
    assert_processes_agree(whole(p))


def assert_processes_agree(x):
    first = x.clone()
    dist.broadcast(first, 0)
    assert torch.equal(first, x)


def check_gradients_that_are_yet_to_be_summed():
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    p = nn.Parameter(distribute_tensor(torch.zeros(6), mesh, [Shard(0)]))
    p.grad = DTensor.from_local(torch.arange(6.0), mesh, [Partial()])
    SFW([p], [KSparsePolytope(6, 2, radius=1.0)], rescale=None).step()
    assert whole(p).tolist() == [0, 0, 0, 0, -1, -1]


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


def check_a_layer_without_initialiser_needs_values():
    def radii(model):
        return torch.tensor(
            [region.radius for region in build_constraints(model, "l2_constraints")]
        )

    def network():
        torch.manual_seed(0)
        return nn.Sequential(nn.MultiheadAttention(6, 2), Scale(), nn.LayerNorm(3))

    torch.testing.assert_close(radii(shard(network())), radii(network()))
    with torch.device("meta"):
        meta = network()
    refused(ValueError, "'scale' has no reset_parameters", lambda: radii(meta))


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


CHECKS = {
    name.removeprefix("check_"): check
    for name, check in list(globals().items())
    if name.startswith("check_") and inspect.isfunction(check)
}


def work(rank, world, folder, names):
    torch.set_num_threads(1)
    store = f"file://{folder}/store{world}"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=world)
    path, outcomes = Path(folder) / f"{world}_{rank}.json", {}
    try:
        for name in names:
            CHECKS[name]()
            outcomes[name] = ""
    except Exception:  # the other processes may wait for this one: nothing goes on
        outcomes |= dict.fromkeys(names[names.index(name) :], traceback.format_exc())
        raise
    finally:
        path.write_text(json.dumps(outcomes))
    dist.destroy_process_group()


if __name__ == "__main__":
    for size, names in json.loads(sys.argv[2]).items():
        mp.start_processes(
            work, args=(int(size), sys.argv[1], names), nprocs=int(size), start_method="fork"
        )
