"""Compiled code that is kept: damaged files are made anew, and a full disk costs nothing else."""

import errno

import numba
import pytest

from optim.cpu.callbacks import compiled_callback


def nothing(address):
    pass


def emptied(path):
    path.write_bytes(b"")


def cut(path):
    path.write_bytes(path.read_bytes()[:-40])


def zeroed(path):
    path.write_bytes(bytes(path.stat().st_size))


@pytest.mark.parametrize(
    ("damage", "ending"), [(emptied, "nbi"), (cut, "nbi"), (zeroed, "nbi"), (cut, "nbc")]
)
def test_damaged_compiled_code_is_compiled_anew_with_one_warning(
    damage, ending, tmp_path, monkeypatch
):
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))
    compiled_callback(nothing)
    (path,) = tmp_path.rglob(f"*.{ending}")
    damage(path)
    with pytest.warns(UserWarning, match="compiled anew in this run") as warned:
        compiled_callback(nothing).ctypes(0)
    assert len(warned) == 1


def test_compiled_code_that_cannot_be_kept_is_used_with_one_warning(monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(numba.core.caching.FunctionCache, "save_overload", full)
    with pytest.warns(UserWarning, match="No space left on device") as warned:
        compiled_callback(nothing).ctypes(0)
    assert len(warned) == 1
