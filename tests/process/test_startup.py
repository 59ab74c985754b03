"""A script as a process: what it imports, Ctrl-C meanwhile, and streams that are closed."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from runs import ROOT, SCRIPTS, assert_refused, result_of

from models import build_model

# Runs a script in a process that gets SIGINT when it begins to import a certain module.
INTERRUPTED = """
import os, runpy, signal, sys
class Interrupt:
    def find_spec(self, name, *_):
        if name == module:
            os.kill(os.getpid(), signal.SIGINT)
module, *sys.argv = sys.argv[1:]
sys.meta_path.insert(0, Interrupt())
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def python(*arguments, redirect=""):
    """The finished process; `redirect` is what the shell does with its standard streams."""
    command = ["sh", "-c", f'exec "$@" {redirect}', "sh", sys.executable, *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_start_without_what_only_some_runs_need(name):
    module = name.removesuffix(".py")
    optional = {"matplotlib", "sklearn", "scipy", "numba", "torchvision", "PIL"}
    code = f"import sys, {module}; print({{m.partition('.')[0] for m in sys.modules}} & {optional})"
    assert python("-c", code).stdout == "set()\n"


@pytest.mark.parametrize(
    ("name", "module"),
    [
        *((name, "torch") for name in SCRIPTS),
        ("train_prune.py", "torch._meta_registrations"),
        ("train_prune.py", "utils.settings.config"),
    ],
)
def test_an_interrupt_while_importing_ends_in_one_line(name, module):
    done = python("-c", INTERRUPTED, module, name, "--help")
    assert result_of(done) == (130, "", "error: stopped by the keyboard\n")


def test_a_job_in_the_background_ignores_interrupts_while_importing():
    flags = ("-c", INTERRUPTED, "torch", "train_prune.py", "--lr", "7")
    done = python(*flags, redirect="& wait $!")
    assert_refused(result_of(done), "error: --lr 7: SFW takes")


def test_an_interrupt_after_the_imports_lets_work_clean_up():
    code = """
import os, signal
from utils.process.startup import start_script
start_script()
from utils.process.errors import exit_status
def main():
    try:
        os.kill(os.getpid(), signal.SIGINT)
    finally:
        print("cleaned up")
raise SystemExit(exit_status(main))
"""
    done = python("-c", code)
    assert (done.returncode, done.stdout) == (130, "cleaned up\n")
    assert done.stderr == "error: stopped by the keyboard\n"


@pytest.mark.parametrize("redirect", ["2>&-", "<&- >&- 2>&-"])
def test_no_file_takes_the_number_of_a_stream_that_was_closed(redirect, tmp_path):
    code = """
import os, sys
from utils.process.startup import start_script
start_script()
with open(sys.argv[1], "w") as file:
    print("message", file=sys.stderr, flush=True)
    os.write(2, b"message of a library")
"""
    path = tmp_path / "file"
    assert python("-c", code, path, redirect=redirect).returncode == 0
    assert path.read_text() == ""


def test_an_error_with_standard_error_closed_is_not_told_elsewhere():
    done = python("train_prune.py", "--lr", "7", redirect="2>&-")
    assert (done.returncode, done.stdout) == (2, "")


@pytest.mark.parametrize("name", ["test_prune.py", "test_weight_distribution.py"])
def test_names_that_standard_output_cannot_show_are_escaped(name, tmp_path, write_npz):
    labels = np.arange(4)
    data = write_npz(tmp_path, "digits", train=4, test=4, y_train=labels, y_test=labels)
    data.rename(tmp_path / "ψηφία.npz")
    torch.save(build_model("Mlp", 4, 1, 8).state_dict(), tmp_path / "ψηφία.pt")
    flags = ("--data", "ψηφία", "--arch", "Mlp", "--model_path", "ψηφία.pt", "--data_dir", ".")
    latin = os.environ | {"PYTHONIOENCODING": "latin-1"}
    command = [sys.executable, ROOT / name, *flags]
    done = subprocess.run(command, cwd=tmp_path, env=latin, capture_output=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert rb"picture: \u03c8\u03b7" in done.stdout
