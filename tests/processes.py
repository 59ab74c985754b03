"""Several processes of one training run, as torchrun starts them.

They are forked from a process that has imported everything, which saves seconds for each of them.
"""

import multiprocessing
import os
import signal
import sys
from dataclasses import dataclass, field
from unittest import mock

import torch
import torch.distributed as dist

FORK = multiprocessing.get_context("forkserver")
FORK.set_forkserver_preload(
    ["train_prune", "torch._dynamo", "optim.cpu.step", "sklearn.datasets", "matplotlib.pyplot"]
)


@dataclass
class Outcome:
    """Status, output and errors of each process, by rank."""

    status: list = field(default_factory=list)
    out: list = field(default_factory=list)
    err: list = field(default_factory=list)


def train_with(size, flags, folder, signalled=None):
    """Train with `size` processes, of which `signalled`, (rank, step, signal), gets a signal."""
    return _run(size, folder, _train, [*map(str, flags), "--output_dir", str(folder)], signalled)


def train_killed_at(name, ending, at, when, flags):
    """Train in a process of its own that is killed as it saves; the exit status.

    It is killed at one call of a function of `os` for one file of the run, "before" or "after" it.
    Other calls do not count: libraries, too, write files of their own, and not in every run.
    """
    arguments = name, ending, at, when, [*map(str, flags)]
    process = FORK.Process(target=_train_killed_at, args=arguments)
    _start([process])
    process.join(120)
    return process.exitcode


def running_means_after_evaluation(size, folder):
    """Each process prints BatchNorm's running mean, which was its rank, after an evaluation."""
    return _run(size, folder, _evaluate)


def _run(size, folder, work, *arguments):
    """Call `work` with the arguments in `size` processes."""
    store = dist.TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    ends = [folder / f"rank{rank}" for rank in range(size)]
    folder.mkdir(parents=True, exist_ok=True)
    processes = [
        FORK.Process(target=_work, args=(rank, size, store.port, ends[rank], work, arguments))
        for rank in range(size)
    ]
    _start(processes)
    for process in processes:
        process.join(120)
        process.kill()
    result = Outcome(status=[process.exitcode for process in processes])
    for end in ends:
        for name, texts in (("out", result.out), ("err", result.err)):
            path = end.with_suffix(f".{name}")
            texts.append(path.read_text())
            path.unlink()
    return result


def _start(processes):
    """The server from which they are forked starts with the first, and imports PyTorch then."""
    with mock.patch.dict(os.environ, TORCH_CPP_LOG_LEVEL="ERROR"):  # as train_prune.py sets it
        for process in processes:
            process.start()


def _work(rank, size, port, end, work, arguments):
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(size),
        "LOCAL_WORLD_SIZE": str(size),
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
    }
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(end.with_suffix(f".{name}"), os.O_WRONLY | os.O_CREAT), number)
    sys.exit(work(*arguments))


def _train(flags, signalled):
    import train_prune
    import utils.train.checkpointing

    utils.train.checkpointing.SAVE_SECONDS = 0  # every epoch is saved
    if signalled is not None and signalled[0] == int(os.environ["RANK"]):
        _signal_itself(train_prune, *signalled[1:])
    return train_prune.main(flags)


def _train_killed_at(name, ending, at, when, flags):
    called, calls = getattr(os, name), 0

    def call(*arguments):
        nonlocal calls
        path = os.readlink(f"/proc/self/fd/{arguments[0]}") if name == "fsync" else arguments[1]
        ours = str(path).removesuffix(f".{os.getpid()}.tmp").endswith(ending)
        calls += ours
        if ours and calls == at and when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        called(*arguments)
        if ours and calls == at:
            os.kill(os.getpid(), signal.SIGKILL)

    setattr(os, name, call)
    sys.exit(_train(flags, None))


def _evaluate():
    from utils.datasets.batches import Batches
    from utils.train.distributed import World

    dist.init_process_group("gloo")
    world = World(dist.get_rank(), dist.get_world_size())
    norm = torch.nn.BatchNorm2d(1)
    norm.running_mean.fill_(world.rank)
    model = torch.nn.Sequential(norm, torch.nn.Flatten())
    labels = torch.zeros(2, dtype=torch.int64)
    batches = Batches(torch.zeros(2, 1, 2, 2, dtype=torch.uint8), labels, 2, (0.0,), (1.0,))
    world.accuracy(model, batches, "fp32")
    print(norm.running_mean.item(), flush=True)
    dist.destroy_process_group()
    return 0


def _signal_itself(train_prune, at, number):
    train_step, steps = train_prune.train_step, []

    def signalling(*arguments):
        steps.append(1)
        if len(steps) == at:
            os.kill(os.getpid(), number)
        return train_step(*arguments)

    train_prune.train_step = signalling
