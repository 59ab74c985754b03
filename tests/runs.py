"""Short runs, and what they leave behind."""

import csv
from pathlib import Path

import torch

from utils.settings.config import Config

ROOT = Path(__file__).parents[1]  # of the repository

# A run that trains in a second, and its name.
DIGITS = ("--data", "digits", "--arch", "Mlp", "--epoch_num", "2")
RUN = "data=digits_model=Mlp_optimizer=SFW_constraint=k_sparse_constraints_epoch_num=2"

# Every kind of state: SFW-Init, momentum, a scheme that looks back, batches that are drawn.
SETTINGS = {
    "data": "digits",
    "arch": "Mlp",
    "epoch_num": 5,
    "train_batchsize": 64,
    "sfw_init": 1,
    "sfw_init_iters": 3,
}


def flags_of(settings):
    return [part for name, value in settings.items() for part in (f"--{name}", str(value))]


FLAGS = flags_of(SETTINGS)


def files_in(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


def read_csv(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def outcome(folder, settings=SETTINGS):
    """All that a finished run leaves, but the time of day."""
    files = Config(**settings, output_dir=folder).files
    assert not files.resume.exists() and not files.previous_resume.exists()
    model = torch.load(files.model, weights_only=True)
    lines = [line.split(" Current_Time")[0] for line in files.train_log.read_text().splitlines()]
    weights = {name: values.tolist() for name, values in model["state_dict"].items()}
    return weights, model["metrics"], model["epoch"], lines
