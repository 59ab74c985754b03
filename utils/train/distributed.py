"""Data-parallel runs: the processes that torchrun starts share every batch.

Each process holds network, optimizer and data set whole, draws the batches of a single process, and
computes the gradient of its own part. The gradients are summed, and all take the same step.
"""

import os
import sys
import traceback
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from functools import partial
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from utils.compute.device import process_count
from utils.compute.measure import count_by_batch
from utils.datasets.batches import Batches
from utils.process.errors import ScriptError, UserError
from utils.settings.config import Config

Result = TypeVar("Result")

# The others wait as long for the main process, for example while it runs SFW-Init on a CPU. That a
# process has ended is noticed at once.
PATIENCE = timedelta(hours=12)
TORCHRUN = {"RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"}  # what it sets beside WORLD_SIZE


class World:
    """The processes of a run, by default one; `local_rank` numbers those of a machine."""

    def __init__(self, rank: int = 0, size: int = 1, local_rank: int = 0) -> None:
        self.rank, self.size, self.local_rank = rank, size, local_rank
        self.is_main = rank == 0  # it writes the files of the run

    def on_main(self, work: Callable[[], Result]) -> Result:
        """What `work` returns in the main process, or the ScriptError that it raises there."""
        if self.size == 1:
            return work()
        outcome = [_attempt(work) if self.is_main else None]
        dist.broadcast_object_list(outcome, device=torch.device("cpu"))
        result, error = outcome[0]
        if error is not None:
            raise error
        return result

    def in_turn(self, work: Callable[[], Result]) -> Result:
        """What `work` returns in this process, or the ScriptError that it raises in any.

        On each machine one process works before the others, which then find what it downloaded.
        """
        if self.size == 1:
            return work()
        errors, result = [None] * self.size, None
        for turn in (self.local_rank == 0, self.local_rank > 0):
            result, error = _attempt(work) if turn else (result, None)
            dist.all_gather_object(errors, error)
            for error in filter(None, errors):
                raise error
        return result

    def largest(self, number: int) -> int:
        """The largest of the processes' numbers."""
        if self.size == 1:
            return number
        values = torch.tensor([number])
        dist.all_reduce(values, op=dist.ReduceOp.MAX)
        return int(values)

    def sums(self, values: Tensor) -> Tensor:
        """The entrywise sums over the processes; the device may differ, the bits never do."""
        if self.size == 1:
            return values
        # In the order of the ranks: the order of an all-reduce depends on an entry's place in it.
        mine = values.cpu().double()
        gathered = [torch.empty_like(mine) for _ in range(self.size)]
        dist.all_gather(gathered, mine)
        return torch.stack(gathered).sum(0)

    def part(self, count: int) -> slice:
        """This process's part of `count` things; the first parts have at most one more."""
        each, more = divmod(count, self.size)
        start = self.rank * each + min(self.rank, more)
        return slice(start, start + each + (self.rank < more))

    def share(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, float]:
        """This process's part of a batch, and which fraction of the batch it is.

        Weighted by it, the mean losses of the parts and their gradients sum up to those of the
        batch. Where there are fewer images than processes, one is taken along with weight 0.
        """
        part = self.part(len(targets))
        fraction = (part.stop - part.start) / len(targets)
        mine = part if fraction else slice(0, 1)
        return inputs[mine], targets[mine], fraction

    def parallel(self, model: nn.Module, sync_bn: bool) -> nn.Module:
        """The network whose gradients are the sums over the processes."""
        if self.size == 1:
            return model
        if sync_bn:
            model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
        # Otherwise the gradients are summed in another order after the first step of a process, and
        # a resumed run would differ from one that was never stopped in the last bits.
        network = DistributedDataParallel(model, find_unused_parameters=True)
        network.register_comm_hook(None, _sum)
        return network

    def accuracy(self, model: nn.Module, batches: Batches, precision: str) -> float:
        """The percentage of images classified right; `batches` is this process's part of them."""
        if self.size > 1:
            for buffer in model.buffers():  # BatchNorm's running statistics, of the main process
                dist.broadcast(buffer, 0)
        counts = count_by_batch(model, batches, precision).sum(0)
        correct, _, count = self.sums(counts).tolist()
        return 100 * correct / count


def _sum(_: None, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
    """The sum of the processes' gradients, where DistributedDataParallel takes their mean."""
    work = dist.all_reduce(bucket.buffer(), async_op=True)
    return work.get_future().then(lambda done: done.value()[0])


def _attempt(work: Callable[[], Result]) -> tuple[Result | None, ScriptError | None]:
    try:
        return work(), None
    except ScriptError as error:
        return None, error


def launched(train: Callable[[Config, World], None], settings: Callable[[], Config]) -> None:
    """Train with these settings, in this process alone or with the others that torchrun started.

    The main process reports for all; of the others only unexpected errors are shown.
    """
    if process_count() == 1 or not os.environ.keys() >= TORCHRUN:
        return train(settings(), World())  # where `pick_device` refuses one of several processes
    if os.environ["RANK"] != "0":
        sys.excepthook = partial(traceback.print_exception, file=sys.stderr)
        sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - open until the end
    config = settings()
    if config.processes == 1:
        config = replace(config, processes=process_count())
    # Without a GPU for each process NCCL would raise an error here, before `pick_device` says why.
    enough = torch.cuda.device_count() >= int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    backend = "cpu:gloo,cuda:nccl" if config.gpu >= 0 and enough else "gloo"
    dist.init_process_group(backend, None, PATIENCE)
    train(config, World(dist.get_rank(), dist.get_world_size(), int(os.environ["LOCAL_RANK"])))
    dist.destroy_process_group()


def check_processes(config: Config, world: World) -> None:
    """Raise UserError for settings that do not fit the processes of the run."""
    if config.processes != world.size:
        raise UserError(
            f"--processes {config.processes}: train_prune.py has {world.size}; start as many by"
            f" torchrun --nproc_per_node {config.processes} train_prune.py, or leave this flag out"
        )
    if config.sync_bn and (world.size == 1 or config.gpu < 0):
        raise UserError("--sync_bn: is for several processes of torchrun, on GPUs; leave it out")
