"""What stands above a picture, for people to read, and in small letters below it."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from utils.checkpoints.trained_model import TrainedModel, prunings
from utils.settings.config import METHOD, defaults_beside
from utils.settings.fields import differing
from utils.settings.names import plain, shown

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
PHRASES = {
    "epoch_num": "{} epochs",
    "train_batchsize": "batches of {}",
    "test_fraction": "{} of the images for testing",
    "lr": "learning rate {}",
    "lr_scheme": "schedule {}",
    "test_precision": "tested in {}",
    "bn_recalibrate": "recalibrated on {} images",
    "repair": "repaired on {} images",
}
NAMES = {
    "sfw_init": "SFW-Init",
    "test_precision": "a test precision of its own",
    "own_data": "data set",
    "k_sparseness": "K at least",
    "k_frac": "K fraction",
}


class Heading(NamedTuple):
    """The title of a picture, and all settings behind it."""

    title: str
    settings: str = ""


def heading(
    training: Mapping[str, Any],
    further: Mapping[str, Any] = {},
    remarks: Sequence[str] = (),
) -> Heading:
    """The heading of a picture of one run, or of several with these settings in common.

    `training` has settings that identify a run, by name. The title has the network, the data set
    and the method, then the settings that are not at their defaults, then the `further` settings
    and the `remarks`. What is missing in `training` differs between the runs or is unknown.
    """
    parts = [_words(training[name]) for name in ("optimizer", "constraint") if name in training]
    shown = differing(training, defaults_beside(training)) | dict(further)
    parts += [phrase(name, value) for name, value in shown.items() if name not in METHOD]
    parts += remarks
    arch = training.get("arch", "several networks")
    subject = f"{arch} on {_words(training.get('data', 'several data sets'))}"
    title = f"{subject}: {', '.join(parts)}" if parts else subject
    listed = {n: v for n, v in {**training, **further}.items() if n != "own_data"}
    settings = (f"{name} {plain(value)}" for name, value in listed.items())
    return Heading(title, ",  ".join(text.replace(" ", "\u00a0") for text in settings))


def heading_of(trained: TrainedModel, pruning: Mapping[str, Any] = {}) -> Heading:
    """The heading of a picture of the model, pruned with these settings if there are some."""
    remarks = []
    for before in prunings(trained.pruned_before):
        how = "sliced before by" if before.get("granularity") == "channels" else "pruned before to"
        remarks += [f"{how} {shown(before['sparsity'])}"] if "sparsity" in before else []
    if not trained.training_known:
        remarks.append(f"{trained.source}, whose training settings are unknown")
    return heading(trained.settings, pruning, remarks)


def _words(value: Any) -> str:
    return WORDS.get(value, str(value))


def phrase(name: str, value: Any) -> str:
    """A setting in words; what is off is "without" it."""
    words, text = NAMES.get(name, name.replace("_", " ")), plain(value)
    if name in METHOD:
        return _words(text)
    if text in ("0", "False", "None"):
        return f"without {words}"
    if text == "True" or name == "sfw_init":
        return words
    return PHRASES.get(name, f"{words} {{}}").format(text)
