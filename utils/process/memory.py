"""How much memory is left on this machine."""

import contextlib
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")  # of a container, version 2


def available_memory() -> int | None:
    """The bytes that this process can still take, or None where the system does not say."""
    found = []
    with contextlib.suppress(OSError, KeyError, ValueError):
        found.append(1024 * _table(Path("/proc/meminfo"))["MemAvailable:"])
    with contextlib.suppress(OSError, KeyError, ValueError):
        limit = int((CGROUP / "memory.max").read_text())  # "max" without one
        taken = int((CGROUP / "memory.current").read_text())
        # Pages of files count as taken, but give way.
        found.append(limit - taken + _table(CGROUP / "memory.stat")["file"])
    return min(found, default=None)


def _table(path: Path) -> dict[str, int]:
    """The first two words of each line."""
    return {words[0]: int(words[1]) for words in map(str.split, path.read_text().splitlines())}
