"""The runs of an experiment, side by side in several processes."""

import multiprocessing
import signal
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_EXCEPTION, ProcessPoolExecutor, wait
from contextlib import contextmanager

import torch

from utils.compute.device import keep_freed_memory
from utils.process.signals import Stopped, StopSignals

# Calls a task with each of these arguments, and returns when all calls have returned.
RunAll = Callable[[Callable[..., None], Iterable[tuple]], None]


@contextmanager
def workers(processes: int, threads: int) -> Iterator[RunAll]:
    """Gives a function that runs tasks in this many processes, each with this many threads.

    If a task fails, or the command is stopped, the other tasks are ended at once.
    """
    spawn = multiprocessing.get_context("spawn")
    with StopSignals() as signals:
        pool = ProcessPoolExecutor(processes, spawn, prepare_worker, (threads,))

        def run_all(task: Callable[..., None], arguments: Iterable[tuple]) -> None:
            # Processes start here, and must not be left half started by a signal.
            signals.deferring = True
            pending = {pool.submit(task, *one) for one in arguments}
            signals.deferring = False
            if signals.pending:
                raise Stopped(signals.pending)
            while pending:
                # A signal that comes just before a wait is seen only after it.
                done, pending = wait(pending, timeout=0.5, return_when=FIRST_EXCEPTION)
                for one in done:
                    one.result()

        try:
            yield run_all
        except BaseException:
            for worker in multiprocessing.active_children():
                worker.terminate()
            raise
        finally:
            pool.shutdown(cancel_futures=True)


def prepare_worker(threads: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the first process ends them
    torch.set_num_threads(threads)
    keep_freed_memory()
