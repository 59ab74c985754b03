#!/usr/bin/env python3
"""The first quarter of an hour on a GPU: does all of it work there, how fast, how accurate is it?

Runs STAGES, then trains by METHODS in as many epochs as fit, which is decided before the first.
Every command has a process of its own and a limit. After each stage the report is written:
report.md, tables, the last lines of each command, and results.zip for experiments/results/. The
same command goes on: what is in the report is not run again, and a training goes on where it was
stopped.
"""

import argparse
import csv
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from datetime import date
from importlib.metadata import distributions
from importlib.util import find_spec
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.machine import describe
from experiments.proxy import add_data_dir
from experiments.results import COLUMNS, PROVENANCE, by_name, read_results
from experiments.tables import RATIOS, ROOT, accuracy_table, markdown
from utils.compute.device import pick_device
from utils.process.errors import RunError, UserError, exit_status, reason
from utils.process.signals import StopSignals
from utils.process.writing import atomic_write
from utils.settings.fields import path
from utils.settings.names import results_line

# What the commands below are filled with, what is trained, and a factor of limits: on a CPU, which
# may have other work, they are longer.
SIZES: dict[str, dict[str, Any]] = {
    "full": {"data": "cifar10", "arch": "ResNet18", "networks": "Mlp VGG16 ResNet18", "first": 1}
    | {"stop_at": "Gauge:"}
    | {"training": "--precision bf16", "testing": "--bn_recalibrate 1000", "workers": "-n 6"}
    | {"images": 50_000, "epochs": 30, "longer": 180, "seeds": 3, "methods": 4, "patience": 1},
    "tiny": {"data": "digits", "arch": "Mlp", "networks": "Mlp --seconds 0.1", "first": 200}
    | {"stop_at": "Epoch 1/"}
    | {"training": "", "testing": "", "workers": ""}
    | {"images": 1437, "epochs": 2, "longer": 2, "seeds": 1, "methods": 1, "patience": 10},
}
TRAIN, TEST = "train_prune.py", "test_prune.py"
STOPPED = "stopped: "  # begins a command that gets SIGTERM once it has printed what `stop_at` names
PYTEST = "-m pytest -p no:cacheprovider -v --tb short"
RUN = "--data {data} --arch {arch} --gpu {gpu} --data_dir {data_dir} --output_dir {work}"
FIRST = f"{RUN}/first --epoch_num {{first}}"
STEPS = "benchmarks/optimizer_step.py --devices {device} --networks {networks}"
# By name, the limit in seconds and the commands; the most valuable first.
STAGES: dict[str, tuple[float, Sequence[str]]] = {
    "fused step": (45, [f"{PYTEST} tests/optim/test_random_tensors.py"]),
    "tests": (120, [f"{PYTEST} -m cuda --maxfail 5 {{workers}} {{tests}}"]),
    "steps": (45, [STEPS]),
    "images": (75, ["benchmarks/training.py --gpu {gpu} --steps 2 --alone --arch {arch}"]),
    "main command": (60, [f"{STOPPED}{TRAIN} {FIRST}", f"{TRAIN} {FIRST}", f"{TEST} {FIRST}"]),
}
PRUNED = "--pruned_steps 0.33"
METHODS = {
    "SGD, weight decay 0.01, pruned steps": f"--optimizer SGD --weight_decay 0.01 {PRUNED}",
    "SFW, K-sparse, tau 15": "",
    "SFW, K-sparse, tau 15, pruned steps": PRUNED,
    "SGD, weight decay 0.005, pruned steps": f"--optimizer SGD --weight_decay 0.005 {PRUNED}",
}
TRAINING = f"{RUN}/full --lr_scheme cosine {{training}}"
GRANULARITIES = {"weights": "", "channels": "--granularity channels --round_to 8"}
LINES, SHOWN, WIDTH = 200, 40, 300  # the last lines in log.txt, lines in the report, their length
GRACE, LEAST = 10, 15  # seconds from SIGINT to SIGKILL, and those without which no stage is begun
FAST, TESTED = 2, 1.2  # seconds of an epoch with which more are tried; its time with its test
FILLED = 0.9  # of the time that is left, by trainings
NO_TIME = "no time left"
AGAIN = (NO_TIME, "unfinished", "stopped")  # what the next call runs again


class Check:
    """The report, and what is known while it is made; times are those of `time.monotonic`."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.deadline = time.monotonic() + 60 * options.minutes - GRACE
        self.device, self.size = pick_device(options.gpu).type, SIZES[options.sizes]
        self.output, self.work, self.again = options.output, options.work, options.again
        self.logs, self.results = self.work / "full" / "saved_logs", self.work / "results"
        for folder in (self.output, self.logs / "SFW_prune_test"):
            folder.mkdir(parents=True, exist_ok=True)
        self.file = self.output / "stages.json"
        saved = json.loads(self.file.read_text()) if self.file.is_file() else {}
        self.epochs: int = saved.get("epochs", 0)  # of the trainings, once that is decided
        self.stages: dict[str, dict[str, Any]] = saved.get("stages", {})
        tests = [p for p in ROOT.glob("tests/**/test_*.py") if "mark.cuda" in p.read_text()]
        self.words = self.size | {"gpu": options.gpu, "device": self.device}
        self.words["data_dir"] = shlex.quote(str(options.data_dir.absolute()))
        self.words["work"] = shlex.quote(str(self.work.absolute()))
        self.words["tests"] = shlex.join(map(str, sorted(tests)))
        self.origin = dict(machine=describe(self.device), date=str(date.today()), commit=commit())

    @property
    def left(self) -> float:
        return self.deadline - time.monotonic()

    def status(self, name: str) -> str:
        return self.stages.get(name, {}).get("status", NO_TIME)

    def take(self, name: str, limit: float, commands: Sequence[str], needs: float = 0) -> None:
        """Carry out a stage, unless it is in the report or the time left is less than it needs."""
        if self.status(name) not in AGAIN and name not in self.again:
            return
        status, texts, began = NO_TIME, [], time.monotonic()
        try:
            for command in commands if max(needs, LEAST) < self.left else ():
                print(f"{self.left:4.0f} s left: {name}", flush=True)
                status = "stopped"
                until = min(began + limit * self.size["patience"], self.deadline)
                status, text = self.run(name, command, until)
                texts.append(text)
                if status != "done":
                    break
        finally:
            self.record(name, status, time.monotonic() - began, "\n\n".join(texts))

    def run(self, name: str, command: str, until: float) -> tuple[str, str]:
        """The status of a stage after this command of Python, and what the report says of it."""
        stops, words = command.startswith(STOPPED), command.removeprefix(STOPPED)
        words, wanted = shlex.split(words.format(**self.words)), 0
        printed, began, status = self.work / "output.txt", time.monotonic(), None
        with printed.open("wb") as out:
            process = subprocess.Popen(
                [sys.executable, *words], cwd=ROOT, stdout=out, stderr=out, start_new_session=True
            )
        try:
            while (status := process.poll()) is None and time.monotonic() < until:
                time.sleep(0.1)
                if stops and self.size["stop_at"] in printed.read_text(errors="replace"):
                    time.sleep(0.5)
                    process.terminate()
                    stops, wanted = False, 128 + signal.SIGTERM
        finally:
            end(process)
        how = "was ended" if status is None else f"ended with status {status}"
        title = f"`{shlex.join(words)}` {how} after {time.monotonic() - began:.0f} s"
        stage = "failed" if until < self.deadline else "unfinished"
        if status is not None:  # one that was to be stopped, and was not, has shown nothing
            stage = "done" if status == wanted and not stops else "failed"
        return stage, self.kept(name, title, printed)

    def kept(self, name: str, title: str, printed: Path) -> str:
        """Of what a command printed, its table, which is written as CSV, and the last lines."""
        lines = re.split(r"[\r\n]+", printed.read_text(errors="replace"))
        lines = [line[:WIDTH] for line in lines if line.strip()]
        table = [line for line in lines if line.startswith("| ")]
        others = [line for line in lines if line not in table]
        if len(others) > SHOWN:
            others = [*others[:5], "...", *others[5 - SHOWN :]]
        with (self.output / "log.txt").open("a") as log:
            log.write("\n".join([f"== {title}", *lines[-LINES:], ""]))
        if table:
            with (self.output / f"{name}.csv").open("w", newline="") as out:
                rows = (line.strip("| ").split(" | ") for line in table if "---" not in line)
                csv.writer(out).writerows(rows)
        return "\n".join([title, "", *table, "", "```text", *others, "```"])

    def record(self, name: str, status: str, seconds: float = 0, text: str = "") -> None:
        """Write the report, and the results of the trainings so far."""
        self.stages[name] = {"status": status, "seconds": round(seconds, 1), "text": text}
        with atomic_write(self.file) as file:
            json.dump({"epochs": self.epochs, "stages": self.stages}, file, indent=1)
        origin = json.dumps({"*": self.origin}, indent=1)
        (self.logs / "SFW_prune_test" / PROVENANCE).write_text(origin)
        unwanted = shutil.ignore_patterns("*.log", "*.png", ".*")
        shutil.copytree(self.logs, self.results, ignore=unwanted, dirs_exist_ok=True)
        packed = shutil.make_archive(str(self.results), "zip", self.results)
        shutil.move(packed, self.output / "results.zip")
        with atomic_write(self.output / "report.md") as file:
            file.write("\n\n".join(report(self)) + "\n")

    def trainings(self) -> Iterator[tuple[str, str, float]]:
        """Titles, flags and seconds, with those of tests, by the table of the stage "images"."""
        with (self.output / "images.csv").open() as file:
            rates = dict(csv.reader(file))
        own, pruned = rates.get("bf16 captured") or rates["bf16 eager"], rates["bf16 pruned steps"]
        dense, pruned = (TESTED * self.size["images"] / float(rate) for rate in (own, pruned))
        methods = dict([*METHODS.items()][: self.size["methods"]])
        # Every second step of the last third is a pruned one.
        epoch = {n: (5 * dense + pruned) / 6 if PRUNED in f else dense for n, f in methods.items()}
        starts, usual = self.stages["main command"]["seconds"], self.size["epochs"]
        if not self.epochs:
            fit = (FILLED * self.left - starts * len(methods)) / sum(epoch.values())
            self.epochs = max(0, min(usual, int(fit)))
        rounds = [(self.epochs, 0)] if self.epochs else []
        if self.epochs == usual:
            rounds += [(self.size["longer"], 0)] if max(epoch.values()) < FAST else []
            rounds += [(usual, seed) for seed in range(1, self.size["seeds"])]
        for epochs, seed in rounds:
            for n, flags in methods.items():
                all_flags = f"{flags} --epoch_num {epochs} --seed {seed}"
                yield f"{n}, {epochs} epochs, seed {seed}", all_flags, starts + epochs * epoch[n]


def end(process: subprocess.Popen) -> None:
    """End a process, and all that it has started: trainings are saved, tests are summed up."""
    for number in (signal.SIGINT, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with suppress(subprocess.TimeoutExpired):
            process.wait(GRACE)


def report(check: Check) -> Iterator[str]:
    yield f"# {', '.join(check.origin.values())}"
    rows = [[name, s["status"], f"{s['seconds']:.0f}"] for name, s in check.stages.items()]
    yield markdown(["stage", "status", "seconds"], rows)
    for granularity in GRANULARITIES:
        with suppress(UserError):  # there are none yet
            found = read_results(["SFW_prune_test/*"], check.results, granularity=granularity)
            yield f"Accuracy in %, {' / '.join(COLUMNS)}, by the part of the {granularity} removed:"
            yield accuracy_table(by_name(found), COLUMNS, RATIOS[granularity])
    yield "## Versions\n\n" + markdown(["package", "pinned", "here"], versions())
    for name, stage in check.stages.items():
        yield f"## {name}: {stage['status']}\n\n{stage['text']}"


def commit() -> str:
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
    with suppress(OSError):  # without git
        done = subprocess.run(command, capture_output=True, text=True)
        return done.stdout.strip() or "not recorded"
    return "not recorded"


def versions() -> list[list[str]]:
    here = {each.name.lower().replace("_", "-"): each.version for each in distributions()}
    texts = "\n".join(file.read_text() for file in sorted(ROOT.glob("requirements*.txt")))
    pinned = {"python": "", "triton": ""} | dict(re.findall(r"^([\w-]+)==(\S+)", texts, re.M))
    here["python"] = sys.version.split()[0]
    return [[name, pin, here.get(name, "missing")] for name, pin in pinned.items()]


def carry_out(check: Check) -> None:
    for name, (limit, commands) in STAGES.items():
        check.take(name, limit, commands)
    check.stages.pop("trainings", None)
    status, why = NO_TIME, ""
    try:
        planned = list(check.trainings())
    except (OSError, KeyError, ValueError) as error:
        status = NO_TIME if check.status("images") in AGAIN else "failed"
        planned, why = [], f"No speed to plan by: {reason(error)}"
    if not planned:
        check.record("trainings", status, text=why)
    for title, flags, seconds in planned:
        name, command = f"{title}: training", f"{TRAINING} {flags}"
        check.take(name, 3 * seconds, [f"{TRAIN} {command}"], seconds)
        for kind, how in GRANULARITIES.items():
            if check.status(name) == "done" and (not how or find_spec("torch_pruning")):
                ratios = " ".join(map(str, RATIOS[kind]))
                command = f"{TRAINING} {flags} {{testing}} {how} --ratios {ratios}"
                check.take(f"{title}: {kind}", 120, [f"{TEST} {command}"])
    print(results_line(report=check.output / "report.md"))
    if failed := [name for name in check.stages if check.status(name) == "failed"]:
        raise RunError(f"stages that failed: {'; '.join(failed)}; the report says how")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    add = parser.add_argument
    add("--minutes", type=float, default=13, metavar="X", help="of this call (default: 13)")
    add("--gpu", type=int, default=0, metavar="N", help="CUDA device; -1 is the CPU (default: 0)")
    add_data_dir(parser)
    text = "folder of the report (default: %(default)s)"
    add("--output", type=path, default=Path("gpu_report"), metavar="FOLDER", help=text)
    text = "folder of the trainings, which go on from there (default: %(default)s)"
    add("--work", type=path, default=Path("gpu_work"), metavar="FOLDER", help=text)
    add("--sizes", choices=SIZES, default="full", help="tiny takes seconds (default: full)")
    add("--again", nargs="+", default=[], metavar="STAGE", help="run these again in any case")
    with StopSignals():
        return exit_status(lambda: carry_out(Check(parser.parse_args(argv))))


if __name__ == "__main__":
    sys.exit(main())
