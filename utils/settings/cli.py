"""The command line of the three scripts, made from the fields of Config and PruneConfig."""

import argparse
import dataclasses
import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn, TypeVar

from utils.process.errors import UserError
from utils.settings.config import Config, with_own_data
from utils.settings.fields import path
from utils.settings.names import plain

Settings = TypeVar("Settings")

OURS = ("constraints", "optim")  # packages with tables to which users add entries of their own
VALUES = {int: "N", float: "X", str: "NAME"}  # as --help calls a value of this type

GROUPS = {
    "data": "data",
    "training": "network and training",
    "method": "method: optimizer and feasible region",
    "pruning": "pruning",
    "machine": "machine and files",
    "comparison": "comparison",
}


@dataclass(frozen=True)
class Flags:
    """The flags that a command line has, by name: one left out is not in `explicit`.

    A flag that contradicts a model file can thus be told from a default.
    """

    explicit: dict[str, Any]

    def explicit_settings(self, kind: type) -> dict[str, Any]:
        """The fields of this settings dataclass that the command line sets."""
        names = {field.name for field in dataclasses.fields(kind)}
        return {name: value for name, value in self.explicit.items() if name in names}

    def settings(self, kind: type[Settings]) -> Settings:
        """The settings of this dataclass; raises UserError for invalid ones.

        For Config, a data set of one's own is read, to learn its classes.
        """
        explicit = self.explicit_settings(kind)
        return kind(**(with_own_data(explicit) if kind is Config else explicit))


class Parser(argparse.ArgumentParser):
    """A parser with one flag for each field of some settings dataclasses, by default Config.

    Raises UserError for a bad command line instead of printing a usage text.
    """

    def __init__(self, description: str | None, *settings: type) -> None:
        super().__init__(
            description=description,
            allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            argument_default=argparse.SUPPRESS,
            usage="%(prog)s [--flag value ...]",
        )
        self.groups = {key: self.add_argument_group(title) for key, title in GROUPS.items()}
        for kind in settings or (Config,):
            for setting in dataclasses.fields(kind):
                if setting.metadata["group"] is not None:
                    self._add(setting)

    def _add(self, setting: dataclasses.Field) -> None:
        data, flag = setting.metadata, f"--{setting.name}"
        group, kind, text = self.groups[data["group"]], data["type"], data["help"]
        if data["extensible"]:
            text += _added_entries(data["choices"])
        if kind is bool:
            group.add_argument(flag, action="store_true", help=text.replace("%", "%%"))
            return
        if setting.default is not None and not data["several"]:  # None depends on other settings
            text += f" (default: {plain(setting.default)})"
        listed = ",".join(map(str, [*(data["choices"] or ()), *(data["also"] or ())[:1]]))
        group.add_argument(
            flag,
            type=kind,
            **({"nargs": "+", "action": "extend"} if data["several"] else {}),
            metavar=f"{{{listed}}}" if listed else VALUES.get(kind, "PATH"),
            help=text.replace("%", "%%"),
        )

    def parse(self, argv: list[str] | None = None) -> Flags:
        """Read a command line, by default the process's own."""
        values = vars(self.parse_args(argv))
        return Flags({n: tuple(v) if isinstance(v, list) else v for n, v in values.items()})

    def add_model_path(self) -> None:
        """Add --model_path, for a script that tests a trained model."""
        self.groups["machine"].add_argument(
            "--model_path",
            type=path,
            metavar="FILE",
            help="model file, pruned or not, which contains its settings, or a bare state dict"
            " (default: the file that train_prune.py wrote with the same flags)",
        )

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; --help lists the flags and their values")


def _added_entries(table: Mapping[str, Any]) -> str:
    """What users say of the entries that they added to a table: the first lines of docstrings."""
    code = {n: e for n, e in table.items() if isinstance(e, type) or inspect.isfunction(e)}
    added = {n: e.__doc__ for n, e in code.items() if e.__module__.split(".")[0] not in OURS}
    lines = {n: text.strip().splitlines()[0].rstrip(".") for n, text in added.items() if text}
    return "".join(f"; {name}: {line}" for name, line in lines.items())
