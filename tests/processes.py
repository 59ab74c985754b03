"""Several processes of one training run, as torchrun starts them.

They are forked from a process that has imported everything, which saves seconds for each of them.
"""

import multiprocessing
import os
import sys
from dataclasses import dataclass, field
from unittest import mock

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
    store = dist.TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    flags = [*map(str, flags), "--output_dir", str(folder)]
    ends = [folder / f"rank{rank}" for rank in range(size)]
    folder.mkdir(parents=True, exist_ok=True)
    processes = [
        FORK.Process(target=_train, args=(rank, size, store.port, flags, ends[rank], signalled))
        for rank in range(size)
    ]
    with mock.patch.dict(os.environ, TORCH_CPP_LOG_LEVEL="ERROR"):  # as start_script sets it
        for process in processes:
            process.start()
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


def _train(rank, size, port, flags, end, signalled):
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
    import train_prune
    import utils.train.run

    utils.train.run.SAVING_SHARE = float("inf")  # every epoch is saved
    if signalled is not None and signalled[0] == rank:
        _signal_itself(train_prune, *signalled[1:])
    sys.exit(train_prune.main(flags))


def _signal_itself(train_prune, at, number):
    train_step, steps = train_prune.train_step, []

    def signalling(*arguments):
        steps.append(1)
        if len(steps) == at:
            os.kill(os.getpid(), number)
        return train_step(*arguments)

    train_prune.train_step = signalling
