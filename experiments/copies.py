"""Copies of a command side by side, each of which does what no other has begun."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from threading import Thread
from typing import IO

from utils.process.errors import RunError
from utils.process.signals import SIGNALS, Stopped


def run_copies(command: Sequence[str], copies: Mapping[str, Sequence[str]]) -> None:
    """Run `command` once for each of the copies, with the flags of that, and wait for all.

    What a copy writes comes out line by line, after its name. A signal is passed on to all. Raises
    Stopped after a signal, and RunError when a copy has failed.
    """
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    threads = max(1, len(os.sched_getaffinity(0)) // len(copies))
    environment.setdefault("OMP_NUM_THREADS", str(threads))
    running: dict[str, subprocess.Popen[str]] = {}
    with _passed_on(running) as received:
        for name, flags in copies.items():
            running[name] = subprocess.Popen(
                [*command, *flags],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env=environment,
                start_new_session=True,  # a terminal would send a signal a second time
            )
        readers = [
            Thread(target=_copy_lines, args=(name, source, target))
            for name, process in running.items()
            for source, target in ((process.stdout, sys.stdout), (process.stderr, sys.stderr))
        ]
        for reader in readers:
            reader.start()
        failed = [name for name, process in running.items() if process.wait()]
        for reader in readers:
            reader.join()
    if received:
        stopped = Stopped(received[0])
        stopped.advice = "the same command goes on"
        raise stopped
    if failed:
        raise RunError(f"{', '.join(failed)}: failed; the lines of each above say why")


@contextmanager
def _passed_on(running: Mapping[str, subprocess.Popen[str]]) -> Iterator[list[int]]:
    """Within the block, signals go to the processes; yields the list of those received."""
    received: list[int] = []

    def pass_on(number: int, _frame: object) -> None:
        received.append(number)
        for process in running.values():
            process.send_signal(number)

    former = {number: signal.signal(number, pass_on) for number in SIGNALS}
    try:
        yield received
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def _copy_lines(name: str, source: IO[str], target: IO[str]) -> None:
    for line in source:
        print(f"[{name}] {line}", end="", file=target, flush=True)
