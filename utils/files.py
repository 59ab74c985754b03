"""Where a run's files lie, and how a file is written whole or not at all."""

import glob
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from utils.errors import RunError, UserError

TEST_SUFFIXES = (".log", ".csv", ".png")  # of what a test script writes: text, table, picture


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


def check_writable(paths: list[Path], flag: str) -> None:
    """Raise UserError, naming `flag`, unless each path can be written; leaves nothing behind."""
    for path in paths:
        folder = path.parent
        try:
            if path.is_dir():
                raise UserError(f"{flag}: {path} is a folder where a file is to be; move it")
            while not folder.exists() and folder != folder.parent:
                folder = folder.parent
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            raise UserError(
                f"{flag}: cannot write in {folder} ({error.strerror}); choose another folder"
            ) from None


def remove_leftovers(paths: list[Path]) -> None:
    """Remove what `atomic_write` left of these files when its process was killed."""
    for path in paths:
        for leftover in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
            with suppress(OSError):
                leftover.unlink()


@contextmanager
def atomic_write(path: Path, mode: str = "w", keep_former: Path | None = None) -> Iterator[IO]:
    """Open a temporary file beside `path` that becomes `path` when the block ends without error.

    What was at `path` is then at `keep_former`, if that is given. Folders are made when missing.
    Raises RunError when the disk does not take it; what was at `path` before then stays, there or
    at `keep_former`.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(temporary, mode) as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            if keep_former is not None and path.is_file():
                os.replace(path, keep_former)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise RunError(f"cannot write {path} ({error.strerror or error})") from error
