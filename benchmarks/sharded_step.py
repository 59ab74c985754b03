#!/usr/bin/env python3
"""Time SFW's step on sharded parameters beside the step of one process, and count its messages.

The parameters are ResNet18's. One process takes the plain step on all of them; then two and three
processes on this CPU, which send their messages through gloo, each on its part. "Sent" is what a
process gives to collective operations in one step, in all of its messages.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1]))

from machine import describe

from constraints import build_constraints
from models import build_model
from optim import SFW


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20, help="steps timed (default: 20)")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 3])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(f"\n{describe('cpu')} each\n")
    print("| processes | plain step, ms | sharded step, ms | ratio | messages | sent, kB |")
    print("| --- | --- | --- | --- | --- | --- |", flush=True)
    for count in arguments.processes:
        with tempfile.TemporaryDirectory() as folder:
            mp.start_processes(
                work, (count, folder, arguments.rounds), nprocs=count, start_method="spawn"
            )


def work(rank: int, count: int, folder: str, rounds: int) -> None:
    """What each process runs; the first prints the row."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    torch.set_num_threads(1)
    torch.manual_seed(0)
    dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=count)
    mesh = init_device_mesh("cpu", (count,))
    model = build_model("ResNet18", 10, 3, 32)
    regions = build_constraints(model, "k_sparse_constraints", tau=30.0, mode="diameter")
    whole, parts = list(model.parameters()), []
    for p in whole:
        p.grad = torch.randn_like(p)
        parts.append(nn.Parameter(distribute_tensor(p.detach(), mesh, [Shard(0)])))
        parts[-1].grad = distribute_tensor(p.grad, mesh, [Shard(0)])
    plain, sharded = (SFW(x, regions, lr=1e-6, fused=False) for x in (whole, parts))
    times: dict[str, list[float]] = {"plain": [], "sharded": []}
    sent: list[int] = []
    plain.step()  # which makes the state
    with_messages_counted(sharded.step, sent)
    for _ in range(rounds):
        dist.barrier()
        if rank == 0:  # the others wait
            times["plain"].append(seconds(plain.step))
        dist.barrier()
        times["sharded"].append(seconds(sharded.step))
    if rank == 0:
        one, many = (median(times[name]) * 1e3 for name in ("plain", "sharded"))
        row = f"| {count} | {one:.1f} | {many:.1f} | {many / one:.2f} "
        print(f"{row}| {len(sent)} | {sum(sent) / 1e3:.0f} |", flush=True)
    dist.destroy_process_group()


def with_messages_counted(step, sent: list[int]) -> None:
    """Take a step, and put the bytes of each of its messages into `sent`."""
    all_reduce = dist.all_reduce

    def counted(message, *arguments, **options):
        sent.append(message.numel() * message.element_size())
        return all_reduce(message, *arguments, **options)

    dist.all_reduce = counted
    try:
        step()
    finally:
        dist.all_reduce = all_reduce


def seconds(step) -> float:
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
