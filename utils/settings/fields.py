"""How one setting is declared: its flag, its help text and the values that it accepts."""

import dataclasses
import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utils.datasets import OwnData
from utils.process.errors import UserError
from utils.settings.names import plain

LARGEST_INT = 2**31 - 1
# What is known of a network without the settings of its training: those that it is tested with.
OF_TEST = ("data", "arch", "color_channel", "image_size", "test_fraction", "precision", "own_data")


@dataclass(frozen=True)
class Range:
    """The numbers from `low` to `high`; an end in `excluded` is not accepted."""

    low: float
    high: float
    excluded: tuple[float, ...] = ()

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high and value not in self.excluded

    def __str__(self) -> str:
        low = "greater than" if self.low in self.excluded else "at least"
        high = "less than" if self.high in self.excluded else "at most"
        return f"{low} {plain(self.low)} and {high} {plain(self.high)}"


# Far beyond what makes sense, and well within float32.
POSITIVE = Range(0, 1e9, excluded=(0,))
COUNT = Range(1, LARGEST_INT)
NOT_NEGATIVE = Range(0, LARGEST_INT)


def setting(
    default: Any,
    group: str | None,
    help: str,
    *,
    type: Callable[[str], Any] | None = None,
    choices: Collection[Any] | None = None,
    allowed: Range | None = None,
    identifies_run: bool = True,
    several: bool = False,
    also: tuple[str, Callable[[str], bool]] | None = None,
    extensible: bool = False,
) -> Any:
    """A field of a settings dataclass, and the command-line flag of the same name.

    `group` is the section of --help that lists the flag; without one there is no flag. `type` makes
    a value of the flag's text, by default that of `default`, or text. A value must be one of
    `choices` or lie within `allowed`; with `several`, the field is a tuple of such values. `also`
    has a form that values may have beside `choices`, as --help writes it, and what tells whether
    one has it. `identifies_run` is True for a setting that affects the results: its value is then
    part of the run's name. `extensible` is True where users may add entries of their own to
    `choices`.
    """
    inferred = str if default is None else default.__class__
    metadata = locals() | {"type": type or inferred}
    return dataclasses.field(default=default, metadata=metadata)


def none_or_text(text: str) -> str | None:
    return None if text == "None" else text


def path(text: str) -> Path:
    """The path of this name; ~ is a home folder, also where the shell left it, as in --flag=~/x."""
    return Path(os.path.expanduser(text))


def identifying_settings(settings: Any) -> dict[str, Any]:
    """The fields of a settings dataclass, by name, that affect the results of a run.

    One without a flag is left out where it is None, since it then does not apply.
    """
    values = {f: getattr(settings, f.name) for f in dataclasses.fields(settings)}
    return {
        field.name: value
        for field, value in values.items()
        if field.metadata["identifies_run"] and (field.metadata["group"] or value is not None)
    }


def differing(values: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The `values`, by name and in their order, that are not at their defaults.

    Values may be text, as `plain` writes it. One without a default is left out.
    """
    return {n: v for n, v in values.items() if n in defaults and plain(v) != plain(defaults[n])}


def training_known(settings: Mapping[str, Any]) -> bool:
    """Whether these are settings of a training, and not of a test alone."""
    return "optimizer" in settings


def first_difference(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> str | None:
    """How the first setting of both that differs in a file differs from that of a run, in words."""
    for name in theirs:
        if name in ours and theirs[name] != ours[name]:
            if name == "own_data":
                return f"other data: {OwnData.of(theirs[name]).difference(OwnData.of(ours[name]))}"
            return f"--{name} {plain(theirs[name])}, not {plain(ours[name])}"
    return None


def check_values(settings: Any, from_file: bool = False) -> None:
    """Raise UserError unless every field of a settings dataclass has an accepted value.

    Settings `from_file` may name entries of an extensible table that are not in it here.
    """
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if from_file and field.metadata["extensible"] and _is_name(value):
            continue
        for one in value if field.metadata["several"] and value is not None else [value]:
            _check(field, one)


def _is_name(value: Any) -> bool:
    """Whether this is text that can be part of a file's name, and leads to no other folder."""
    return isinstance(value, str) and value.isprintable() and not {"/", "\\"} & set(value)


def _check(field: dataclasses.Field, value: Any) -> None:
    if value is None and field.default is None:  # to be filled in from other settings
        return
    allowed, choices, also = (field.metadata[key] for key in ("allowed", "choices", "also"))
    if also is not None and isinstance(value, str) and also[1](value):
        return
    if field.metadata["type"] is str and choices is None and not isinstance(value, str):
        raise UserError(f"--{field.name} {value!r}: must be a name")
    is_number = type(value) is int or (type(value) is float and field.metadata["type"] is not int)
    if allowed is not None and not (is_number and value in allowed):
        raise UserError(f"--{field.name} {plain(value)}: must be {allowed}")
    if choices is not None and not any(
        type(value) is type(choice) and value == choice for choice in choices
    ):
        names = ", ".join(map(str, choices)) + (f", or {also[0]}" if also else "")
        raise UserError(f"--{field.name} {value}: choose one of {names}")
