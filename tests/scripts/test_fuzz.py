"""Damaged files and senseless flags at random: one line of error, and nothing lost."""

import contextlib
import io
import os
import zipfile

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from runs import DIGITS, FLAGS, SCRIPTS, assert_refused, main_of, outcome

from utils.datasets import load_dataset
from utils.process.errors import UserError
from utils.prune.config import DEFAULTS
from utils.settings.config import FIELDS

EXAMPLES = int(os.environ.get("EXAMPLES", 25))  # of each test; more by hand

fuzz = settings(max_examples=EXAMPLES, suppress_health_check=[HealthCheck.function_scoped_fixture])


def run(name, *flags):
    """A script's status, output and errors, as of `quick`, which Hypothesis cannot start anew."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stderr(err), contextlib.redirect_stdout(out):
        try:
            status = main_of(name)([str(flag) for flag in flags])
        except SystemExit as ended:  # --help
            status = ended.code
    return status, out.getvalue(), err.getvalue()


def check(status, out, err):
    assert status in (0, 1, 2)
    errors = [line for line in err.splitlines() if not line.startswith("warning: ")]
    assert len(errors) == (status != 0)
    assert all(line.startswith("error: ") for line in errors)


@st.composite
def mutations(draw):
    """A function that changes bytes: some overwritten, some cut out or put in, or the end lost."""
    places = draw(
        st.lists(st.tuples(st.floats(0, 1), st.binary(min_size=1, max_size=8)), max_size=4)
    )
    cut, insert = draw(st.floats(0, 1)), draw(st.sampled_from(["over", "in", "out", "end"]))

    def mutate(content):
        content = bytearray(content)
        for share, new in places:
            at = int(share * len(content))
            if insert == "in":
                content[at:at] = new
            else:
                content[at : at + len(new)] = b"" if insert == "out" else new
        return bytes(content[: int(cut * len(content))] if insert == "end" else content)

    return mutate


@fuzz
@given(mutate=mutations())
def test_a_changed_model_file_is_tested_or_refused(mutate, trained, monkeypatch):
    monkeypatch.setattr("test_weight_distribution.plot_distribution", lambda *_: None)
    path = trained / "changed.pt"
    model = next((trained / "saved_models").glob("*.pt")).read_bytes()
    path.write_bytes(mutate(model))
    flags = ("--model_path", path, "--output_dir", trained)
    check(*run("test_weight_distribution.py", *flags))
    assert path.read_bytes() == mutate(model)


@fuzz
@given(mutate=mutations())
def test_a_changed_resume_file_is_used_or_the_one_before(mutate, stopped, uninterrupted):
    kept = stopped.resume, stopped.previous_resume, stopped.train_log
    whole, former, log = (path.read_bytes() for path in kept)
    try:
        stopped.resume.write_bytes(mutate(whole))
        status, out, err = run("train_prune.py", *FLAGS, "--output_dir", stopped.output_dir)
        check(status, out, err)
        assert status == 0, err  # the one before is good
        assert (outcome(stopped.output_dir) == uninterrupted) is True  # no lengthy explanation
    finally:
        for path, content in zip(kept, (whole, former, log), strict=True):
            path.write_bytes(content)


@fuzz
@given(mutate=mutations())
def test_a_changed_data_set_is_read_or_refused(mutate, tmp_path, write_npz):
    write_npz(tmp_path, "mnist")
    path = tmp_path / "mnist.npz"
    path.write_bytes(mutate(path.read_bytes()))
    with contextlib.suppress(UserError):
        load_dataset("mnist", tmp_path)


NAMES = [f"--{name}" for name, f in FIELDS.items() if f.metadata["group"]]
NAMES += [f"--{name}" for name in DEFAULTS]
VALUES = st.one_of(
    st.sampled_from(
        [
            "SFW",
            "SGD",
            "digits",
            "mnist",
            "Mlp",
            "None",
            "unconstraints",
            "radius",
            "auto",
            "bf16",
            "nan",
            "inf",
            "-1",
            "0",
            "1e400",
            "",
            "\0",
            "../..",
            "-",
        ]
    ),
    st.integers(-(2**70), 2**70).map(str),
    st.floats().map(str),
    st.text(max_size=8),
)
FLAG_LISTS = st.lists(
    st.tuples(
        st.sampled_from([*NAMES, "--model_path", "--compare", "--no_such_flag", "", "--"]), VALUES
    ),
    min_size=1,
    max_size=5,
)


@fuzz
@given(flags=FLAG_LISTS, script=st.sampled_from(SCRIPTS))
def test_senseless_flags_are_refused(flags, script, trained, offline):
    """What is not refused has no data to train on, and no model to test."""
    before = {path: path.read_bytes() for path in trained.rglob("*.pt")}
    given_ = [part for flag in flags for part in flag]
    sane = ["--data", "mnist", "--data_dir", trained / "no_data", "--output_dir", trained]
    check(*run(script, *given_, *sane))
    assert {path: path.read_bytes() for path in before} == before


def test_an_archive_that_declares_more_than_memory_holds_is_refused_unread(tmp_path, monkeypatch):
    monkeypatch.setattr("utils.datasets.arrays.available_memory", lambda: 50_000)
    images, labels = np.zeros((50, 28, 28), np.uint8), np.zeros(50, int)
    arrays = {"x_train": images, "y_train": labels, "x_test": images[:1], "y_test": labels[:1]}
    np.savez_compressed(tmp_path / "mnist.npz", **arrays)
    with pytest.raises(UserError, match=r"mnist.npz: its images take"):
        load_dataset("mnist", tmp_path)


def test_an_archive_with_paths_that_lead_out_writes_nothing(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    with zipfile.ZipFile(folder / "mnist.npz", "w") as archive:
        archive.writestr("../x_train.npy", b"out")
        archive.writestr("../../y_train.npy", b"out")
    with pytest.raises(UserError, match="holds no x_train"):
        load_dataset("mnist", folder)
    assert [path.name for path in tmp_path.rglob("*")] == ["data", "mnist.npz"]


def test_a_picture_that_unpacks_to_far_more_is_refused(tmp_path, write_tiny):
    write_tiny(tmp_path / "tiny_imagenet_200")
    bomb = tmp_path / "tiny_imagenet_200/train/n01/images/n01_1.JPEG"
    Image.new("1", (9_000, 9_000)).save(bomb, format="PNG")
    with pytest.raises(UserError, match=r"n01_1.JPEG: cannot be read as an image"):
        load_dataset("tiny", tmp_path)


def test_a_model_file_that_is_a_small_archive_of_much_is_refused(tmp_path):
    path = tmp_path / "bomb.pt"
    torch.save({"w": torch.zeros(1_000_000)}, path)
    with zipfile.ZipFile(path) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, record in records.items():
            archive.writestr(name, record)
    flags = ("--model_path", path, "--output_dir", tmp_path, *DIGITS)
    assert_refused(run("test_weight_distribution.py", *flags), "holds compressed data")
