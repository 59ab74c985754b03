"""How settings are spelled in names, logs and messages, and where the files of a run lie."""

import glob
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TEST_SUFFIXES = (".log", ".csv", ".png")  # of what a test script writes: text, table, picture


def file_name(parts: dict[str, Any], start: str | None = None) -> str:
    """A name that spells out `parts`; a long one is cut and has a checksum of the whole.

    `start`, another name, comes before them, and is then what is cut.
    """
    spelled = [f"{label}={plain(value)}" for label, value in parts.items()]
    name = "_".join(spelled if start is None else [start, *spelled])
    if len(name.encode()) > 184:
        end = "" if start is None else "_".join(["", *spelled])
        kept = name.encode()[: 160 - len(end)].decode(errors="ignore")
        name = f"{kept}_sha256={hashlib.sha256(name.encode()).hexdigest()[:16]}{end}"
    return name


def plain(value: Any) -> str:
    """A setting's value in the fewest characters that tell it from every other."""
    if isinstance(value, float) and float(f"{value:g}") == value:
        return f"{value + 0.0:g}"  # -0 is 0
    return str(value)


@dataclass(frozen=True)
class RunFiles:
    """Every path of the run called `run` below `output_dir` is built here."""

    output_dir: Path
    run: str

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
    def train_log(self) -> Path:
        return self._log("SFW_one_shot_prune", ".log")

    @property
    def scales_plot(self) -> Path:
        return self._log("SFW_one_shot_prune", ".scales.png")

    def prune_test(self, suffix: str) -> Path:
        return self._log("SFW_prune_test", suffix)

    def layer_sparsity(self, suffix: str) -> Path:
        return self._log("layer_sparsity", suffix)

    def pruned(self, sparsity: str) -> Path:
        """`sparsity` may be a pattern."""
        return self.output_dir / "saved_models" / f"{self.run}_sparsity={sparsity}.safetensors"

    def weight_distribution(self, suffix: str) -> Path:
        return self._log("weight_distribution", suffix)

    def comparison(self, suffix: str) -> Path:
        return self._log("comparison", suffix)

    def existing(self) -> list[Path]:
        """The files that this run has so far, in the order of the three scripts."""
        paths = [self.model, self.train_log, self.scales_plot]
        for test in (self.prune_test, self.layer_sparsity, self.weight_distribution):
            paths += [test(suffix) for suffix in TEST_SUFFIXES]
        pruned = self.pruned("*")
        paths += sorted(pruned.parent.glob(glob.escape(pruned.name).replace("[*]", "*")))
        return [path for path in paths if path.is_file()]

    def _log(self, folder: str, suffix: str) -> Path:
        return self.output_dir / "saved_logs" / folder / f"{self.run}{suffix}"
