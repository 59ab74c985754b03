"""How settings are written in names, logs and messages, and the paths of a run's files."""

import hashlib
from dataclasses import dataclass
from decimal import Decimal
from functools import partialmethod
from pathlib import Path
from typing import Any


def file_name(parts: dict[str, Any], start: str | None = None) -> str:
    """A name of at most 184 bytes made of LABEL=VALUE parts, after the name `start` if any.

    A longer one is cut, and gets a checksum of the full name. With `start`, only that is cut: all
    parts stay. A single value of more than 40 bytes is cut in the same way. A colon, which some
    file systems refuse, becomes "-", which no value with a colon contains.
    """
    spelled = [
        f"{label}={_shortened(plain(value)).replace(':', '-')}" for label, value in parts.items()
    ]
    name = "_".join(spelled if start is None else [start, *spelled])
    if len(name.encode()) > 184:
        end = "" if start is None else "_".join(["", *spelled])
        if len(end) > 160:  # so many parts are cut with the rest
            end = ""
        beginning = name.encode()[: 160 - len(end)].decode(errors="ignore")
        name = f"{beginning}_sha256={hashlib.sha256(name.encode()).hexdigest()[:16]}{end}"
    return name


def _shortened(text: str) -> str:
    """`text`, or its beginning and a checksum if it has more than 40 bytes."""
    if len(text.encode()) <= 40:
        return text
    beginning = text.encode()[:26].decode(errors="ignore")
    return f"{beginning}..{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def plain(value: Any) -> str:
    """A setting's value as text: short, but different for different values."""
    if isinstance(value, tuple):
        return ",".join(map(plain, value))
    if isinstance(value, float) and float(f"{value:g}") == value:
        return f"{value + 0.0:g}"  # -0.0 is written as 0
    return str(value)


def shown(ratio: float | str) -> str:
    """A ratio as a percentage that is not rounded, as 99.999999%, or a pattern N:M as it is."""
    if isinstance(ratio, str):
        return ratio
    return f"{(100 * Decimal(plain(ratio))).normalize():f}%"


def results_line(**files: Path) -> str:
    """The line that ends a script's output, such as "Results: logs/ (picture: a.png)"."""
    names = ", ".join(f"{what}: {path.name}" for what, path in files.items())
    return f"Results: {next(iter(files.values())).parent}/ ({names})"


@dataclass(frozen=True)
class RunFiles:
    """The paths of all files of the run called `run`, which lie below `output_dir`.

    `figures` is the suffix of pictures.
    """

    output_dir: Path
    run: str
    figures: str = ".png"

    def _saved(self, suffix: str, start: str = "") -> Path:
        return self.output_dir / "saved_models" / f"{start}{self.run}{suffix}"

    def _log(self, folder: str, suffix: str) -> Path:
        return self.output_dir / "saved_logs" / folder / f"{self.run}{suffix}"

    model = property(lambda files: files._saved(".pt"))
    resume = property(lambda files: files._saved(".resume.pt"))
    previous_resume = property(lambda files: files._saved(".resume.previous.pt"))
    lock = property(lambda files: files._saved(".lock", "."))
    # Of training and testing together, as a comparison does them.
    job_lock = property(lambda files: files._saved(".job.lock", "."))
    train_log = property(lambda files: files._log("SFW_one_shot_prune", ".log"))
    train_table = property(lambda files: files._log("SFW_one_shot_prune", ".csv"))
    train_plot = property(lambda files: files._log("SFW_one_shot_prune", files.figures))
    scales_plot = property(lambda f: f._log("SFW_one_shot_prune", f".scales{f.figures}"))
    tensorboard = property(lambda files: files._log("tensorboard", ""))  # a folder
    # These take the suffix of the file.
    prune_test = partialmethod(_log, "SFW_prune_test")
    layer_sparsity = partialmethod(_log, "layer_sparsity")
    layer_widths = partialmethod(_log, "layer_widths")
    weight_distribution = partialmethod(_log, "weight_distribution")
    comparison = partialmethod(_log, "comparison")

    def pruned(self, sparsity: str, suffix: str) -> Path:
        """The model pruned to `sparsity`, in the format whose files end in `suffix`."""
        return self._saved(f"_sparsity={sparsity.replace(':', '-')}{suffix}")
