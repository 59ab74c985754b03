"""A training run's settings: a frozen dataclass from which flags, names and logs are made."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from constraints import CONSTRAINTS, MODES
from models import ARCHITECTURES
from optim import LR_SCHEMES, RESCALES
from utils.datasets import DATASETS, Dataset, load_dataset
from utils.process.errors import UserError
from utils.settings.fields import (
    COUNT,
    LARGEST_INT,
    POSITIVE,
    Range,
    check_values,
    none_or_text,
    setting,
)
from utils.settings.names import RunFiles, file_name

LABELS = {"arch": "model"}  # in names and logs, where it is not the flag's
NAMED_ALWAYS = ("data", "arch", "optimizer", "constraint")  # in names, defaults or not


@dataclass(frozen=True)
class Config:
    """All settings of a run. Raises UserError when a value, or two together, make no sense."""

    # fmt: off
    data: str = setting("cifar10", "data", "data set", choices=DATASETS)
    arch: str = setting("ResNet18", "training", "network", choices=ARCHITECTURES)
    optimizer: str = setting(
        "SFW", "method", "stochastic Frank-Wolfe, or SGD with momentum and projection onto the"
        " region", choices=("SFW", "SGD"))
    constraint: str = setting(
        "k_sparse_constraints", "method", "feasible region of each parameter tensor: K-sparse"
        " polytope, L2 ball, or none (SGD only)", choices=CONSTRAINTS)
    train_batchsize: int = setting(
        128, "training", "images in a training step", type=int, allowed=COUNT)
    test_batchsize: int = setting(
        128, "training", "images in a batch when testing", type=int, allowed=COUNT,
        changes_weights=False)
    epoch_num: int = setting(180, "training", "number of epochs", type=int, allowed=COUNT)
    lr: float = setting(
        1.0, "training", "learning rate; at most 1 for SFW", type=float, allowed=POSITIVE)
    lr_scheme: str = setting(
        "dynamic_change", "training", "learning rate over time: decrease_3 divides it by 10 after"
        " one and two thirds of the epochs, dynamic_change also follows the training loss, keep"
        " leaves it, cosine and linear lower it to 0 with every step",
        choices=LR_SCHEMES)
    momentum: float = setting(
        0.9, "training", "weight of the past in the averaged gradient", type=float,
        allowed=Range(0, 1, excluded=(1,)))
    weight_decay: float = setting(
        0.0, "training", "this times the weights is added to the gradient (L2)", type=float,
        allowed=Range(0, 1e9))
    k_sparseness: int = setting(
        10, "method", "K of the K-sparse polytope is at least this", type=int, allowed=COUNT)
    k_frac: float = setting(
        0.05, "method", "K as a fraction of a tensor's entries", type=float,
        allowed=Range(0, 1, excluded=(0,)))
    tau: float = setting(
        15.0, "method", "size of the region, read as --mode says", type=float, allowed=POSITIVE)
    mode: str | None = setting(
        "initialization", "method", "tau is the region's L2 diameter, its radius, or half its"
        " diameter in units of the tensor's mean L2 norm at initialization; None goes with"
        " --constraint unconstraints", type=none_or_text, choices=MODES)
    rescale: str | None = setting(
        "gradient", "method", "SFW's step is lr times ||m|| / ||theta - v|| (gradient),"
        " 1 / diameter, or 1 (None)", type=none_or_text, choices=RESCALES)
    color_channel: int | None = setting(
        None, "data", "1 turns colour to grey, 3 repeats grey; by default the data set's own",
        type=int, choices=(1, 3))
    gpu: int = setting(
        -1, "machine", "CUDA device to run on; -1 is the CPU", type=int,
        allowed=Range(-1, LARGEST_INT), changes_weights=False)
    precision: str = setting(
        "fp32", "machine", "arithmetic of the network; bf16 is automatic mixed precision",
        choices=("fp32", "bf16"))
    compile: bool = setting(
        False, "machine", "compile the network, and on a GPU capture each step in a CUDA graph:"
        " about a minute more at the start, faster steps",
        type=bool, choices=(False, True), changes_weights=False)
    resume: str = setting(
        "auto", "machine", "auto goes on where a run of these settings was stopped, and trains no"
        " finished model again; never starts over", choices=("auto", "never"),
        changes_weights=False)
    seed: int = setting(
        0, "training", "seed of the initial weights, batches and augmentation", type=int,
        allowed=Range(0, LARGEST_INT))
    data_dir: Path = setting(
        Path("data"), "data", "folder that holds NAME.npz or the data set as torchvision keeps it;"
        " what is missing is downloaded there", type=Path, changes_weights=False)
    output_dir: Path = setting(
        Path("."), "machine", "folder for saved_logs/ and saved_models/", type=Path,
        changes_weights=False)
    sfw_init_iters: int = setting(
        390, "method", "iterations of SFW-Init", type=int, allowed=COUNT)
    sfw_init: int = setting(
        0, "method", "1 is SFW-Init: it learns a scale of each tensor's initial weights", type=int,
        choices=(0, 1))
    # fmt: on

    def __post_init__(self) -> None:
        check_values(self)
        if self.color_channel is None:
            object.__setattr__(self, "color_channel", DATASETS[self.data].channels)
        if self.optimizer == "SFW" and self.constraint == "unconstraints":
            raise UserError(
                "--constraint unconstraints: SFW needs a bounded region;"
                " choose another constraint or --optimizer SGD"
            )
        if self.optimizer == "SFW" and self.lr > 1:
            raise UserError(f"--lr {self.lr:g}: SFW takes a learning rate of at most 1")
        if self.mode is None and self.constraint != "unconstraints":
            sizes = ", ".join(mode for mode in MODES if mode)
            raise UserError(f"--mode None: a region needs a size; choose {sizes}")
        if self.sfw_init and self.constraint == "unconstraints":
            raise UserError("--sfw_init 1: needs a bounded region; choose another --constraint")

    @property
    def run_name(self) -> str:
        """A file name for the run: no two settings that train different weights share one.

        It spells out what is not the default, so that settings added later change no name, and
        has at most 184 bytes: a very long one is cut and ends in a checksum of the whole.
        """
        parts = {}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            spelled_out = field.name in NAMED_ALWAYS or value != default_of(field, self.data)
            if field.metadata["changes_weights"] and spelled_out:
                parts[LABELS.get(field.name, field.name)] = value
        return file_name(parts)

    @property
    def num_classes(self) -> int:
        """How many classes the data set has."""
        return DATASETS[self.data].classes

    @property
    def image_size(self) -> int:
        """The side, in pixels, of the images that the network sees."""
        info = DATASETS[self.data]
        return ARCHITECTURES[self.arch].image_size or info.input_side or info.side

    @property
    def files(self) -> RunFiles:
        return RunFiles(self.output_dir, self.run_name)

    def load_dataset(self) -> Dataset:
        """The run's data; raises UserError as `utils.datasets.load_dataset` does."""
        return load_dataset(self.data, self.data_dir, self.color_channel, self.image_size)

    def changing_weights(self) -> dict[str, Any]:
        """The settings, by name, that change the trained weights."""
        fields = dataclasses.fields(self)
        return {f.name: getattr(self, f.name) for f in fields if f.metadata["changes_weights"]}

    def as_dict(self) -> dict[str, Any]:
        """The settings as plain types, for a model file."""
        return {
            name: str(value) if isinstance(value, Path) else value
            for name, value in vars(self).items()
        }


def default_of(field: dataclasses.Field, data: str) -> Any:
    """A setting's default; that of color_channel is the data set's number of channels."""
    return DATASETS[data].channels if field.name == "color_channel" else field.default
