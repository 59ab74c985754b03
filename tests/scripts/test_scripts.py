"""The three scripts as users run them."""

import re
from dataclasses import fields

import pytest
import torch
from runs import DIGITS, RUN, SCRIPTS, assert_refused, files_in, main_of, read_csv

from utils.compute.measure import THRESHOLDS
from utils.prune.weights.ranking import RATIOS
from utils.settings.config import Config

EMPTIED = "warning: pruning removes all weights of "  # as may be after so few epochs


def test_three_commands_train_prune_and_inspect(script, tmp_path):
    for name in SCRIPTS:
        done = script(name, *DIGITS, "--output_dir", tmp_path / "new" / "folder")
        assert done.returncode == 0, done.stderr
        assert all(line.startswith(EMPTIED) for line in done.stderr.splitlines())
    logs = {
        "SFW_one_shot_prune": (".csv", ".log", ".png"),
        "SFW_prune_test": (".csv", ".json", ".log", ".png"),
        "layer_sparsity": (".csv", ".png"),
        "weight_distribution": (".csv", ".log", ".png"),
    }
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
    number = r"\d+\.\d{4}"
    assert re.fullmatch(
        rf"Region_Gauge Largest: {number} Tensor: linear_layer_\d\.\w+ Mean: {number}", lines[1]
    )
    epoch = 12 + 2 + len(THRESHOLDS)  # 1437 images make 12 batches of 128
    assert len(lines) == 2 + 2 * epoch
    for i, line in enumerate(lines[2 + epoch : 2 + epoch + 12]):
        assert re.fullmatch(
            rf"Train Steps: {13 + i} Epoch: 2 Batch_Loss: \d+\.\d{{4}} Batch_Accuracy \d+\.\d+",
            line,
        )
    assert re.fullmatch(
        r"Test Epoch: 2 Test_Accuracy: \d+\.\d\d"
        r" Current_Time:\d{4}-\d\d-\d\d-\d\d_\d\d_\d\d",
        lines[2 + epoch + 13],
    )
    assert re.fullmatch(r"Effective_Weight_Decay Epoch: 2 Mean_Alpha: \d\S*", lines[2 + epoch + 12])
    assert all(re.fullmatch(r"Weight_Distribution >\S+ \d+", line) for line in lines[-11:])


def test_sfw_init_logs_saves_and_draws_its_scales(quick, tmp_path):
    flags = (*DIGITS, "--sfw_init", 1, "--sfw_init_iters", 25, "--output_dir", tmp_path)
    assert quick("train_prune.py", *flags)[0] == 0
    run = f"{RUN}_sfw_init_iters=25_sfw_init=1"
    lines = (tmp_path / f"saved_logs/SFW_one_shot_prune/{run}.log").read_text().splitlines()
    assert lines[0].endswith("SFW_Init 1")
    number = r"\d+\.\d{4}"
    for line, iteration in zip(lines[1:4], (10, 20, 25), strict=True):
        assert re.fullmatch(
            rf"SFW_Init Iteration: {iteration} Loss_Before: {number} Loss_After: {number}"
            rf" Scale_Min: {number} Scale_Mean: {number} Scale_Max: {number}",
            line,
        )
    contents = torch.load(tmp_path / "saved_models" / f"{run}.pt", weights_only=True)
    scales = contents["metrics"]["sfw_init_scales"]
    assert list(scales) == list(contents["state_dict"])
    assert lines[4:10] == [f"SFW_Init Scale {name} {scale:.6f}" for name, scale in scales.items()]
    assert (tmp_path / f"saved_logs/SFW_one_shot_prune/{run}.scales.png").is_file()


def test_sfw_init_works_for_networks_with_batch_norm(quick, tmp_path, write_npz):
    write_npz(tmp_path, "cifar10", train=4, test=4)
    flags = ("--sfw_init", 1, "--sfw_init_iters", 1, "--epoch_num", 1, "--mode", "diameter")
    folders = ("--data_dir", tmp_path, "--output_dir", tmp_path)
    status, _, err = quick("train_prune.py", *flags, *folders)  # ResNet18
    assert status == 0, err


def test_a_network_of_another_image_size_and_augmentation_is_trained_and_tested(quick, tmp_path):
    flags = (*DIGITS, "--image_size", 12, "--augment", "crop_flip", "--output_dir", tmp_path)
    for script in SCRIPTS:
        status, _, err = quick(script, *flags)
        assert status == 0, err
    (path,) = tmp_path.rglob("*.pt")
    assert path.stem == f"{RUN}_image_size=12_augment=crop_flip"
    state = torch.load(path, weights_only=True)["state_dict"]
    assert state["linear_layer_0.weight"].shape == (128, 144)
    torch.save(state, tmp_path / "bare.pt")
    flags = (*DIGITS, "--image_size", 12, "--model_path", tmp_path / "bare.pt")
    assert quick("test_prune.py", *flags, "--output_dir", tmp_path)[0] == 0
    (log,) = tmp_path.rglob("bare*.log")
    assert "Image_Size: 12" in log.read_text() and "Augment" not in log.read_text()


def test_prune_test_writes_log_csv_and_picture(quick, trained):
    status, out, _ = quick("test_prune.py", *DIGITS, "--output_dir", trained)
    assert status == 0
    folder = trained / "saved_logs" / "SFW_prune_test"
    lines = (folder / f"{RUN}.log").read_text().splitlines()
    assert lines[0].startswith("Configuration Data: digits")
    found = [
        re.fullmatch(r"Prune Ratio (\S+) Test Accuracy (\d+\.\d\d)", x)
        for x in lines[1:]
        if not x.startswith("Emptied")
    ]
    assert tuple(float(match[1]) for match in found) == RATIOS
    rows = read_csv(folder / f"{RUN}.csv")
    first = ["sparsity", "remaining", "parameters", "accuracy", "accuracy_not_finite"]
    assert list(rows[0]) == first and {row["accuracy_not_finite"] for row in rows} == {"0"}
    for row, match in zip(rows, found, strict=True):
        assert float(row["accuracy"]) == pytest.approx(float(match[2]), abs=0.006)
        removed = int(row["parameters"]) - int(row["remaining"])
        assert removed == int(float(row["sparsity"]) * 100 + 0.5) * int(row["parameters"]) // 100
    assert float(rows[0]["accuracy"]) > float(rows[-1]["accuracy"]) + 20
    assert (folder / f"{RUN}.png").is_file()
    assert out.endswith(f"\nResults: {folder}/ (picture: {RUN}.png)\n")


def test_weight_distribution_writes_log_csv_and_picture(quick, trained):
    status, out, _ = quick("test_weight_distribution.py", *DIGITS, "--output_dir", trained)
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
    assert (folder / f"{RUN}.png").is_file()
    assert out.endswith(f"\nResults: {folder}/ (picture: {RUN}.png)\n")


@pytest.mark.parametrize("data", ["digits", "cifar10"])
def test_two_runs_with_one_seed_agree_bit_for_bit(data, quick, tmp_path, write_npz):
    write_npz(tmp_path / "data", "cifar10", train=300)
    states = []
    for folder in ("a", "b"):
        flags = f"--data {data} --arch Mlp --epoch_num 2 --seed 7".split()
        folders = ("--data_dir", tmp_path / "data", "--output_dir", tmp_path / folder)
        quick("train_prune.py", *flags, *folders)
        (model,) = (tmp_path / folder / "saved_models").iterdir()
        states.append(torch.load(model, weights_only=True))
        torch.rand(3)  # the global generator's state plays no part
    assert states[0]["metrics"] == states[1]["metrics"]
    for name, values in states[0]["state_dict"].items():
        assert torch.equal(values, states[1]["state_dict"][name])


@pytest.mark.parametrize(
    "flags",
    [
        "--optimizer SGD --weight_decay 1e-4",
        "--optimizer SGD --lr 0.1 --constraint unconstraints --mode None",
        "--optimizer SGD --constraint k_sparse_constraints",
        "--constraint l2_constraints --mode radius --tau 30",
        "--mode diameter --tau 300 --rescale diameter --lr_scheme keep",
        "--rescale None --lr 0.001 --lr_scheme decrease_3",
        "--precision bf16 --color_channel 3 --momentum 0",
        "--k_sparseness 1000000 --k_frac 1 --test_batchsize 1000",
        "--sfw_init 1 --sfw_init_iters 3 --constraint l2_constraints --precision bf16",
        "--sfw_init 1 --sfw_init_iters 3 --optimizer SGD --constraint l2_constraints"
        " --train_batchsize 1",
    ],
)
def test_settings_train_and_test(flags, quick, tmp_path, write_npz):
    write_npz(tmp_path, "digits", train=9)
    flags = (*DIGITS, *flags.split(), "--data_dir", tmp_path, "--output_dir", tmp_path)
    for name in SCRIPTS[:2]:
        status, _, err = quick(name, *flags)
        assert status == 0, err


def test_sgd_without_a_learning_rate_learns_and_its_model_is_found(quick, tmp_path):
    flags = (*DIGITS, "--optimizer", "SGD", "--output_dir", tmp_path)
    assert quick("train_prune.py", *flags)[0] == 0
    (path,) = (tmp_path / "saved_models").glob("*.pt")
    contents = torch.load(path, weights_only=True)
    assert contents["config"]["lr"] == 0.1
    assert contents["metrics"]["test_accuracy"][-1] > 50
    assert quick("test_prune.py", *flags, "--lr", 0.1)[0] == 0
    assert_refused(quick("test_prune.py", *flags, "--lr", 1), "no such model")


@pytest.mark.parametrize(
    ("arch", "data"),
    [
        ("ResNet18", "mnist"),
        ("ResNet18", "tiny"),
        ("VGG16", "svhn"),
        ("Mlp", "cifar10"),
        ("Mlp", "cifar100"),
        ("Mlp", "tiny"),
    ],
)
def test_networks_train_on_every_data_set(arch, data, quick, tmp_path, write_npz):
    write_npz(tmp_path, data, train=6, test=4)
    flags = f"--data {data} --arch {arch} --color_channel 3 --epoch_num 1 --mode diameter".split()
    folders = ("--data_dir", tmp_path, "--output_dir", tmp_path)
    status, out, err = quick("train_prune.py", *flags, *folders)
    assert status == 0, err
    assert "Epoch 1/1: loss" in out


def test_help_states_every_flag_and_default(capsys):
    for name in SCRIPTS:
        with pytest.raises(SystemExit) as ended:
            main_of(name)(["--help"])
        assert not ended.value.code
        out, err = capsys.readouterr()
        assert err == ""
        for field in fields(Config):
            is_flag = field.metadata["group"] is not None
            assert (f"--{field.name}" in out) == is_flag
        text = " ".join(out.split())
        assert "(default: k_sparse_constraints for SFW, unconstraints for SGD)" in text
        assert "(default: 1 for SFW, 0.1 for SGD)" in text and "default: None" not in text
        assert ("--model_path" in out) == (name != "train_prune.py")


def test_an_mlp_learns_the_real_mnist(quick, real_data, tmp_path):
    flags = ["--data", "mnist", "--arch", "Mlp", "--epoch_num", "2", "--lr_scheme", "keep"]
    flags += ["--data_dir", real_data("mnist.npz").parent, "--output_dir", tmp_path]
    assert quick("train_prune.py", *flags)[0] == quick("test_prune.py", *flags)[0] == 0
    (path,) = tmp_path.rglob("SFW_prune_test/*.csv")
    accuracies = {row["sparsity"]: float(row["accuracy"]) for row in read_csv(path)}
    assert accuracies["0.0"] > 93 and accuracies["0.9"] > 90


@pytest.mark.cuda
def test_the_scripts_run_on_a_gpu(quick, tmp_path):
    for name in SCRIPTS:
        status, _, err = quick(name, *DIGITS, "--gpu", 0, "--output_dir", tmp_path)
        assert status == 0, err
