"""How test_prune.py prunes: a frozen dataclass of settings."""

import dataclasses
from dataclasses import dataclass
from typing import Any, Self

from utils.prune.allocation import ALLOCATIONS, SCOPES
from utils.settings.config import Config
from utils.settings.fields import LARGEST_INT, Range, check_values, setting
from utils.settings.names import RunFiles, file_name

# What a flag of PruneConfig does to a pruned model before it is tested once more, in a word.
CORRECTIONS = {"recalibrated": "bn_recalibrate", "repaired": "repair"}


@dataclass(frozen=True)
class PruneConfig:
    """How test_prune.py prunes. Raises UserError when a value makes no sense."""

    # fmt: off
    allocation: str = setting(
        "global", "pruning", "how the zeros are spread over the tensors: one threshold for all, the"
        " same fraction of each, Erdos-Renyi-Kernel, or LAMP", choices=ALLOCATIONS)
    prune_scope: str = setting(
        "all", "pruning", "what is pruned, and what a ratio is a fraction of: all parameters, or"
        " the weights alone, without biases and BatchNorm", choices=SCOPES)
    bn_recalibrate: int = setting(
        0, "pruning", "also test with BatchNorm's statistics measured anew, after pruning, on this"
        " many training images, of which a thousand will do; 0 is off",
        type=int, allowed=Range(0, LARGEST_INT))
    repair: int = setting(
        0, "pruning", "for networks without BatchNorm: also test with the mean and deviation of"
        " each layer's outputs restored on this many training images, of which a thousand will"
        " do; 0 is off",
        type=int, allowed=Range(0, LARGEST_INT))
    save_pruned: tuple[float, ...] = setting(
        (), "pruning", "fractions to remove, 0 <= X < 1: save the model pruned so, and"
        " recalibrated or repaired if that is asked for, as small safetensors files in"
        " saved_models/",
        type=float, allowed=Range(0, 1, excluded=(1,)), several=True, changes_weights=False)
    # fmt: on

    def __post_init__(self) -> None:
        check_values(self)

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
