"""A run's settings: frozen dataclasses, from which flags, names and the log are made."""

import dataclasses
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from constraints import CONSTRAINTS, MODES
from models import ARCHITECTURES
from optim import LR_SCHEMES, RESCALES
from utils.allocation import ALLOCATIONS, SCOPES
from utils.datasets import DATASETS, Dataset, load_dataset
from utils.errors import UserError
from utils.files import RunFiles
from utils.names import file_name, plain

LARGEST_INT = 2**31 - 1
LABELS = {"arch": "model"}  # in names and logs, where it is not the flag's
NAMED_ALWAYS = ("data", "arch", "optimizer", "constraint")  # in names, defaults or not


@dataclass(frozen=True)
class Range:
    """The values that a number may take; `excluded` ends are not among them."""

    low: float
    high: float
    excluded: tuple[float, ...] = ()

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high and value not in self.excluded

    def __str__(self) -> str:
        low = "greater than" if self.low in self.excluded else "at least"
        high = "less than" if self.high in self.excluded else "at most"
        return f"{low} {plain(self.low)} and {high} {plain(self.high)}"


# Far beyond what makes sense, and well within float32.
POSITIVE = Range(0, 1e9, excluded=(0,))
COUNT = Range(1, LARGEST_INT)


def _setting(
    default: Any,
    group: str,
    help: str,
    *,
    type: Callable[[str], Any] = str,
    choices: Iterable[Any] | None = None,
    allowed: Range | None = None,
    changes_weights: bool = True,
    several: bool = False,
) -> Any:
    """A field of settings: the flag of its name, its part of the help, and the values it takes."""
    metadata = {
        "group": group, "help": help, "type": type, "allowed": allowed, "several": several,
        "choices": None if choices is None else tuple(choices), "changes_weights": changes_weights,
    }  # fmt: skip
    return field(default=default, metadata=metadata)


def _or_none(text: str) -> str | None:
    return None if text == "None" else text


@dataclass(frozen=True)
class Config:
    """All settings of a run. Raises UserError when a value, or two together, make no sense."""

    # fmt: off
    data: str = _setting("cifar10", "data", "data set", choices=DATASETS)
    arch: str = _setting("ResNet18", "training", "network", choices=ARCHITECTURES)
    optimizer: str = _setting(
        "SFW", "method", "stochastic Frank-Wolfe, or SGD with momentum and projection onto the"
        " region", choices=("SFW", "SGD"))
    constraint: str = _setting(
        "k_sparse_constraints", "method", "feasible region of each parameter tensor: K-sparse"
        " polytope, L2 ball, or none (SGD only)", choices=CONSTRAINTS)
    train_batchsize: int = _setting(
        128, "training", "images in a training step", type=int, allowed=COUNT)
    test_batchsize: int = _setting(
        128, "training", "images in a batch when testing", type=int, allowed=COUNT,
        changes_weights=False)
    epoch_num: int = _setting(180, "training", "number of epochs", type=int, allowed=COUNT)
    lr: float = _setting(
        1.0, "training", "learning rate; at most 1 for SFW", type=float, allowed=POSITIVE)
    lr_scheme: str = _setting(
        "dynamic_change", "training", "learning rate over time: decrease_3 divides it by 10 after"
        " one and two thirds of the epochs, dynamic_change also follows the training loss, keep"
        " leaves it, cosine and linear lower it to 0 with every step",
        choices=LR_SCHEMES)
    momentum: float = _setting(
        0.9, "training", "weight of the past in the averaged gradient", type=float,
        allowed=Range(0, 1, excluded=(1,)))
    weight_decay: float = _setting(
        0.0, "training", "this times the weights is added to the gradient (L2)", type=float,
        allowed=Range(0, 1e9))
    k_sparseness: int = _setting(
        10, "method", "K of the K-sparse polytope is at least this", type=int, allowed=COUNT)
    k_frac: float = _setting(
        0.05, "method", "K as a fraction of a tensor's entries", type=float,
        allowed=Range(0, 1, excluded=(0,)))
    tau: float = _setting(
        15.0, "method", "size of the region, read as --mode says", type=float, allowed=POSITIVE)
    mode: str | None = _setting(
        "initialization", "method", "tau is the region's L2 diameter, its radius, or half its"
        " diameter in units of the tensor's mean L2 norm at initialization; None goes with"
        " --constraint unconstraints", type=_or_none, choices=MODES)
    rescale: str | None = _setting(
        "gradient", "method", "SFW's step is lr times ||m|| / ||theta - v|| (gradient),"
        " 1 / diameter, or 1 (None)", type=_or_none, choices=RESCALES)
    color_channel: int | None = _setting(
        None, "data", "1 turns colour to grey, 3 repeats grey; by default the data set's own",
        type=int, choices=(1, 3))
    gpu: int = _setting(
        -1, "machine", "CUDA device to run on; -1 is the CPU", type=int,
        allowed=Range(-1, LARGEST_INT), changes_weights=False)
    precision: str = _setting(
        "fp32", "machine", "arithmetic of the network; bf16 is automatic mixed precision",
        choices=("fp32", "bf16"))
    compile: bool = _setting(
        False, "machine", "compile the network, and on a GPU capture each step in a CUDA graph:"
        " about a minute more at the start, faster steps",
        type=bool, choices=(False, True), changes_weights=False)
    resume: str = _setting(
        "auto", "machine", "auto goes on where a run of these settings was stopped, and trains no"
        " finished model again; never starts over", choices=("auto", "never"),
        changes_weights=False)
    seed: int = _setting(
        0, "training", "seed of the initial weights, batches and augmentation", type=int,
        allowed=Range(0, LARGEST_INT))
    data_dir: Path = _setting(
        Path("data"), "data", "folder that holds NAME.npz or the data set as torchvision keeps it;"
        " what is missing is downloaded there", type=Path, changes_weights=False)
    output_dir: Path = _setting(
        Path("."), "machine", "folder for saved_logs/ and saved_models/", type=Path,
        changes_weights=False)
    sfw_init_iters: int = _setting(
        390, "method", "iterations of SFW-Init", type=int, allowed=COUNT)
    sfw_init: int = _setting(
        0, "method", "1 is SFW-Init: it learns a scale of each tensor's initial weights", type=int,
        choices=(0, 1))
    # fmt: on

    def __post_init__(self) -> None:
        for setting in dataclasses.fields(self):
            _check(setting, getattr(self, setting.name))
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
        for setting in dataclasses.fields(self):
            value = getattr(self, setting.name)
            told = setting.name in NAMED_ALWAYS or value != default_of(setting, self.data)
            if setting.metadata["changes_weights"] and told:
                parts[LABELS.get(setting.name, setting.name)] = value
        return file_name(parts)

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


# What a flag of PruneConfig does to a pruned model before it is tested once more, in a word.
CORRECTIONS = {"recalibrated": "bn_recalibrate", "repaired": "repair"}


@dataclass(frozen=True)
class PruneConfig:
    """How test_prune.py prunes. Raises UserError when a value makes no sense."""

    # fmt: off
    allocation: str = _setting(
        "global", "pruning", "how the zeros are spread over the tensors: one threshold for all, the"
        " same fraction of each, Erdos-Renyi-Kernel, or LAMP", choices=ALLOCATIONS)
    prune_scope: str = _setting(
        "all", "pruning", "what is pruned, and what a ratio is a fraction of: all parameters, or"
        " the weights alone, without biases and BatchNorm", choices=SCOPES)
    bn_recalibrate: int = _setting(
        0, "pruning", "also test with BatchNorm's statistics measured anew, after pruning, on this"
        " many training images, of which a thousand will do; 0 is off",
        type=int, allowed=Range(0, LARGEST_INT))
    repair: int = _setting(
        0, "pruning", "for networks without BatchNorm: also test with the mean and deviation of"
        " each layer's outputs restored on this many training images, of which a thousand will"
        " do; 0 is off",
        type=int, allowed=Range(0, LARGEST_INT))
    save_pruned: tuple[float, ...] = _setting(
        (), "pruning", "fractions to remove, 0 <= X < 1: save the model pruned so, and"
        " recalibrated or repaired if that is asked for, as small safetensors files in"
        " saved_models/",
        type=float, allowed=Range(0, 1, excluded=(1,)), several=True, changes_weights=False)
    # fmt: on

    def __post_init__(self) -> None:
        for setting in dataclasses.fields(self):
            _check(setting, getattr(self, setting.name))

    @classmethod
    def taken_from(cls, given: dict[str, Any]) -> Self:
        """From the settings among `given`, which are then no longer there."""
        own = {f.name for f in dataclasses.fields(cls)} & given.keys()
        return cls(**{name: given.pop(name) for name in own})

    @property
    def corrected(self) -> str | None:
        """What was done to a pruned model that is tested once more, of CORRECTIONS."""
        return next((w for w, name in CORRECTIONS.items() if getattr(self, name)), None)

    def in_name(self) -> dict[str, Any]:
        """The settings, by name, that are not the default and change what is measured."""
        changing = [f for f in dataclasses.fields(self) if f.metadata["changes_weights"]]
        values = {f.name: getattr(self, f.name) for f in changing}
        return {f.name: values[f.name] for f in changing if values[f.name] != f.default}

    def files(self, unpruned: RunFiles) -> RunFiles:
        """`unpruned`, named after this pruning, too."""
        return RunFiles(unpruned.output_dir, file_name(self.in_name(), unpruned.run))


SETTINGS = {f.name: f for kind in (Config, PruneConfig) for f in dataclasses.fields(kind)}


def default_of(setting: dataclasses.Field, data: str) -> Any:
    """A setting's default for a data set, which brings its own number of channels."""
    return DATASETS[data].channels if setting.name == "color_channel" else setting.default


def _check(setting: dataclasses.Field, value: Any) -> None:
    if setting.metadata["several"]:
        for one in value:
            _check_one(setting, one)
    else:
        _check_one(setting, value)


def _check_one(setting: dataclasses.Field, value: Any) -> None:
    allowed, choices = setting.metadata["allowed"], setting.metadata["choices"]
    if allowed is not None and type(value) not in (int, setting.metadata["type"]):
        raise UserError(f"--{setting.name} {value!r}: must be a number {allowed}")
    if (
        value is not setting.default
        and choices is not None
        and (not any(type(value) is type(choice) and value == choice for choice in choices))
    ):
        names = ", ".join(map(str, choices))
        raise UserError(f"--{setting.name} {value}: choose one of {names}")
    if allowed is not None and value not in allowed:
        raise UserError(f"--{setting.name} {plain(value)}: must be {allowed}")
