"""The three scripts as users run them."""

import csv
import re

import numpy as np
import pytest
import torch
from torch import nn

import test_prune
import test_weight_distribution
import train_prune
from models import build_model
from utils.cli import Parser
from utils.config import Config
from utils.prune import RATIOS, THRESHOLDS

DIGITS = ("--data", "digits", "--arch", "Mlp", "--epoch_num", "2")
RUN = "data=digits_model=Mlp_optimizer=SFW_constraint=k_sparse_constraints_epoch_num=2"
SCRIPTS = {
    "train_prune.py": train_prune,
    "test_prune.py": test_prune,
    "test_weight_distribution.py": test_weight_distribution,
}


@pytest.fixture
def quick(capsys):
    """Runs a script's main in this process: quick(name, *flags) gives status, output, errors."""

    def run(name, *flags):
        status = SCRIPTS[name].main([str(flag) for flag in flags])
        out, err = capsys.readouterr()
        return status, out, err

    return run


@pytest.fixture
def trained(quick, tmp_path):
    """A folder with a trained model of the settings DIGITS."""
    status, _, err = quick("train_prune.py", *DIGITS, "--output_dir", tmp_path)
    assert status == 0, err
    return tmp_path


def files_in(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


def read_csv(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def test_three_commands_train_prune_and_inspect(script, tmp_path):
    for name in SCRIPTS:
        done = script(name, *DIGITS, "--output_dir", tmp_path / "new" / "folder")
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""
    logs = {"SFW_one_shot_prune": (".log",), "SFW_prune_test": (".csv", ".log", ".png"),
            "weight_distribution": (".csv", ".log", ".png")}  # fmt: skip
    expected = [
        f"saved_logs/{folder}/{RUN}{s}" for folder, suffixes in logs.items() for s in suffixes
    ]
    expected.append(f"saved_models/{RUN}.pt")
    root = tmp_path / "new" / "folder"
    assert [str(path.relative_to(root)) for path in files_in(root)] == sorted(expected)


def test_training_log_has_its_lines(trained):
    lines = (trained / f"saved_logs/SFW_one_shot_prune/{RUN}.log").read_text().splitlines()
    assert re.fullmatch(
        r"Configuration Data: digits Model: Mlp Optimizer: SFW Constraint: k_sparse_constraints"
        r" Train_Batchsize: 128 Test_Batchsize: 128 (\w+: \S+ )+SFW_Init 0",
        lines[0],
    )
    epoch = 12 + 1 + len(THRESHOLDS)  # 1437 images make 12 batches of 128
    assert len(lines) == 1 + 2 * epoch
    for i, line in enumerate(lines[1 + epoch : 1 + epoch + 12]):
        assert re.fullmatch(
            rf"Train Steps: {13 + i} Epoch: 2 Batch_Loss: \d+\.\d{{4}} Batch_Accuracy \d+\.\d+",
            line,
        )
    assert re.fullmatch(
        r"Test Epoch: 2 Test_Accuracy: \d+\.\d\d"
        r" Current_Time:\d{4}-\d\d-\d\d-\d\d_\d\d_\d\d",
        lines[1 + epoch + 12],
    )
    assert all(re.fullmatch(r"Weight_Distribution >\S+ \d+", line) for line in lines[-11:])


def test_prune_test_writes_log_csv_and_picture(quick, trained):
    status, out, _ = quick("test_prune.py", *DIGITS, "--output_dir", trained)
    assert status == 0
    folder = trained / "saved_logs" / "SFW_prune_test"
    lines = (folder / f"{RUN}.log").read_text().splitlines()
    assert lines[0].startswith("Configuration Data: digits")
    found = [re.fullmatch(r"Prune Ratio (\S+) Test Accuracy (\d+\.\d\d)", x) for x in lines[1:]]
    assert tuple(float(match[1]) for match in found) == RATIOS
    rows = read_csv(folder / f"{RUN}.csv")
    assert list(rows[0]) == ["sparsity", "remaining", "parameters", "accuracy"]
    for row, match in zip(rows, found, strict=True):
        assert float(row["accuracy"]) == pytest.approx(float(match[2]), abs=0.006)
        removed = int(row["parameters"]) - int(row["remaining"])
        assert removed == int(float(row["sparsity"]) * 100 + 0.5) * int(row["parameters"]) // 100
    assert (folder / f"{RUN}.png").read_bytes().startswith(b"\x89PNG")
    assert f"{folder / RUN}.png" in out


def test_pruning_lowers_the_accuracy_of_a_trained_model(quick, trained):
    quick("test_prune.py", *DIGITS, "--output_dir", trained)
    rows = read_csv(trained / "saved_logs" / "SFW_prune_test" / f"{RUN}.csv")
    accuracies = [float(row["accuracy"]) for row in rows]
    assert accuracies[0] > 20 > accuracies[-1]


def test_weight_distribution_writes_log_csv_and_picture(quick, trained):
    status, _, _ = quick("test_weight_distribution.py", *DIGITS, "--output_dir", trained)
    assert status == 0
    folder = trained / "saved_logs" / "weight_distribution"
    state = torch.load(trained / "saved_models" / f"{RUN}.pt", weights_only=True)["state_dict"]
    magnitudes = torch.cat([values.flatten() for values in state.values()]).abs()
    lines = (folder / f"{RUN}.log").read_text().splitlines()[1:]
    rows = read_csv(folder / f"{RUN}.csv")
    assert list(rows[0]) == ["threshold", "above", "fraction"]
    for line, row, threshold in zip(lines, rows, THRESHOLDS, strict=True):
        above = int((magnitudes > threshold).sum())
        assert line == f"Number of weights >{threshold:g}: {above}"
        assert (float(row["threshold"]), int(row["above"])) == (threshold, above)
        assert float(row["fraction"]) == pytest.approx(above / len(magnitudes))
    assert (folder / f"{RUN}.png").read_bytes().startswith(b"\x89PNG")


def test_model_file_holds_plain_types_and_what_was_measured(trained):
    contents = torch.load(trained / "saved_models" / f"{RUN}.pt", weights_only=True)
    assert set(contents) == {"state_dict", "config", "epoch", "metrics", "versions"}
    assert Config(**contents["config"]).run_name == RUN
    assert contents["epoch"] == 2
    assert {len(values) for values in contents["metrics"].values()} == {2}
    assert contents["versions"]["torch"] == torch.__version__


@pytest.mark.parametrize("data", ["digits", "cifar10"])
def test_two_runs_with_one_seed_agree_bit_for_bit(data, quick, tmp_path, write_npz):
    write_npz(tmp_path / "data", "cifar10", train=300)
    states = []
    for folder in ("a", "b"):
        flags = ("--data", data, "--arch", "Mlp", "--epoch_num", 2, "--seed", 7)
        quick("train_prune.py", *flags, "--data_dir", tmp_path / "data",
              "--output_dir", tmp_path / folder)  # fmt: skip
        (model,) = (tmp_path / folder / "saved_models").iterdir()
        states.append(torch.load(model, weights_only=True))
        torch.rand(3)  # the global generator's state plays no part
    assert states[0]["metrics"] == states[1]["metrics"]
    for name, values in states[0]["state_dict"].items():
        assert torch.equal(values, states[1]["state_dict"][name])


@pytest.mark.parametrize("flags", [
    "--optimizer SGD --lr 0.1 --constraint unconstraints",
    "--optimizer SGD --lr 0.1 --constraint unconstraints --mode None",
    "--optimizer SGD --lr 0.1 --weight_decay 1e-4",
    "--optimizer SGD --lr 0.1 --constraint l2_constraints",
    "--constraint l2_constraints --mode radius --tau 30",
    "--mode diameter --tau 300 --rescale diameter --lr_scheme keep",
    "--rescale None --lr 0.001 --lr_scheme decrease_3",
    "--precision bf16 --color_channel 3 --momentum 0",
    "--k_sparseness 1000000 --k_frac 1 --test_batchsize 1000",
])  # fmt: skip
def test_settings_train_and_test(flags, quick, tmp_path):
    flags = (*DIGITS, *flags.split(), "--output_dir", tmp_path)
    for name in SCRIPTS:
        status, _, err = quick(name, *flags)
        assert status == 0, err


@pytest.mark.parametrize("data", ["cifar10", "cifar100", "mnist", "svhn", "tiny", "digits"])
@pytest.mark.parametrize("arch", ["ResNet18", "VGG16", "Mlp"])
def test_every_network_trains_on_every_data_set(arch, data, quick, tmp_path, write_npz):
    write_npz(tmp_path, data, train=6, test=4)
    status, out, err = quick(
        "train_prune.py", "--data", data, "--arch", arch, "--color_channel", 3, "--epoch_num", 1,
        "--mode", "diameter", "--data_dir", tmp_path, "--output_dir", tmp_path,
    )  # fmt: skip
    assert status == 0, err
    assert "Epoch 1/1: loss" in out


def test_help_states_every_flag_and_default(script):
    for name in SCRIPTS:
        done = script(name, "--help")
        assert done.returncode == 0 and done.stderr == ""
        for setting in vars(Config()):
            assert f"--{setting}" in done.stdout
        assert "(default: k_sparse_constraints)" in " ".join(done.stdout.split())
        assert ("--model_path" in done.stdout) == (name != "train_prune.py")


def test_settings_not_given_stay_out_of_the_way():
    assert vars(Parser("").parse_args(["--lr", "0.5"])) == {"lr": 0.5}


BAD_FLAGS = {
    "--data nothing": "--data nothing: choose one of cifar10, cifar100, mnist",
    "--arch nothing": "--arch nothing: choose one of ResNet18",
    "--optimizer Adam": "--optimizer Adam: choose one of SFW, SGD",
    "--constraint l7": "--constraint l7: choose one of k_sparse_constraints",
    "--lr_scheme up": "--lr_scheme up: choose one of dynamic_change",
    "--mode size": "--mode size: choose one of initialization",
    "--rescale size": "--rescale size: choose one of gradient",
    "--precision fp8": "--precision fp8: choose one of fp32, bf16",
    "--color_channel 2": "--color_channel 2: choose one of 1, 3",
    "--sfw_init 2": "--sfw_init 2: choose one of 0, 1",
    "--sfw_init 1": "--sfw_init 1: SFW-Init is not available yet",
    "--lr 0": "--lr 0: must be greater than 0",
    "--lr -0.1": "--lr -0.1: must be greater than 0",
    "--lr 1.01": "--lr 1.01: SFW takes a learning rate of at most 1",
    "--lr nan": "--lr nan: must be greater than 0",
    "--lr inf --optimizer SGD": "--lr inf: must be greater than 0",
    "--lr much": "--lr: invalid float value: 'much'",
    "--momentum 1": "--momentum 1: must be at least 0 and less than 1",
    "--momentum -0.1": "--momentum -0.1: must be",
    "--weight_decay -1": "--weight_decay -1: must be at least 0",
    "--k_frac 0": "--k_frac 0: must be greater than 0 and at most 1",
    "--k_frac 1.5": "--k_frac 1.5: must be greater than 0 and at most 1",
    "--k_sparseness 0": "--k_sparseness 0: must be at least 1",
    "--k_sparseness 1.5": "--k_sparseness: invalid int value: '1.5'",
    "--tau 0": "--tau 0: must be greater than 0",
    "--tau -3": "--tau -3: must be greater than 0",
    "--train_batchsize 0": "--train_batchsize 0: must be at least 1",
    "--test_batchsize 0": "--test_batchsize 0: must be at least 1",
    "--epoch_num 0": "--epoch_num 0: must be at least 1",
    "--epoch_num 99999999999": "--epoch_num 99999999999: must be at least 1 and at most",
    "--seed -1": "--seed -1: must be at least 0",
    "--gpu -2": "--gpu -2: must be at least -1",
    "--gpu 99": "--gpu 99: PyTorch finds",
    "--constraint unconstraints": "--constraint unconstraints: SFW needs a bounded region",
    "--mode None": "--mode None: a region needs a size; choose initialization",
    "--epochs 3": "unrecognized arguments: --epochs 3",
    "--epoch 3": "unrecognized arguments: --epoch 3",
    "--lr": "--lr: expected one argument",
    "digits": "unrecognized arguments: digits",
}


def assert_refused(result, message, folder, before=()):
    status, out, err = result
    assert status == 2, (out, err)
    assert err.startswith("error: ") and err.count("\n") == 1 and err.endswith("\n")
    assert message in err
    assert files_in(folder) == list(before)


@pytest.mark.parametrize("flags", BAD_FLAGS)
def test_bad_flags_are_refused_in_one_line(flags, quick, tmp_path):
    result = quick("train_prune.py", *DIGITS, "--output_dir", tmp_path, *flags.split())
    assert_refused(result, BAD_FLAGS[flags], tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_refused(quick, tmp_path):
    result = quick("train_prune.py", *DIGITS, "--gpu", 0, "--output_dir", tmp_path)
    assert_refused(result, "--gpu 0: PyTorch finds no CUDA device; --gpu -1 runs", tmp_path)


def test_a_data_set_that_is_absent_offline_is_refused(script, tmp_path):
    done = script("train_prune.py", "--data", "mnist", "--data_dir", tmp_path / "d",
                  "--output_dir", tmp_path)  # fmt: skip
    result = done.returncode, done.stdout, done.stderr
    assert_refused(result, "--data mnist: absent from --data_dir", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_damaged_data_are_refused(quick, tmp_path, write_npz):
    path = write_npz(tmp_path, "mnist", y_test=np.full(20, 11))
    flags = ("--data", "mnist", "--data_dir", tmp_path, "--output_dir", tmp_path)
    message = "mnist.npz: y_test must hold labels 0 ... 9"
    assert_refused(quick("train_prune.py", *flags), message, tmp_path, [path])


@pytest.mark.parametrize("name", SCRIPTS)
def test_an_output_folder_that_cannot_be_written_is_refused(name, quick, trained, tmp_path):
    flags = [*DIGITS, "--output_dir", trained / "file"]
    if name != "train_prune.py":
        flags += ["--model_path", trained / "saved_models" / f"{RUN}.pt"]
    (trained / "file").write_text("not a folder")
    before = files_in(trained)
    result = quick(name, *flags)
    assert_refused(result, f"--output_dir: cannot write in {trained / 'file'}", trained, before)


def test_a_folder_in_place_of_an_output_file_is_refused(quick, trained):
    path = trained / "saved_logs" / "SFW_prune_test" / f"{RUN}.csv"
    path.mkdir(parents=True)
    result = quick("test_prune.py", *DIGITS, "--output_dir", trained)
    assert_refused(result, f"{RUN}.csv is a folder", trained, files_in(trained))


@pytest.mark.parametrize("name", ["test_prune.py", "test_weight_distribution.py"])
class TestModelFiles:
    """Which model files the two test scripts take, and which they refuse."""

    def test_a_missing_model_is_refused(self, name, quick, tmp_path):
        result = quick(name, *DIGITS, "--output_dir", tmp_path)
        assert_refused(result, f"{RUN}.pt: no such model; train it first", tmp_path)
        result = quick(name, "--model_path", tmp_path / "no.pt", "--output_dir", tmp_path)
        assert_refused(result, "no.pt: no such file", tmp_path)

    def test_settings_come_from_the_model_file(self, name, quick, trained, tmp_path):
        path = trained / "elsewhere.pt"
        (trained / "saved_models" / f"{RUN}.pt").rename(path)
        flags = ("--model_path", path, "--output_dir", trained, "--test_batchsize", 50)
        status, out, err = quick(name, *flags)
        assert status == 0, err
        assert f"{RUN}.csv" in out

    def test_a_model_of_other_settings_is_refused(self, name, quick, trained):
        path = trained / "saved_models" / f"{RUN}.pt"
        before = files_in(trained)
        result = quick(name, "--model_path", path, "--lr", 0.5, "--output_dir", trained)
        assert_refused(result, "--lr 0.5:", trained, before)
        renamed = path.rename(path.with_name(path.name.replace("num=2", "num=3")))
        result = quick(name, *DIGITS[:-1], 3, "--output_dir", trained)
        message = f"--epoch_num 3: {renamed} was trained with 2"
        assert_refused(result, message, trained, files_in(trained))

    @pytest.mark.parametrize("content", [b"", b"no model", b"PK\x03\x04 no zip", "half", "list"])
    def test_a_file_that_is_no_model_is_refused(self, name, content, quick, trained):
        path = trained / "saved_models" / f"{RUN}.pt"
        if content == "half":
            content = path.read_bytes()[: path.stat().st_size // 2]
        if content == "list":
            torch.save([1, 2], path)
        else:
            path.write_bytes(content)
        before = files_in(trained)
        result = quick(name, *DIGITS, "--output_dir", trained)
        assert_refused(result, f"{RUN}.pt: is no model file", trained, before)

    def test_a_pickle_that_runs_code_is_refused_unrun(self, name, quick, tmp_path):
        torch.save(nn.Linear(2, 2), tmp_path / "whole.pt")
        result = quick(name, "--model_path", tmp_path / "whole.pt", "--output_dir", tmp_path)
        assert_refused(result, "is no model file", tmp_path, [tmp_path / "whole.pt"])

    def test_a_bare_state_dict_is_tested_under_its_own_name(self, name, quick, tmp_path):
        model = build_model("Mlp", 10, 1, 8)
        torch.save(model.state_dict(), tmp_path / "authors.pt")
        flags = ("--model_path", tmp_path / "authors.pt", "--output_dir", tmp_path)
        status, out, err = quick(name, *flags, "--data", "digits", "--arch", "Mlp")
        assert status == 0, err
        assert "authors.csv" in out

    def test_a_bare_state_dict_of_another_network_is_refused(self, name, quick, tmp_path):
        torch.save(build_model("Mlp", 10, 1, 8).state_dict(), tmp_path / "authors.pt")
        flags = ("--model_path", tmp_path / "authors.pt", "--output_dir", tmp_path)
        result = quick(name, *flags, "--data", "digits", "--arch", "VGG16")
        message = "holds other tensors than VGG16 for digits has"
        assert_refused(result, message, tmp_path, [tmp_path / "authors.pt"])


def test_a_full_disk_ends_the_run_in_one_line_and_keeps_the_old_model(quick, trained, monkeypatch):
    path = trained / "saved_models" / f"{RUN}.pt"
    before = path.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("utils.files.os.fsync", full)
    status, _, err = quick("train_prune.py", *DIGITS, "--output_dir", trained)
    assert status == 1
    assert err.startswith("error: cannot write") and "No space left on device" in err
    assert err.count("\n") == 1
    assert path.read_bytes() == before
    assert not list(trained.rglob("*.tmp"))


@pytest.mark.cuda
def test_the_scripts_run_on_a_gpu(quick, tmp_path):
    for name in SCRIPTS:
        status, _, err = quick(name, *DIGITS, "--gpu", 0, "--output_dir", tmp_path)
        assert status == 0, err
