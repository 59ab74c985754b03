"""Files that are written completely or not at all."""

import pytest

from utils.process.writing import append, atomic_write, remove_leftovers


def write(path, text, **options):
    with atomic_write(path, **options) as file:
        file.write(text)


def test_the_former_file_is_replaced_or_kept_under_another_name(tmp_path):
    path, former = tmp_path / "new" / "a.txt", tmp_path / "new" / "b.txt"
    write(path, "1")
    write(path, "2")
    assert [p.name for p in path.parent.iterdir()] == ["a.txt"]
    write(path, "3", keep_former=former)
    assert (path.read_text(), former.read_text()) == ("3", "2")


def test_an_error_leaves_the_former_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.txt"
    write(path, "whole")
    with pytest.raises(ZeroDivisionError), atomic_write(path) as file:
        file.write("half")
        raise ZeroDivisionError
    assert path.read_text() == "whole" and list(tmp_path.iterdir()) == [path]


def test_leftovers_of_a_path_are_removed_whatever_its_name_and_no_others(tmp_path):
    path = tmp_path / "run[0]*.pt"
    leftover, other = tmp_path / f".{path.name}.123.tmp", tmp_path / ".run0.pt.123.tmp"
    for file in (path, leftover, other):
        file.touch()
    remove_leftovers([path])
    assert sorted(tmp_path.iterdir()) == sorted([path, other])


def test_what_a_file_has_beyond_a_size_is_replaced(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"one and half")
    append(path, b"two", 3)
    assert path.read_bytes() == b"onetwo"
