"""A training run's settings: a frozen dataclass from which flags, names and logs are made."""

import dataclasses
from collections.abc import Mapping
from dataclasses import InitVar, dataclass
from pathlib import Path
from typing import Any

from constraints import CONSTRAINTS, MODES
from models import ARCHITECTURES, architecture, is_factory
from optim import LR_SCHEMES, RESCALES
from utils.datasets import DATASETS, Dataset, OwnData, load_dataset, read_own
from utils.datasets.augment import AUGMENTATIONS
from utils.datasets.own import check_name
from utils.process.errors import UserError
from utils.settings.fields import (
    COUNT,
    LARGEST_INT,
    NOT_NEGATIVE,
    POSITIVE,
    Range,
    check_values,
    differing,
    identifying_settings,
    none_or_text,
    path,
    setting,
)
from utils.settings.names import RunFiles, file_name, plain

LABELS = {"arch": "model"}  # settings whose label in names and logs is not the flag's name
METHOD = ("data", "arch", "optimizer", "constraint")  # what labels and titles begin with
NO_REGION = "unconstraints"
# The defaults that depend on the optimizer.
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "SFW": {"lr": 1.0, "constraint": "k_sparse_constraints"},
    "SGD": {"lr": 0.1, "constraint": NO_REGION},
}
PRECISIONS = ("fp32", "bf16")
LARGEST_SIDE = 4096  # of images, in pixels
DATA_FOLDER = Path(__file__).resolve().parents[2] / "data"  # wherever the scripts are started


@dataclass(frozen=True)
class Config:
    """All settings of a run. Raises UserError for an invalid value or combination of values.

    The order of the fields is that of their values in names and logs: a field that moves renames
    runs. Settings `from_file` may name a region and a schedule that are not in the tables here:
    only a training needs these.
    """

    # fmt: off
    data: str = setting(
        "cifar10", "data", f"data set: {', '.join(DATASETS)}, or the name of one of your own,"
        " NAME.npz or NAME/train/CLASS/ and NAME/test/CLASS/ in --data_dir; see docs/own_data.md")
    arch: str = setting(
        "ResNet18", "training", "network; MODULE:FACTORY is one of your own, as in"
        " torchvision.models:resnet18 or, from a file nets.py in the current folder, nets:small",
        choices=ARCHITECTURES, also=("MODULE:FACTORY", is_factory))
    optimizer: str = setting(
        "SFW", "method", "stochastic Frank-Wolfe, or SGD with momentum, which --constraint projects"
        " onto a region after each step", choices=OPTIMIZERS)
    constraint: str | None = setting(
        None, "method", "feasible region of each parameter tensor: K-sparse polytope, L2 ball, or"
        " none (SGD only) (default: k_sparse_constraints for SFW, unconstraints for SGD)",
        choices=CONSTRAINTS, extensible=True)
    train_batchsize: int = setting(128, "training", "images in a training step", allowed=COUNT)
    test_batchsize: int = setting(
        128, "training", "images in a batch when testing", allowed=COUNT, identifies_run=False)
    epoch_num: int = setting(180, "training", "number of epochs", allowed=COUNT)
    lr: float | None = setting(
        None, "training", "learning rate, for SFW at most 1 (default: 1 for SFW, 0.1 for SGD)",
        type=float, allowed=POSITIVE)
    lr_scheme: str = setting(
        "dynamic_change", "training", "learning rate over time: decrease_3 divides it by 10 after"
        " one and two thirds of the epochs; dynamic_change does so, too, and from epoch 25 on"
        " multiplies it every 5 epochs by 0.7 where the training loss rises, and by 1.06 where it"
        " falls; keep leaves it; cosine and linear lower it to 0 with every step",
        choices=LR_SCHEMES, extensible=True)
    warmup_steps: int = setting(
        0, "training", "the learning rate rises linearly over this number of first steps; 400 are"
        " enough for VGG16 with SGD", allowed=NOT_NEGATIVE)
    momentum: float = setting(
        0.9, "training", "momentum of the buffer m, given a gradient g: SFW averages,"
        " m = momentum m + (1 - momentum) g; SGD sums, m = momentum m + g",
        allowed=Range(0, 1, excluded=(1,)))
    weight_decay: float = setting(
        0.0, "training", "multiple of the weights that is added to the gradient (L2)",
        allowed=Range(0, 1e9))
    k_sparseness: int = setting(
        10, "method", "least K of the K-sparse polytope: a tensor of n entries has"
        " K = min(max(k_sparseness, floor(k_frac n)), n)", allowed=COUNT)
    k_frac: float = setting(
        0.05, "method", "K as a fraction of a tensor's n entries; see --k_sparseness",
        allowed=Range(0, 1, excluded=(0,)))
    tau: float = setting(15.0, "method", "size of the region, as --mode says", allowed=POSITIVE)
    mode: str | None = setting(
        "initialization", "method", "how --tau sets the size of a region. initialization: its L2"
        " diameter is 2 tau times the tensor's mean L2 norm at initialization; diameter: its L2"
        " diameter is tau; radius: its radius is tau; None: there is no region, as with"
        " --constraint unconstraints", type=none_or_text, choices=MODES)
    rescale: str | None = setting(
        "gradient", "method", "SFW's step size alpha, between 0 and 1, is lr times"
        " ||m|| / ||theta - v|| (gradient), 1 / diameter, or 1 (None)", type=none_or_text,
        choices=RESCALES)
    color_channel: int | None = setting(
        None, "data", "1 turns colour to grey, 3 repeats grey; by default the data set's own",
        type=int, choices=(1, 3))
    image_size: int | None = setting(
        None, "data", "side of the images that the network takes: they are resized so that their"
        " shorter side has this length, and cropped to a square; by default the data set's own"
        " side, and 32 for tiny, for images in folders, and for ResNet18 and VGG16 on built-in"
        " data sets; VGG16 takes no other", type=int, allowed=Range(1, LARGEST_SIDE))
    augment: str | None = setting(
        None, "data", "what happens to training images at random: crop_flip shifts them by up to 4"
        " pixels and flips them, resized_crop_flip takes a part of them that it resizes, and flips"
        " it; by default the data set's own", choices=AUGMENTATIONS)
    test_fraction: float = setting(
        0.0, "data", "this fraction of the images of each class, such as 0.2, is for testing, where"
        " data of one's own have no test images", allowed=Range(0, 1, excluded=(1,)))
    gpu: int = setting(
        -1, "machine", "CUDA device to run on; -1 is the CPU",
        allowed=Range(-1, LARGEST_INT), identifies_run=False)
    precision: str = setting(
        "fp32", "machine", "arithmetic of the network; bf16 is automatic mixed precision",
        choices=PRECISIONS)
    compile: bool = setting(
        False, "machine", "compile the network: the start takes longer, and steps are faster",
        choices=(False, True), identifies_run=False)
    tensorboard: bool = setting(
        False, "machine", "also write the course of the training to saved_logs/tensorboard/, for"
        " TensorBoard", choices=(False, True), identifies_run=False)
    figure_format: str = setting(
        "png", "machine", "format of pictures", choices=("png", "pdf", "svg"), identifies_run=False)
    resume: str = setting(
        "auto", "machine", "auto continues a stopped run of the same settings, and does not train a"
        " finished model again; never starts over", choices=("auto", "never"),
        identifies_run=False)
    seed: int = setting(
        0, "training", "seed of the initial weights, batches, augmentation", allowed=NOT_NEGATIVE)
    data_dir: Path = setting(
        DATA_FOLDER, "data", "folder that holds NAME.npz or the data set as torchvision keeps it;"
        " what is missing is downloaded there", type=path, identifies_run=False)
    output_dir: Path = setting(
        Path("."), "machine", "folder for saved_logs/ and saved_models/", type=path,
        identifies_run=False)
    pruned_steps: float = setting(
        0.0, "method", "in this last fraction of the training, such as 0.33, every second step"
        " takes the gradient of the network pruned by magnitude, to a sparsity drawn from 80, 90,"
        " 95 and 98 %, so that it loses less when it is pruned", allowed=Range(0, 1))
    sfw_init_iters: int = setting(390, "method", "iterations of SFW-Init", allowed=COUNT)
    sfw_init: int = setting(
        0, "method", "1 runs SFW-Init, which learns a scale for the initial values of each tensor",
        choices=(0, 1))
    processes: int = setting(
        1, "training", "processes that shared each batch, as torchrun starts them: train_prune.py"
        " knows their number, and a test of its model takes this flag", allowed=COUNT)
    sync_bn: bool = setting(
        False, "training", "BatchNorm over the whole batch, where each of several processes, on"
        " GPUs, would otherwise take the statistics of its own part", choices=(False, True))
    own_data: dict[str, Any] | None = setting(  # OwnData in plain types
        None, None, "what is known of a data set of one's own; see `with_own_data`", type=dict)
    # fmt: on
    from_file: InitVar[bool] = False

    def __post_init__(self, from_file: bool) -> None:
        check_values(self, from_file)
        if self.data in DATASETS:
            object.__setattr__(self, "own_data", None)
        else:
            check_name(self.data)  # of a file, it must not choose where others are written
            OwnData.of(self.own_data)
        defaults = defaults_beside(vars(self))
        if self.constraint is None and defaults["constraint"] == NO_REGION:
            self._refuse_sizes()
        for name, default in defaults.items():
            if getattr(self, name) is None and FIELDS[name].default is None:
                object.__setattr__(self, name, default)
        if self.constraint == NO_REGION:
            object.__setattr__(self, "mode", None)
        self._check_combination()

    def _refuse_sizes(self) -> None:
        """Raise UserError for the size of a region where none was chosen."""
        for name in ("k_sparseness", "k_frac", "tau", "mode"):
            value = getattr(self, name)
            if value not in (FIELDS[name].default, None):
                raise UserError(
                    f"--{name} {plain(value)}: is of a region, and {self.optimizer} has none unless"
                    " --constraint names it; add that flag, or leave this one out"
                )

    def _check_combination(self) -> None:
        """Raise UserError for values that do not go together."""
        if self.optimizer == "SFW" and self.constraint == NO_REGION:
            needs = "SFW needs a bounded region; choose another, or --optimizer SGD"
            raise UserError(f"--constraint {NO_REGION}: {needs}")
        if self.optimizer == "SFW" and self.lr > 1:
            raise UserError(f"--lr {self.lr:g}: SFW takes a learning rate of at most 1")
        if self.mode is None and self.constraint != NO_REGION:
            sizes = ", ".join(mode for mode in MODES if mode)
            raise UserError(f"--mode None: a region needs a size; choose {sizes}")
        if self.sfw_init and self.constraint == NO_REGION:
            raise UserError("--sfw_init 1: needs a bounded region; choose another --constraint")
        if not (network := architecture(self.arch)).takes(self.image_size):
            takes = f"{self.arch} takes images of {network.image_size}; give that"
            raise UserError(f"--image_size {self.image_size}: {takes}, or another --arch")

    @property
    def run_name(self) -> str:
        """Data set, network, optimizer, and what is not at its default.

        A setting that is added later thus changes no name.
        """
        settings = identifying_settings(self)
        named = {*METHOD[:3], *differing(settings, defaults_beside(settings))}
        return file_name({LABELS.get(n, n): v for n, v in settings.items() if n in named})

    @property
    def num_classes(self) -> int:
        return (DATASETS.get(self.data) or OwnData.of(self.own_data).info).classes

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of the network's input images."""
        return self.color_channel, self.image_size, self.image_size

    @property
    def files(self) -> RunFiles:
        return RunFiles(self.output_dir, self.run_name, f".{self.figure_format}")

    def load_dataset(self) -> Dataset:
        """Load the run's data set; raises UserError as `utils.datasets.load_dataset` does."""
        return load_dataset(
            self.data,
            self.data_dir,
            self.color_channel,
            self.image_size,
            self.augment,
            resize=self.image_size != defaults_beside(vars(self))["image_size"],
            known=self.own_data and OwnData.of(self.own_data),
            test_fraction=self.test_fraction,
        )

    def as_dict(self) -> dict[str, Any]:
        """The settings as plain types, for a model file: all but the folders of this machine."""
        return {name: value for name, value in vars(self).items() if not isinstance(value, Path)}


FIELDS = {field.name: field for field in dataclasses.fields(Config)}


def with_own_data(settings: Mapping[str, Any]) -> dict[str, Any]:
    """These settings of Config with what is known of a data set of one's own, which is read.

    Raises UserError for values that Config refuses, before anything is read, and as `read_own`.
    """
    data = settings.get("data", Config.data)
    if data in DATASETS or settings.get("own_data") is not None:
        return dict(settings)
    valid = Config(**{**settings, "data": Config.data})
    folder, image_size = valid.data_dir.absolute(), settings.get("image_size")
    _, own = read_own(data, folder, image_size, valid.test_fraction)
    return {**settings, "own_data": own.plain()}


def defaults_beside(known: Mapping[str, Any]) -> dict[str, Any]:
    """What each setting of Config is, by name, where it is left out beside those that are `known`.

    A default that depends on others is missing, and so is that of `own_data`.
    """
    defaults = {name: f.default for name, f in FIELDS.items() if f.default is not None}
    defaults |= OPTIMIZERS.get(known.get("optimizer"), {})
    constraint = known.get("constraint") or defaults.get("constraint")
    if constraint is None:
        del defaults["mode"]
    elif constraint == NO_REGION:
        defaults["mode"] = None
    data, arch, own_data = (known.get(name) for name in ("data", "arch", "own_data"))
    info = DATASETS.get(data) or (own_data and OwnData.of(own_data).info)
    if info is None or arch is None:
        return defaults
    side = info.side if own_data else architecture(arch).image_size or info.input_side or info.side
    return defaults | dict(color_channel=info.channels, image_size=side, augment=info.augment)
