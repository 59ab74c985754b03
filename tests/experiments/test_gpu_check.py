"""The check of a GPU, on the CPU with sizes of a second: its report, what it plans, how it ends."""

import csv
import json
import os
import shlex
import signal
import threading
from zipfile import ZipFile

import pytest
import torch

from experiments import gpu_check
from experiments.results import by_name, read_results
from utils.prune.config import PruneConfig
from utils.settings.cli import Parser
from utils.settings.config import Config

SLEEPS = "-c 'import time; time.sleep(99)'"
PRINTS = "-c 'print(6 * 7)'"


def call(folder, *flags):
    folders = ["--output", str(folder / "report"), "--work", str(folder / "work")]
    return gpu_check.main(["--gpu", "-1", "--sizes", "tiny", *folders, *flags])


def stages_in(folder):
    return json.loads((folder / "report" / "stages.json").read_text())["stages"]


def statuses(folder):
    return {name: stage["status"] for name, stage in stages_in(folder).items()}


@pytest.fixture(scope="module")
def checked(tmp_path_factory):
    """The folder of a whole check, and its exit status."""
    folder = tmp_path_factory.mktemp("gpu_check")
    return folder, call(folder, "--minutes", "60")


def test_a_check_reports_every_stage_and_a_training_with_its_tests(checked):
    folder, status = checked
    run = "SGD, weight decay 0.01, pruned steps, 2 epochs, seed 0"
    names = [*gpu_check.STAGES, *(f"{run}: {part}" for part in ("training", "weights", "channels"))]
    assert (status, statuses(folder)) == (0, dict.fromkeys(names, "done"))
    report = (folder / "report" / "report.md").read_text()
    assert all(f"\n## {name}: done\n" in report for name in names)
    assert "Going on after epoch" in report  # the main command was stopped and resumed
    assert "\n| Mlp | 118,282 |" in report and "\n| bf16 eager | " in report
    assert f" | {torch.__version__.split('+')[0]} |" in report
    assert "\n| SGD, weight decay 0.01, pruned steps | " in report  # its accuracies


def test_results_have_the_form_of_those_in_the_repository(checked, tmp_path):
    files = list((checked[0] / "report").iterdir())
    assert len(files) <= 8 and sum(file.stat().st_size for file in files) < 16e6
    ZipFile(checked[0] / "report" / "results.zip").extractall(tmp_path)
    for granularity in ("weights", "channels"):
        results = read_results(["SFW_prune_test/*"], tmp_path, granularity=granularity)
        assert list(by_name(results)) == ["SGD, weight decay 0.01, pruned steps"]
        assert results[0].provenance.keys() == {"machine", "date", "commit"}
    (table,) = (tmp_path / "SFW_one_shot_prune").glob("*.csv")
    assert len(table.read_text().splitlines()) == 1 + 2


def test_a_second_call_runs_nothing_again(checked, capsys):
    folder, _ = checked
    log = (folder / "report" / "log.txt").read_text()
    assert call(folder) == 0
    assert "left:" not in capsys.readouterr().out
    assert (folder / "report" / "log.txt").read_text() == log


def test_stages_that_fail_or_hang_are_named_and_the_next_go_on(tmp_path, monkeypatch, capsys):
    stages = {"images": (60, ["-c '1 / 0'", PRINTS]), "hangs": (0.1, [SLEEPS])}
    monkeypatch.setattr(gpu_check, "STAGES", stages | {"works": (60, [PRINTS])})
    assert call(tmp_path) == 1
    expected = {"images": "failed", "hangs": "failed", "works": "done", "trainings": "failed"}
    assert statuses(tmp_path) == expected
    assert "images; hangs; trainings; the report says how" in capsys.readouterr().err
    texts = {name: stage["text"] for name, stage in stages_in(tmp_path).items()}
    assert "ZeroDivisionError" in texts["images"] and "42" not in texts["images"]
    assert "images.csv" in texts["trainings"]  # by which they would be planned
    assert "\n42\n" in (tmp_path / "report" / "report.md").read_text()


def test_what_had_no_time_is_run_by_the_next_call(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_check, "GRACE", 1)
    monkeypatch.setattr(gpu_check, "LEAST", 0.5)
    monkeypatch.setattr(gpu_check, "STAGES", {"a": (60, [SLEEPS]), "b": (60, [PRINTS])})
    call(tmp_path, "--minutes", "0.1")
    assert (statuses(tmp_path)["a"], statuses(tmp_path)["b"]) == ("unfinished", "no time left")
    monkeypatch.setattr(gpu_check, "STAGES", {"a": (60, [PRINTS]), "b": (60, [PRINTS])})
    call(tmp_path)
    assert statuses(tmp_path)["a"] == statuses(tmp_path)["b"] == "done"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_a_report_and_no_process(number, tmp_path, monkeypatch):
    code = "import os, sys, time; print(os.getpid(), flush=True); time.sleep(99)"
    stages = {"works": (60, [PRINTS]), "sleeps": (60, [f"-c {shlex.quote(code)}"])}
    monkeypatch.setattr(gpu_check, "STAGES", stages)
    printed, pids = tmp_path / "work" / "output.txt", []

    def stop_it():
        if printed.is_file() and (text := printed.read_text()).strip() not in ("", "42"):
            pids.append(int(text))
            os.kill(os.getpid(), number)
        else:
            threading.Timer(0.05, stop_it).start()

    stop_it()
    assert call(tmp_path) == 128 + number
    assert statuses(tmp_path) == {"works": "done", "sleeps": "stopped"}
    assert "## sleeps: stopped" in (tmp_path / "report" / "report.md").read_text()
    with pytest.raises(ProcessLookupError):
        os.kill(*pids, 0)


@pytest.fixture
def planned(tmp_path, monkeypatch):
    """planned(minutes, rate) gives the commands of a check at full size, of which none is run."""

    def plan(minutes, rate):
        commands = []

        def run(check, name, command, until):
            commands.append(shlex.split(command.format(**check.words)))
            with (check.output / "images.csv").open("w") as file:
                csv.writer(file).writerows([("bf16 captured", rate), ("bf16 pruned steps", rate)])
            return "done", ""

        monkeypatch.setattr(gpu_check.Check, "run", run)
        assert call(tmp_path, "--sizes", "full", "--minutes", str(minutes)) == 0
        return commands

    return plan


def settings_of(commands, script):
    parsed = [Parser(None, Config, PruneConfig).parse(c[1:]) for c in commands if c[0] == script]
    return [(flags.settings(Config), flags.settings(PruneConfig)) for flags in parsed]


def test_with_little_time_all_methods_get_as_many_epochs_as_fit(planned):
    commands = planned(5, 10_000)  # 6 seconds an epoch
    main, *trained = settings_of(commands, "train_prune.py")
    assert (main[0].epoch_num, main[0].lr_scheme) == (1, "dynamic_change")
    assert [config.epoch_num for config, _ in trained] == [10] * 4  # in 260 seconds
    assert planned(60, 10_000) == []  # what was decided stays


def test_with_more_time_longer_trainings_and_further_seeds_follow(planned):
    commands = planned(1000, 40_000)
    runs = settings_of(commands, "train_prune.py")[1:]
    order = [(c.optimizer, c.weight_decay, c.pruned_steps) for c, _ in runs]
    methods = [("SGD", 0.01, 0.33), ("SFW", 0, 0), ("SFW", 0, 0.33), ("SGD", 0.005, 0.33)]
    assert order == methods * 4
    assert [(c.epoch_num, c.seed) for c, _ in runs[::4]] == [(30, 0), (180, 0), (30, 1), (30, 2)]
    assert {(c.data, c.arch, c.lr_scheme, c.precision) for c, _ in runs} == {
        ("cifar10", "ResNet18", "cosine", "bf16")
    }
    tests = settings_of(commands, "test_prune.py")[1:]
    assert {c.run_name for c, _ in tests} == {c.run_name for c, _ in runs}
    assert {(p.granularity, p.bn_recalibrate) for _, p in tests} == {
        ("weights", 1000),
        ("channels", 1000),
    }
