"""How test_prune.py prunes: a frozen dataclass of settings."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utils.outputs.formats import FORMATS
from utils.process.errors import UserError
from utils.prune.allocation import ALLOCATIONS, SCOPES
from utils.prune.ranking import RATIOS
from utils.settings.config import Config
from utils.settings.fields import LARGEST_INT, Range, check_values, identifying_settings, setting
from utils.settings.names import RunFiles, file_name, plain

# The corrections of a pruned model, by their flags. The word is the column of the accuracy after
# the correction, in tables and logs.
CORRECTIONS = {"bn_recalibrate": "recalibrated", "repair": "repaired"}


@dataclass(frozen=True)
class PruneConfig:
    """The settings of pruning. Raises UserError for an invalid value."""

    # fmt: off
    allocation: str = setting(
        "global", "pruning", "how the zeros are spread over the tensors. global: one threshold for"
        " all; uniform: the same fraction of each; erk: Erdos-Renyi-Kernel; lamp: LAMP",
        choices=ALLOCATIONS)
    prune_scope: str = setting(
        "all", "pruning", "what is pruned, and what a ratio is a fraction of. all: all parameters;"
        " weights: the weights alone, without biases and BatchNorm", choices=SCOPES)
    bn_recalibrate: int = setting(
        0, "pruning", "re-estimate BatchNorm statistics on N training images, and test each pruned"
        " network also with these; 1000 images are enough; 0 is off",
        type=int, allowed=Range(0, LARGEST_INT))
    repair: int = setting(
        0, "pruning", "for networks without BatchNorm: restore the mean and standard deviation of"
        " each layer's outputs on N training images, and test each pruned network also with these;"
        " 1000 images are enough; 0 is off",
        type=int, allowed=Range(0, LARGEST_INT))
    ratios: tuple[float, ...] = setting(
        RATIOS, "pruning", "ratios X, 0 <= X < 1: prune at these fractions of all entries (default:"
        " 0 0.1 ... 0.9 0.91 ... 0.99)",
        type=float, allowed=Range(0, 1, excluded=(1,)), several=True, identifies_run=False)
    save_pruned: tuple[float, ...] = setting(
        (), "pruning", "ratios X, 0 <= X < 1: save the network pruned at each of them, after"
        " --bn_recalibrate or --repair if set, in saved_models/",
        type=float, allowed=Range(0, 1, excluded=(1,)), several=True, identifies_run=False)
    pruned_format: tuple[str, ...] = setting(
        ("safetensors",), "pruning", "formats of --save_pruned, one or several. safetensors, the"
        " default: a small file of the weights that are left, with the settings; state_dict: an"
        " ordinary PyTorch state dict; onnx: the network itself, for other programs", type=str,
        choices=FORMATS, several=True, identifies_run=False)
    # fmt: on

    def __post_init__(self) -> None:
        check_values(self)
        object.__setattr__(self, "ratios", tuple(sorted(set(map(float, self.ratios)))))
        if self.pruned_format != ("safetensors",) and not self.save_pruned:
            raise UserError("--pruned_format: nothing is saved without --save_pruned; give ratios")
        object.__setattr__(self, "pruned_format", tuple(dict.fromkeys(self.pruned_format)))

    @property
    def correction(self) -> str | None:
        """The flag of the correction that is switched on, or None."""
        return next((flag for flag in CORRECTIONS if getattr(self, flag)), None)

    @property
    def correction_column(self) -> str | None:
        """The name of the column of accuracies after the correction, or None."""
        return CORRECTIONS.get(self.correction)

    def in_name(self, ratios: bool = True) -> dict[str, Any]:
        """The settings, by name, that affect the results and are not at their defaults.

        Without `ratios`, they are those alone that affect a network pruned at a given ratio.
        """
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        settings = identifying_settings(self) | ({"ratios": self.ratios} if ratios else {})
        return {name: value for name, value in settings.items() if value != defaults[name]}

    def files(self, unpruned: RunFiles) -> RunFiles:
        """The paths of results: `unpruned`, with the settings of `in_name` added to the name."""
        return RunFiles(unpruned.output_dir, file_name(self.in_name(), unpruned.run))

    def pruned_files(self, unpruned: RunFiles, ratio: float) -> dict[str, Path]:
        """By format, the path of the network pruned at `ratio`; other ratios do not change it."""
        files = RunFiles(unpruned.output_dir, file_name(self.in_name(ratios=False), unpruned.run))
        suffixes = {name: FORMATS[name].suffix for name in self.pruned_format}
        return {name: files.pruned(plain(ratio), suffix) for name, suffix in suffixes.items()}


SETTINGS = {
    f.name: f
    for kind in (Config, PruneConfig)
    for f in dataclasses.fields(kind)
    if f.metadata["group"]
}
