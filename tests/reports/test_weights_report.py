"""What test_prune.py's options print and write."""

import re

import pytest
import torch
from runs import DIGITS, RUN, assert_refused, read_csv

from models import build_model
from utils.checkpoints.model_file import model_contents, read_contents, write_contents
from utils.checkpoints.trained_model import load_trained
from utils.compute.measure import evaluate, zeros_by_parameter
from utils.prune import load_pruned
from utils.prune.config import PruneConfig
from utils.prune.weights.ranking import RATIOS, MagnitudeRanking
from utils.settings.config import Config


@pytest.fixture
def folders(trained):
    logs = trained / "saved_logs"
    return logs / "SFW_prune_test", logs / "layer_sparsity", trained / "saved_models"


@pytest.fixture
def resnet(tmp_path, write_npz):
    """Flags for a narrow ResNet18 that is untrained, a data set of a few images, few ratios."""
    write_npz(tmp_path / "data", "cifar10", train=30, test=10)
    arch = "networks:narrow_resnet18"
    config = Config(arch=arch, epoch_num=1, output_dir=tmp_path)
    torch.manual_seed(0)
    model = build_model(arch, 10, 3, 32)
    write_contents(config.files.model, model_contents(model, config, 1, {}))
    flags = f"--arch {arch} --ratios 0 0.1 0.5 --epoch_num 1".split()
    return *flags, "--data_dir", tmp_path / "data", "--output_dir", tmp_path


def test_pruned_models_are_saved_with_what_they_reached(quick, trained, folders):
    status, out, err = quick(
        "test_prune.py", *DIGITS, "--save_pruned", 0.955, 0.9, "--output_dir", trained
    )
    assert status == 0, err
    results, _, models = folders
    rows = read_csv(results / f"{RUN}.csv")
    assert [float(row["sparsity"]) for row in rows] == sorted({*RATIOS, 0.955})
    for ratio in ("0.9", "0.955"):
        path = models / f"{RUN}_sparsity={ratio}.npz"
        (row,) = [row for row in rows if row["sparsity"] == ratio]
        assert int(row["npz_bytes"]) == path.stat().st_size
        pruning = read_contents(path, "")["pruning"]
        assert pruning["sparsity"] == float(ratio)
        assert pruning["accuracy"] == pytest.approx(float(row["accuracy"]), abs=1e-4)
        left = sum(int((p != 0).sum()) for p in load_pruned(path).parameters())
        assert left == int(row["remaining"])
    assert f"\nPruned models: {models}/\n" in out
    assert {row["npz_bytes"] for row in rows if row["sparsity"] not in ("0.9", "0.955")} == {""}
    share = r" +90% +2,613 +\d+\.\d\d % +\d+ kB, \d+\.\d % of dense"
    assert re.search(share, out)
    log = (results / f"{RUN}.log").read_text()
    assert re.search(rf"^Pruned_Model 0.9 \d+ bytes {RUN}_sparsity=0.9.npz$", log, re.M)


def test_own_ratios_take_the_place_of_the_nineteen_and_are_in_names(quick, trained, folders):
    results, layers, _ = folders
    flags = (*DIGITS, "--output_dir", trained)
    quick("test_prune.py", *flags, "--save_pruned", 0.995)
    (pruned,) = trained.rglob("saved_models/*.npz")
    before = {path: path.read_bytes() for path in trained.rglob("*") if path.is_file()}
    own = ("--ratios", 0.995, 0.5, 0.995, 0.9, "--save_pruned", 0.995)
    status, out, err = quick("test_prune.py", *flags, *own)
    assert status == 0, err
    assert list(trained.rglob("saved_models/*.npz")) == [pruned]
    before[pruned] = pruned.read_bytes()  # it is the same network at any list of ratios
    assert {path: path.read_bytes() for path in before} == before
    name = f"{RUN}_ratios=0.5,0.9,0.995"
    rows, whole = read_csv(results / f"{name}.csv"), read_csv(results / f"{RUN}.csv")
    assert [row["sparsity"] for row in rows] == ["0.5", "0.9", "0.995"]
    assert all(row in whole for row in rows)
    log = (results / f"{name}.log").read_text().splitlines()
    assert log[1] == "Pruning Ratios: 0.5,0.9,0.995"
    assert re.findall("^Prune Ratio ([^ ]+)", "\n".join(log), re.M) == ["0.5", "0.9", "0.995"]
    assert re.findall(r"^ +([\d.]+)% ", out, re.M) == ["50", "90", "99.5"]
    assert ", ratios 0.5,0.9,0.995\n" in out
    assert (results / f"{name}.png").is_file() and (layers / f"{name}.csv").is_file()


def test_the_nineteen_ratios_written_out_change_no_name():
    assert PruneConfig(ratios=RATIOS).in_name() == {}


def test_a_saved_pruned_model_is_tested_under_its_own_name(quick, trained, folders):
    results, _, models = folders
    quick("test_prune.py", *DIGITS, "--save_pruned", 0.9, "--output_dir", trained)
    before = (results / f"{RUN}.csv").read_bytes()
    path = models / f"{RUN}_sparsity=0.9.npz"
    for script in ("test_weight_distribution.py", "test_prune.py"):
        status, out, err = quick(script, "--model_path", path, "--output_dir", trained)
        assert status == 0, err
        name = re.findall(rf"{RUN}_sparsity=0.9_sha256=[0-9a-f]{{16}}(?=.png)", out)[0] + ".csv"
    assert "It is pruned already: 2,613 of its parameters are left" in out
    assert (results / f"{RUN}.csv").read_bytes() == before
    log = (results / name).with_suffix(".log").read_text().splitlines()
    assert log[1].startswith("Pruned_Before Sparsity: 0.9 Accuracy: ")
    dense, pruned = (read_csv(results / csv_name) for csv_name in (f"{RUN}.csv", name))
    for one, other in zip(dense, pruned, strict=True):
        ratio = max(float(one["sparsity"]), 0.9)
        (expected,) = [row["accuracy"] for row in dense if float(row["sparsity"]) == ratio]
        assert other["accuracy"] == expected


def test_a_pruned_model_of_other_settings_is_refused(quick, trained, folders):
    quick("test_prune.py", *DIGITS, "--save_pruned", 0.9, "--output_dir", trained)
    path = folders[2] / f"{RUN}_sparsity=0.9.npz"
    result = quick("test_prune.py", "--model_path", path, "--lr", 0.5, "--output_dir", trained)
    assert_refused(result, "was trained with --lr 1, not 0.5")


def test_the_tables_of_layers_count_their_zeros(quick, trained, folders):
    quick("test_prune.py", *DIGITS, "--output_dir", trained)
    results, layers, models = folders
    rows = read_csv(layers / f"{RUN}.csv")
    assert list(rows[0]) == ["sparsity", "parameter", "entries", "zeros", "fraction"]
    state = torch.load(models / f"{RUN}.pt", weights_only=True)["state_dict"]
    assert [row["parameter"] for row in rows] == list(state) * len(RATIOS)
    for row, test in zip(rows[:: len(state)], read_csv(results / f"{RUN}.csv"), strict=True):
        same = [r for r in rows if r["sparsity"] == row["sparsity"]]
        removed = int(test["parameters"]) - int(test["remaining"])
        assert sum(int(r["zeros"]) for r in same) == removed
        assert sum(int(r["entries"]) for r in same) == int(test["parameters"])
    for row in rows:
        assert float(row["fraction"]) == pytest.approx(int(row["zeros"]) / int(row["entries"]))
    assert (layers / f"{RUN}.png").is_file()


def test_results_of_other_allocations_do_not_replace_the_papers(quick, trained, folders):
    flags = "--allocation erk --prune_scope weights"
    quick("test_prune.py", *DIGITS, "--output_dir", trained)
    before = {path: path.read_bytes() for path in trained.rglob("*") if path.is_file()}
    status, out, err = quick("test_prune.py", *DIGITS, *flags.split(), "--output_dir", trained)
    assert status == 0, err
    assert {path: path.read_bytes() for path in before} == before
    words = flags.replace("--", "").split()
    parts = dict(zip(words[::2], words[1::2], strict=True))
    name = "_".join([RUN, *(f"{k}={v}" for k, v in parts.items())])
    log = (folders[0] / f"{name}.log").read_text().splitlines()
    assert log[1] == "Pruning " + " ".join(f"{k.title()}: {v}" for k, v in parts.items())
    assert ", ".join(f"{k} {v}" for k, v in parts.items()) in out
    model = load_trained(Config(data="digits", arch="Mlp", epoch_num=2, output_dir=trained)).model
    MagnitudeRanking(model, *parts.values()).prune(0.9)
    rows = [row for row in read_csv(folders[1] / f"{name}.csv") if row["sparsity"] == "0.9"]
    assert {row["parameter"]: int(row["zeros"]) for row in rows} == zeros_by_parameter(model)


def test_accuracy_is_told_with_and_without_recalibration(quick, resnet, tmp_path):
    flags = ("--bn_recalibrate", 20, "--save_pruned", 0.5)
    status, out, err = quick("test_prune.py", *resnet, *flags)
    assert status == 0, err
    dense = torch.load(next(tmp_path.rglob("*.pt")), weights_only=True)["state_dict"]
    path = next(tmp_path.rglob("saved_models/*.npz"))
    saved = load_pruned(path, "networks:narrow_resnet18").state_dict()
    assert not torch.equal(saved["bn1.running_mean"], dense["bn1.running_mean"])
    (path,) = tmp_path.rglob("SFW_prune_test/*_bn_recalibrate=20_*.csv")
    rows = read_csv(path)
    finite = ["accuracy_not_finite", "recalibrated_not_finite"]
    assert list(rows[0])[3:] == ["accuracy", finite[0], "recalibrated", finite[1], "npz_bytes"]
    log = path.with_suffix(".log").read_text().splitlines()
    assert log[1] == "Pruning Bn_Recalibrate: 20 Ratios: 0,0.1,0.5"
    for line, row in zip(log[2:], rows, strict=False):
        expected = f"{float(row['accuracy']):.2f} Recalibrated {float(row['recalibrated']):.2f}"
        assert line == f"Prune Ratio {float(row['sparsity']):g} Test Accuracy {expected}"
    assert re.search(r"^sparsity +remaining +accuracy +recalibrated  file$", out, re.M)
    quick("test_prune.py", *resnet)
    plain = read_csv(path.with_name(path.name.replace("_bn_recalibrate=20", "")))
    assert [row["accuracy"] for row in plain] == [row["accuracy"] for row in rows]


def test_a_layer_that_is_emptied_is_named(quick, resnet, tmp_path):
    model = next(tmp_path.rglob("*.pt"))
    contents = torch.load(model, weights_only=True)
    contents["state_dict"]["layer2.0.conv1.weight"].mul_(1e-6)
    torch.save(contents, model)
    status, _, err = quick("test_prune.py", *resnet)
    assert status == 0
    message = "warning: pruning removes all weights of "
    assert err.startswith(message) and "layer2.0.conv1.weight (from 10%)" in err
    assert "bias" not in err  # those of BatchNorm begin as 0
    assert err.count("\n") == 1
    (log,) = tmp_path.rglob("SFW_prune_test/*.log")
    assert "Emptied 0.1 layer2.0.conv1.weight" in log.read_text().splitlines()


def test_a_network_without_batch_norm_cannot_be_recalibrated(quick, trained):
    result = quick("test_prune.py", *DIGITS, "--bn_recalibrate", 20, "--output_dir", trained)
    assert_refused(
        result, "error: --bn_recalibrate: Mlp has no BatchNorm with running statistics; "
    )


def test_a_network_with_batch_norm_is_not_repaired(quick, resnet):
    result = quick("test_prune.py", *resnet, "--repair", 20)
    assert_refused(result, "error: --repair: networks:narrow_resnet18 has BatchNorm; ")


def test_repairing_leaves_the_zeros_and_the_accuracies_without_it(quick, trained, folders):
    flags = (*DIGITS, "--output_dir", trained, "--ratios", 0, 0.5, 0.97)
    assert quick("test_prune.py", *flags)[0] == 0
    status, out, err = quick("test_prune.py", *flags, "--repair", 300, "--save_pruned", 0.97)
    assert status == 0, err
    results, layers, _ = folders
    for folder, columns in ((results, ["accuracy", "remaining"]), (layers, ["zeros", "parameter"])):
        plain, repaired = (
            read_csv(path) for path in sorted(folder.glob("*.csv"), key=lambda p: len(p.name))
        )
        for column in columns:
            assert [row[column] for row in plain] == [row[column] for row in repaired]
    (path,) = results.glob("*repair=300_*.csv")
    rows = {row["sparsity"]: row for row in read_csv(path)}
    assert "accuracy" in rows["0.0"] and "repaired" in rows["0.0"]
    assert re.search(r"^sparsity +remaining +accuracy +repaired  file$", out, re.M)
    pruning = read_contents(next(trained.rglob("saved_models/*.npz")), "")["pruning"]
    assert pruning["repair"] == 300
    for key, column in (("accuracy_uncorrected", "accuracy"), ("accuracy", "repaired")):
        assert pruning[key] == pytest.approx(float(rows["0.97"][column]), abs=1e-3)
    assert pruning["accuracy"] > pruning["accuracy_uncorrected"]


def test_corrected_only_leaves_out_the_accuracies_as_pruned_and_changes_no_other(
    quick, trained, folders
):
    flags = (*DIGITS, "--output_dir", trained, "--ratios", 0, 0.9, "--repair", 300)
    for only in ((), ("--corrected_only",)):
        status, out, err = quick("test_prune.py", *flags, *only)
        assert status == 0, err
    assert re.search(r"^sparsity +remaining +repaired$", out, re.M)
    tables = sorted(folders[0].glob("*.csv"), key=lambda path: len(path.name))
    both, only = (read_csv(path) for path in tables)
    assert [row["repaired"] for row in both] == [row["repaired"] for row in only]
    assert "accuracy" in both[0] and "accuracy" not in only[0]
    status, out, err = quick("test_prune.py", "--compare", *tables, "--output_dir", trained)
    assert status == 0 and out.count("as pruned") == 1, err


@pytest.mark.parametrize(("precision", "named"), [("fp32", False), ("bf16", True)])
def test_networks_are_tested_in_the_precision_that_is_asked_for(
    precision, named, quick, trained, folders, monkeypatch
):
    used = []
    monkeypatch.setattr(
        "test_prune.evaluate", lambda *args: used.append(args[2]) or evaluate(*args)
    )
    flags = (*DIGITS, "--output_dir", trained, "--ratios", 0.5, "--test_precision", precision)
    assert quick("test_prune.py", *flags)[0] == 0
    assert used == [precision]
    (table,) = folders[0].glob("*.csv")
    assert ("test_precision=bf16" in table.name) is named


BAD_FLAGS = {
    "--corrected_only": "--corrected_only: nothing is corrected; add --bn_recalibrate or --repair",
    "--test_precision fp16": "--test_precision fp16: choose one of fp32, bf16",
    "--allocation local": "--allocation local: choose one of global, uniform, erk, lamp",
    "--prune_scope some": "--prune_scope some: choose one of all, weights",
    "--bn_recalibrate -1": "--bn_recalibrate -1: must be at least 0",
    "--repair 9999": "--repair 9999: there are 1437 training images; choose fewer",
    "--save_pruned 1": "--save_pruned 1: must be at least 0 and less than 1",
    "--save_pruned half": "--save_pruned: invalid ratio value: 'half'",
    "--ratios 0.5 90": "--ratios 90: must be at least 0 and less than 1",
    "--ratios nan": "--ratios nan: must be at least 0",
    "--ratios": "--ratios: expected at least one argument",
}


@pytest.mark.parametrize("flags", BAD_FLAGS)
def test_bad_flags_are_refused_in_one_line(flags, quick, trained):
    before = sorted(trained.rglob("*"))
    result = quick("test_prune.py", *DIGITS, "--output_dir", trained, *flags.split())
    assert_refused(result, BAD_FLAGS[flags])
    assert sorted(trained.rglob("*")) == before


def test_pruning_flags_are_of_test_prune_alone(quick, tmp_path):
    result = quick("train_prune.py", *DIGITS, "--allocation", "lamp", "--output_dir", tmp_path)
    assert_refused(result, "unrecognized arguments: --allocation")


def test_a_pruned_model_that_cannot_be_written_costs_nothing_else(
    quick, trained, folders, fill_disk
):
    fill_disk(lambda n: n == 1)
    status, _, err = quick("test_prune.py", *DIGITS, "--save_pruned", 0.9, "--output_dir", trained)
    assert status == 1
    warning, *_, error = err.splitlines()
    assert warning.startswith("warning: cannot write") and "No space left" in warning
    assert error.startswith("error: --save_pruned: some files could not be written")
    assert len(read_csv(folders[0] / f"{RUN}.csv")) == len(RATIOS)
