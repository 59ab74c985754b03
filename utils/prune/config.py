"""How test_prune.py prunes: a frozen dataclass of settings."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utils.checkpoints.formats import FORMATS
from utils.process.errors import UserError, require
from utils.prune.channels.scores import SCORES
from utils.prune.weights.allocation import ALLOCATIONS, SCOPES
from utils.prune.weights.patterns import DENSE, by_removed, is_pattern
from utils.prune.weights.ranking import RATIOS
from utils.settings.config import PRECISIONS
from utils.settings.fields import (
    COUNT,
    NOT_NEGATIVE,
    Range,
    check_values,
    differing,
    identifying_settings,
    setting,
)
from utils.settings.names import RunFiles, file_name, plain

# What pruning removes, and how much of it unless --ratios or --patterns gives others: a fraction of
# all entries of the weights, or of the multiply-adds that a network takes, or patterns N:M.
GRANULARITIES = {"weights": RATIOS, "channels": RATIOS[:10], "N:M": ("2:4",)}
# The granularities that a setting is for; others are for all.
OF_GRANULARITIES = {
    "round_to": ("channels",),
    "channel_score": ("channels",),
    "allocation": ("weights", "channels"),
    "prune_scope": ("weights",),
    "repair": ("weights", "N:M"),
    "ratios": ("weights", "channels"),
    "patterns": ("N:M",),
}
CHANNEL_ALLOCATIONS = ("global", "uniform")
# The corrections of a pruned model, by their flags. The word is the column of the accuracy after
# the correction, in tables and logs.
CORRECTIONS = {"bn_recalibrate": "recalibrated", "repair": "repaired"}


def ratio(text: str) -> float | str:
    """A ratio, or a pattern N:M."""
    return text if is_pattern(text) else float(text)


@dataclass(frozen=True)
class PruneConfig:
    """The settings of pruning.

    Raises UserError for an invalid value, and for one that needs what is not installed.
    """

    # fmt: off
    granularity: str = setting(
        "weights", "pruning", "what is removed. weights: single weights become 0; channels: whole"
        " channels are cut out, which makes the network smaller and faster, and a ratio is the"
        " fraction of multiply-adds removed; N:M: of each M weights along the inputs of a layer, N"
        " stay, as sparse tensor cores want it", choices=GRANULARITIES)
    round_to: int = setting(
        1, "pruning", "with --granularity channels: layers keep a number of channels that is a"
        " multiple of N, or all", type=int, allowed=COUNT)
    channel_score: str = setting(
        "relative", "pruning", "with --granularity channels: how coupled channels are ranked."
        " relative: by the norms of their weights, in units of the mean of each tensor; l2: by the"
        " L2 norm of all their weights", choices=SCORES)
    allocation: str = setting(
        "global", "pruning", "how the zeros are spread over the tensors. global: one threshold for"
        " all; uniform: the same fraction of each; erk: Erdos-Renyi-Kernel; lamp: LAMP. Channels"
        " take global and uniform alone", choices=ALLOCATIONS)
    prune_scope: str = setting(
        "all", "pruning", "what is pruned, and what a ratio is a fraction of. all: all parameters;"
        " weights: the weights alone, without biases and BatchNorm", choices=SCOPES)
    bn_recalibrate: int = setting(
        0, "pruning", "re-estimate BatchNorm statistics on N training images, for example"
        " 1000, and test each pruned network also with these; 0 is off", allowed=NOT_NEGATIVE)
    repair: int = setting(
        0, "pruning", "for networks without BatchNorm: restore the mean and standard deviation of"
        " each layer's outputs on N training images, for example 1000, and test each pruned network"
        " also with these; 0 is off", allowed=NOT_NEGATIVE)
    corrected_only: bool = setting(
        False, "pruning", "with --bn_recalibrate or --repair: leave out the test of each network as"
        " pruned, which takes as long as that of the corrected one", choices=(False, True))
    test_precision: str | None = setting(
        None, "pruning", "arithmetic of tests and corrections: bf16 takes less time on a machine"
        " made for it, and may change the class of a few images (default: that of the training)",
        choices=PRECISIONS)
    ratios: tuple[float, ...] | None = setting(
        None, "pruning", "ratios X, 0 <= X < 1: prune at these fractions of all entries (default:"
        " 0 0.1 ... 0.9 0.91 ... 0.99) or, with --granularity channels, of all multiply-adds"
        " (default: 0 0.1 ... 0.9)",
        type=float, allowed=Range(0, 1, excluded=(1,)), several=True, identifies_run=False)
    patterns: tuple[str, ...] | None = setting(
        None, "pruning", "with --granularity N:M: the patterns, where N is less than M (default:"
        " 2:4)", type=str, choices=("2:4", "1:4", "4:8", "2:8"), also=("N:M", is_pattern),
        several=True, identifies_run=False)
    save_pruned: tuple[float | str, ...] = setting(
        (), "pruning", "ratios X, 0 <= X < 1, or patterns N:M: save the network pruned at each of"
        " them, after --bn_recalibrate or --repair if set, in saved_models/", type=ratio,
        allowed=Range(0, 1, excluded=(1,)), also=("X or N:M", is_pattern), several=True,
        identifies_run=False)
    pruned_format: tuple[str, ...] = setting(
        ("npz",), "pruning", "formats of --save_pruned, one or several. npz, the default: NumPy's"
        " compressed arrays, small since zeros take no room, with the settings; state_dict: an"
        " ordinary PyTorch state dict; onnx: the network itself, for other programs", type=str,
        choices=FORMATS, several=True, identifies_run=False)
    # fmt: on

    def __post_init__(self) -> None:
        check_values(self)
        self._check_granularity()
        if self.bn_recalibrate == 1:
            raise UserError("--bn_recalibrate 1: an image has no variance; 1000 are enough")
        if self.corrected_only and self.correction is None:
            raise UserError(
                "--corrected_only: nothing is corrected; add --bn_recalibrate or --repair"
            )
        listed = getattr(self, self.listed) or GRANULARITIES[self.granularity]
        object.__setattr__(self, self.listed, _sorted(listed))
        object.__setattr__(self, "save_pruned", _sorted(self.save_pruned))
        if self.pruned_format != DEFAULTS["pruned_format"] and not self.save_pruned:
            raise UserError("--pruned_format: nothing is saved without --save_pruned; give ratios")
        object.__setattr__(self, "pruned_format", tuple(dict.fromkeys(self.pruned_format)))
        for name in self.pruned_format:
            require(f"--pruned_format {name}", *FORMATS[name].modules)
        if self.granularity == "channels":
            require("--granularity channels", "torch_pruning")

    def _check_granularity(self) -> None:
        """Raise UserError for a setting that is of another granularity."""
        for name, granularities in OF_GRANULARITIES.items():
            if self.granularity not in granularities and getattr(self, name) != DEFAULTS[name]:
                raise UserError(
                    f"--{name}: is for --granularity {' or '.join(granularities)}; give that, or"
                    f" leave out --{name}"
                )
        if self.granularity == "channels" and self.allocation not in CHANNEL_ALLOCATIONS:
            raise UserError(
                f"--allocation {self.allocation}: is for single weights; for channels, choose"
                f" {' or '.join(CHANNEL_ALLOCATIONS)}"
            )
        for value in self.save_pruned:
            if isinstance(value, str) != (self.granularity == "N:M"):
                way = "give ratios" if isinstance(value, str) else "give patterns, as 2:4"
                raise UserError(
                    f"--save_pruned {plain(value)}: does not go with --granularity"
                    f" {self.granularity}; {way}"
                )

    @property
    def listed(self) -> str:
        """The setting that lists at what to prune."""
        return "patterns" if self.granularity == "N:M" else "ratios"

    @property
    def all_ratios(self) -> list[float] | list[str]:
        """At what to prune, ascending: --ratios or --patterns, and --save_pruned.

        Patterns are in the order of what a layer that fits loses, after DENSE.
        """
        dense = (DENSE,) if self.granularity == "N:M" else ()
        return list(_sorted((*dense, *getattr(self, self.listed), *self.save_pruned)))

    @property
    def correction(self) -> str | None:
        """The flag of the correction that is switched on, or None."""
        return next((flag for flag in CORRECTIONS if getattr(self, flag)), None)

    def beside(self, precision: str) -> "PruneConfig":
        """These settings for a network trained in this precision, which is no test precision."""
        same = self.test_precision == precision
        return dataclasses.replace(self, test_precision=None) if same else self

    def in_name(self, ratios: bool = True) -> dict[str, Any]:
        """The settings, by name, that affect the results and are not at their defaults.

        Without `ratios`, they are those alone that affect a network pruned at a given ratio.
        """
        defaults = DEFAULTS | {self.listed: GRANULARITIES[self.granularity]}
        listed = {self.listed: getattr(self, self.listed)} if ratios else {}
        return differing(identifying_settings(self) | listed, defaults)

    def files(self, unpruned: RunFiles, ratios: bool = True) -> RunFiles:
        """The paths of results: `unpruned`, with the settings of `in_name` added to the name."""
        return dataclasses.replace(unpruned, run=file_name(self.in_name(ratios), unpruned.run))

    def pruned_files(self, unpruned: RunFiles, ratio: float | str) -> dict[str, Path]:
        """By format, the path of the network pruned at `ratio`; other ratios do not change it."""
        files = self.files(unpruned, ratios=False)
        return {f: files.pruned(plain(ratio), FORMATS[f].suffix) for f in self.pruned_format}


def _sorted(ratios: Sequence[float | str]) -> tuple[float | str, ...]:
    """Ratios or patterns, each once, ascending in what they remove; of -0 and 0, 0."""
    if any(isinstance(ratio, str) for ratio in ratios):
        return tuple(by_removed(ratios))
    return tuple(sorted({abs(float(ratio)) for ratio in ratios}))


DEFAULTS = {field.name: field.default for field in dataclasses.fields(PruneConfig)}
