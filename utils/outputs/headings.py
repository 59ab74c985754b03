"""What stands above a picture, for people to read, and in small letters below it."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from utils.settings.config import NAMED_ALWAYS, Config, default_of
from utils.settings.names import plain

# Values and settings in words; others stand as the command line has them.
WORDS = {
    "cifar10": "CIFAR-10",
    "cifar100": "CIFAR-100",
    "mnist": "MNIST",
    "svhn": "SVHN",
    "tiny": "Tiny-ImageNet",
    "k_sparse_constraints": "K-sparse polytope",
    "l2_constraints": "L2 ball",
    "unconstraints": "no region",
}
PHRASES = {"epoch_num": "{} epochs", "train_batchsize": "batches of {}", "sfw_init": "SFW-Init"}


@dataclass(frozen=True)
class Heading:
    """The title of a picture, and all settings behind it."""

    title: str
    settings: str = ""


def heading(
    training: Mapping[str, Any],
    further: Mapping[str, Any] = MappingProxyType({}),
    remarks: Sequence[str] = (),
) -> Heading:
    """The heading of a picture of one run, or of several with these settings in common.

    `training` has settings that identify a run, by name. The title has the network, the data set
    and the method, then the settings that are not at their defaults, then the `further` settings
    and the `remarks`. What is missing in `training` differs between the runs or is unknown.
    """
    data, arch, own_data = (training.get(name) for name in ("data", "arch", "own_data"))
    training = {name: value for name, value in training.items() if name != "own_data"}
    parts = [_words(training[name]) for name in ("optimizer", "constraint") if name in training]
    for field in dataclasses.fields(Config):
        default = default_of(field, data, arch, own_data) if data and arch else field.default
        if default is None or field.name in NAMED_ALWAYS:  # None depends on data set or network
            continue
        value = training.get(field.name, default)
        if plain(value) != plain(default):
            parts.append(_phrase(field.name, value))
    parts += [*(_phrase(name, value) for name, value in further.items()), *remarks]
    subject = f"{arch or 'several networks'} on {_words(data or 'several data sets')}"
    title = f"{subject}: {', '.join(parts)}" if parts else subject
    settings = (f"{name} {plain(value)}" for name, value in {**training, **further}.items())
    return Heading(title, ",  ".join(text.replace(" ", "\u00a0") for text in settings))


def _words(value: Any) -> str:
    return WORDS.get(value, str(value))


def _phrase(name: str, value: Any) -> str:
    return PHRASES.get(name, f"{name} {{}}").format(plain(value))
