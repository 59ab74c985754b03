"""How settings are written in names, logs and messages, and the paths of a run's files."""

import hashlib
from dataclasses import dataclass
from decimal import Decimal
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


def percent(fraction: float) -> str:
    """A fraction as a number of per cent that is not rounded: 0.99999999 is 99.999999."""
    text = f"{100 * Decimal(plain(fraction)):f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def shown(ratio: float | str) -> str:
    """A ratio as a percentage, or a pattern N:M as it is."""
    return ratio if isinstance(ratio, str) else f"{percent(ratio)}%"


def results_line(**files: Path) -> str:
    """The line that ends a script's output: the folder of these files, and their names.

    `results_line(picture=Path("logs/a.png"))` is "Results: logs/ (picture: a.png)".
    """
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

    @property
    def model(self) -> Path:
        return self.output_dir / "saved_models" / f"{self.run}.pt"

    @property
    def resume(self) -> Path:
        return self.output_dir / "saved_models" / f"{self.run}.resume.pt"

    @property
    def previous_resume(self) -> Path:
        return self.resume.with_suffix(".previous.pt")

    @property
    def lock(self) -> Path:
        return self.output_dir / "saved_models" / f".{self.run}.lock"

    @property
    def job_lock(self) -> Path:
        """Of training and testing together, as a comparison does them."""
        return self.lock.with_suffix(".job.lock")

    @property
    def train_log(self) -> Path:
        return self._log("SFW_one_shot_prune", ".log")

    @property
    def train_table(self) -> Path:
        return self._log("SFW_one_shot_prune", ".csv")

    @property
    def train_plot(self) -> Path:
        return self._log("SFW_one_shot_prune", self.figures)

    @property
    def scales_plot(self) -> Path:
        return self._log("SFW_one_shot_prune", f".scales{self.figures}")

    @property
    def tensorboard(self) -> Path:
        """The folder of what TensorBoard reads."""
        return self._log("tensorboard", "")

    def prune_test(self, suffix: str) -> Path:
        return self._log("SFW_prune_test", suffix)

    def layer_sparsity(self, suffix: str) -> Path:
        return self._log("layer_sparsity", suffix)

    def layer_widths(self, suffix: str) -> Path:
        return self._log("layer_widths", suffix)

    def pruned(self, sparsity: str, suffix: str) -> Path:
        """The model pruned to `sparsity`, in the format whose files end in `suffix`."""
        name = f"{self.run}_sparsity={sparsity.replace(':', '-')}{suffix}"
        return self.output_dir / "saved_models" / name

    def weight_distribution(self, suffix: str) -> Path:
        return self._log("weight_distribution", suffix)

    def comparison(self, suffix: str) -> Path:
        return self._log("comparison", suffix)

    def _log(self, folder: str, suffix: str) -> Path:
        return self.output_dir / "saved_logs" / folder / f"{self.run}{suffix}"
