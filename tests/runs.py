"""Short runs, and what they leave behind."""

import csv
import importlib
import re
from pathlib import Path

import torch

from utils.settings.config import Config

ROOT = Path(__file__).parents[1]  # of the repository
SCRIPTS = ("train_prune.py", "test_prune.py", "test_weight_distribution.py")

# A run that trains in a second, and its name.
DIGITS = ("--data", "digits", "--arch", "Mlp", "--epoch_num", "2")
RUN = "data=digits_model=Mlp_optimizer=SFW_epoch_num=2"

# Every kind of state: SFW-Init, momentum, a scheme that looks back, batches that are drawn.
SETTINGS = {
    "data": "digits",
    "arch": "Mlp",
    "epoch_num": 5,
    "train_batchsize": 64,
    "sfw_init": 1,
    "sfw_init_iters": 3,
    "pruned_steps": 0.5,
}


def flags_of(settings):
    return [part for name, value in settings.items() for part in (f"--{name}", str(value))]


FLAGS = flags_of(SETTINGS)


def main_of(script):
    """A script's `main`, which takes a list of flags and returns the exit status."""
    return importlib.import_module(script.removesuffix(".py")).main


def result_of(process):
    """Status, output and errors of a finished process."""
    return process.returncode, process.stdout, process.stderr


def assert_refused(result, message):
    """A script ended with status 2 and one line of error, with the message, and printed nothing."""
    status, out, err = result
    assert (status, out) == (2, ""), err
    assert re.fullmatch(r"error: [^\n]+\n", err) and message in err, err


def files_in(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


def assert_refused_unchanged(result, message, folder, before=()):
    """Refused, and the folder has only the files that were there before."""
    assert_refused(result, message)
    assert files_in(folder) == list(before)


def read_csv(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def outcome(folder, settings=SETTINGS):
    """All that a finished run leaves, but the time of day and what it took."""
    files = Config(**settings, output_dir=folder).files
    assert not files.resume.exists() and not files.previous_resume.exists()
    model = torch.load(files.model, weights_only=True)
    lines = [line.split(" Current_Time")[0] for line in files.train_log.read_text().splitlines()]
    weights = {name: values.tolist() for name, values in model["state_dict"].items()}
    table = [row | {"seconds": ""} for row in read_csv(files.train_table)]
    return weights, model["metrics"], model["epoch"], lines, table
