"""Settings as a file has them, beside those of a run."""

from collections.abc import Mapping
from typing import Any

from utils.datasets import OwnData
from utils.settings.names import plain

# What is known of a network without the settings of its training: those that it is tested with.
OF_TEST = ("data", "arch", "color_channel", "image_size", "test_fraction", "precision", "own_data")


def training_known(settings: Mapping[str, Any]) -> bool:
    """Whether these are settings of a training, and not of a test alone."""
    return "optimizer" in settings


def first_difference(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> str | None:
    """How the first setting of both that differs in a file differs from that of a run, in words."""
    name = next((name for name in theirs if name in ours and theirs[name] != ours[name]), None)
    if name is None:
        return None
    if name != "own_data":
        return f"--{name} {plain(theirs[name])}, not {plain(ours[name])}"
    if theirs[name] is None or ours[name] is None:
        return "another data set"
    return f"other data: {OwnData.of(theirs[name]).difference(OwnData.of(ours[name]))}"
