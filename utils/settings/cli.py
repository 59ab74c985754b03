"""The command line of the three scripts, made from the fields of Config and PruneConfig."""

import argparse
import dataclasses
import inspect
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NoReturn, TypeVar

from utils.process.errors import UserError
from utils.settings.config import Config, with_own_data
from utils.settings.fields import path
from utils.settings.names import plain

Settings = TypeVar("Settings")

OURS = ("constraints", "optim")  # packages with tables to which users add entries of their own

GROUPS = {
    "data": "data",
    "training": "network and training",
    "method": "method: optimizer and feasible region",
    "pruning": "pruning",
    "machine": "machine and files",
}


@dataclass(frozen=True)
class Flags:
    """The flags of one command line, by name; read-only.

    Settings that were left out are not in `explicit`: a script that reads them from a model file
    can thus distinguish a flag that contradicts the file from a default.
    """

    explicit: Mapping[str, Any]

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
        every = [f for kind in settings or (Config,) for f in dataclasses.fields(kind)]
        fields = [f for f in every if f.metadata["group"] is not None]
        used = {setting.metadata["group"] for setting in fields}
        self.groups = {
            key: self.add_argument_group(title) for key, title in GROUPS.items() if key in used
        }
        for setting in fields:
            self._add(setting)

    def _add(self, setting: dataclasses.Field) -> None:
        choices, default = setting.metadata["choices"], setting.default
        also = setting.metadata["also"]
        listed = [*map(str, choices or ()), *([also.written] if also else ())]
        group = self.groups[setting.metadata["group"]]
        text = setting.metadata["help"]
        if setting.metadata["extensible"]:
            text += _added_entries(choices)
        text = text.replace("%", "%%")
        if setting.metadata["type"] is bool:
            group.add_argument(f"--{setting.name}", action="store_true", help=text)
            return
        stated = f" (default: {plain(default)})".replace("%", "%%")
        if default is None or setting.metadata["several"]:  # None depends on other settings
            stated = ""
        group.add_argument(
            f"--{setting.name}",
            type=setting.metadata["type"],
            **({"nargs": "+", "action": "extend"} if setting.metadata["several"] else {}),
            metavar=f"{{{','.join(listed)}}}" if listed else _metavar(setting),
            help=text + stated,
        )

    def parse(self, argv: list[str] | None = None) -> Flags:
        """Read a command line, by default the process's own."""
        explicit = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in vars(self.parse_args(argv)).items()
        }
        return Flags(MappingProxyType(explicit))

    def add_model_path(self) -> None:
        """Add --model_path, for a script that tests a trained model."""
        self.groups["machine"].add_argument(
            "--model_path",
            type=path,
            metavar="FILE",
            help="model file, pruned or not, which contains its settings, or a bare state dict"
            " (default: the file that train_prune.py wrote with the same flags)",
        )

    def parse_args(
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> argparse.Namespace:
        args = sys.argv[1:] if args is None else list(args)
        if not {"-h", "--help"} & set(args):
            self._check_numbers_of_values(args)
        return super().parse_args(args, namespace)

    def _check_numbers_of_values(self, args: Sequence[str]) -> None:
        """Raise UserError for a flag with too many values, which it names.

        argparse would name the values alone, as "unrecognized arguments".
        """
        starts = [i for i, word in enumerate(args) if word.startswith("--")]
        for start, end in zip(starts, [*starts, len(args)][1:], strict=True):
            flag, *values = [*args[start].split("=", 1), *args[start + 1 : end]]
            known = self._option_string_actions.get(flag)
            if known is None or known.nargs == "+":
                continue
            if known.nargs == 0 and values:
                raise UserError(f"{flag} {' '.join(values)}: takes no value")
            if len(values) > 1:
                raise UserError(
                    f"{flag} {' '.join(values)}: takes one value; give the command once for each,"
                    " or put quotation marks around one that has spaces"
                )

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; --help lists the flags and their values")


def _added_entries(table: Mapping[str, Any]) -> str:
    """What users say of the entries that they added to a table: the first lines of docstrings."""
    code = {n: e for n, e in table.items() if isinstance(e, type) or inspect.isfunction(e)}
    added = {n: e.__doc__ for n, e in code.items() if e.__module__.split(".")[0] not in OURS}
    lines = {n: text.strip().splitlines()[0].rstrip(".") for n, text in added.items() if text}
    return "".join(f"; {name}: {line}" for name, line in lines.items())


def _metavar(setting: dataclasses.Field) -> str:
    return {int: "N", float: "X", str: "NAME"}.get(setting.metadata["type"], "FOLDER")
