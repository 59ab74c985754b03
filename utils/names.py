"""How settings are spelled in the names of files, in logs and in messages."""

import hashlib
from typing import Any


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
