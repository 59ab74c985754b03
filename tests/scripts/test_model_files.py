"""Which model files the two test scripts take, and which they refuse."""

import re

import pytest
import torch
from runs import DIGITS, RUN, assert_refused_unchanged, files_in
from torch import nn

from models import build_model

NAME = "test_weight_distribution.py"  # both scripts load files by `load_chosen`
BOTH = pytest.mark.parametrize("name", ["test_prune.py", NAME])


@BOTH
def test_a_missing_model_is_refused(name, quick, tmp_path):
    result = quick(name, *DIGITS, "--output_dir", tmp_path)
    assert_refused_unchanged(result, f"{RUN}.pt: no such model; train it first", tmp_path)
    result = quick(name, "--model_path", tmp_path / "no.pt", "--output_dir", tmp_path)
    assert_refused_unchanged(result, "no.pt: cannot be read (No such file", tmp_path)


@BOTH
def test_settings_come_from_the_model_file(name, quick, trained, tmp_path):
    path = trained / "elsewhere.pt"
    (trained / "saved_models" / f"{RUN}.pt").rename(path)
    flags = ("--model_path", path, "--output_dir", trained, "--test_batchsize", 50)
    status, out, err = quick(name, *flags)
    assert status == 0, err
    assert f"{RUN}.png" in out


def test_a_model_of_other_settings_is_refused(quick, trained):
    path = trained / "saved_models" / f"{RUN}.pt"
    before = files_in(trained)
    result = quick(NAME, "--model_path", path, "--lr", 0.5, "--output_dir", trained)
    assert_refused_unchanged(result, "with --lr 1, not 0.5", trained, before)
    renamed = path.rename(path.with_name(path.name.replace("num=2", "num=3")))
    result = quick(NAME, *DIGITS[:-1], 3, "--output_dir", trained)
    message = f"{renamed}: was trained with --epoch_num 2, not 3; give that"
    assert_refused_unchanged(result, message, trained, files_in(trained))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is no model file"),
        (b"no model", "is no model file"),
        ("list", "is no model file"),
        (b"PK\x03\x04 no zip", "is truncated"),
        ("half", "is truncated"),
    ],
)
def test_a_file_that_is_no_model_is_refused(content, message, quick, trained):
    path = trained / "saved_models" / f"{RUN}.pt"
    if content == "half":
        content = path.read_bytes()[: path.stat().st_size // 2]
    if content == "list":
        torch.save([1, 2], path)
    else:
        path.write_bytes(content)
    before = files_in(trained)
    result = quick(NAME, *DIGITS, "--output_dir", trained)
    assert_refused_unchanged(result, f"{RUN}.pt: {message}", trained, before)


@pytest.mark.parametrize(
    "changed",
    [
        {"lr": "1.0"},
        {"tau": None},
        {"seed": 1.5},
        {"epoch_num": [2]},
        {"arch": 3},
        {"color_channel": 1.0},
        {"momentum": torch.ones(2)},
        {"lr": 7.0},
        {"new_flag": 1},
        {"data": None},
    ],
    ids=str,
)
def test_a_model_with_impossible_settings_is_refused(changed, quick, trained):
    path = trained / "saved_models" / f"{RUN}.pt"
    contents = torch.load(path, weights_only=True)
    contents["config"] |= changed
    torch.save(contents, path)
    before = files_in(trained)
    result = quick(NAME, "--model_path", path, "--output_dir", trained)
    assert_refused_unchanged(result, f"{RUN}.pt: ", trained, before)


@pytest.mark.parametrize("changed", [torch.ones(127), None])
def test_odd_tensors_are_refused(changed, quick, trained):
    path = trained / "saved_models" / f"{RUN}.pt"
    contents = torch.load(path, weights_only=True)
    contents["state_dict"]["linear_layer_0.bias"] = changed
    torch.save(contents, path)
    result = quick(NAME, *DIGITS, "--output_dir", trained)
    assert_refused_unchanged(result, "holds other tensors than Mlp", trained, files_in(trained))


def test_a_flag_is_compared_with_the_default_of_an_older_file(quick, trained):
    path = trained / "saved_models" / f"{RUN}.pt"
    contents = torch.load(path, weights_only=True)
    del contents["config"]["rescale"]
    torch.save(contents, path)
    flags = ("--model_path", path, "--output_dir", trained)
    result = quick(NAME, *flags, "--rescale", "diameter")
    assert_refused_unchanged(
        result, "was trained with --rescale gradient, not diameter", trained, files_in(trained)
    )
    assert quick(NAME, *flags, "--rescale", "gradient")[0] == 0


def test_a_pickle_that_runs_code_is_refused_unrun(quick, tmp_path):
    torch.save(nn.Linear(2, 2), tmp_path / "whole.pt")
    result = quick(NAME, "--model_path", tmp_path / "whole.pt", "--output_dir", tmp_path)
    assert_refused_unchanged(result, "is no model file", tmp_path, [tmp_path / "whole.pt"])


def test_an_onnx_file_is_refused(quick, tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(b"onnx")
    result = quick(NAME, "--model_path", path, "--output_dir", tmp_path)
    assert_refused_unchanged(result, "model.onnx: ONNX files are", tmp_path, [path])


@BOTH
def test_a_bare_state_dict_is_tested_under_its_own_name(name, quick, tmp_path):
    model = build_model("Mlp", 10, 1, 8)
    torch.save(model.state_dict(), tmp_path / "authors.pt")
    flags = ("--model_path", tmp_path / "authors.pt", "--output_dir", tmp_path)
    status, out, err = quick(name, *flags, "--data", "digits", "--arch", "Mlp")
    assert status == 0, err
    assert re.search(r"picture: authors_sha256=[0-9a-f]{16}.png", out)
    assert "training settings unknown" in out.lower()
    (log,) = tmp_path.rglob("authors*.log")
    line = log.read_text().splitlines()[0]
    assert line.endswith("Training_Settings: unknown")
    assert not any(f"{name}: " in line for name in ("Epoch_Num", "Tau", "Seed", "Optimizer"))


@pytest.mark.parametrize(
    ("arch", "classes", "color_channel", "image_size"),
    [("VGG16", 10, 1, 32), ("Mlp", 100, 1, 8), ("Mlp", 10, 3, 32)],
)
def test_a_bare_state_dict_of_another_network_is_refused(
    arch, classes, color_channel, image_size, quick, tmp_path
):
    state = build_model(arch, classes, color_channel, image_size).state_dict()
    torch.save(state, tmp_path / "authors.pt")
    flags = ("--model_path", tmp_path / "authors.pt", "--output_dir", tmp_path)
    result = quick(NAME, *flags, "--data", "digits", "--arch", "Mlp")
    message = "holds other tensors than Mlp for digits has"
    assert_refused_unchanged(result, message, tmp_path, [tmp_path / "authors.pt"])


def test_weights_that_were_zero_before_are_not_said_to_be_removed(quick, tmp_path):
    model = build_model("Mlp", 10, 1, 8)
    torch.nn.init.zeros_(model.linear_layer_1.weight)
    torch.save(model.state_dict(), tmp_path / "a.pt")
    flags = ("--model_path", tmp_path / "a.pt", "--data", "digits", "--arch", "Mlp")
    status, _, err = quick("test_prune.py", *flags, "--ratios", 0.5, "--output_dir", tmp_path)
    assert (status, err) == (0, "")
