"""What steps and regions must do on sharded tensors."""

import math

import torch
import torch.distributed as dist
from reference import SparseBall
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.placement_types import _StridedShard

from constraints import KSparsePolytope, LpBall, Region
from constraints.dtensor import entries, positions
from constraints.parts import Norm, wholes_of
from optim import SFW, ProjectedSGD

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


class Opposite(LpBall):
    """Its vertices are not those of LpBall, whose short cuts must not be taken."""

    def furthest(self, rows):
        return -super().furthest(rows)


def regions(n):
    ks = {1, max(1, n // 3), n}
    return [
        *(KSparsePolytope(n, k, radius=0.5) for k in ks),
        *(LpBall(n, p, radius=0.5) for p in (1, 2, 3, math.inf)),
        SparseBall(n, max(1, n // 3), radius=0.5),
        Opposite(n, 1, radius=0.5),
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
    for seed in range(3):
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
