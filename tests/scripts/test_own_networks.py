"""Networks of one's own through the three scripts, from training to the files of pruned ones."""

import re
import secrets
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from runs import SETTINGS, assert_refused, flags_of, main_of, outcome, read_csv

from train_prune import step_seeds
from utils.checkpoints.model_file import read_contents
from utils.process.errors import UserError
from utils.prune import load_pruned
from utils.prune.weights.allocation import ALLOCATIONS
from utils.settings.config import Config

VIT = SETTINGS | {"arch": "own_networks:vit", "epoch_num": 2, "train_batchsize": 256}
RUN = Config(**VIT).run_name


@pytest.fixture(scope="module")
def vit(tmp_path_factory):
    """The flags of a small Vision Transformer that is trained, with dropout and SFW-Init."""
    flags = [*flags_of(VIT), "--output_dir", str(tmp_path_factory.mktemp("vit"))]
    assert main_of("train_prune.py")(flags) == 0
    return flags


@pytest.fixture
def resnet(quick, write_npz, tmp_path):
    """The flags of torchvision's ResNet18, trained on a few images."""
    write_npz(tmp_path, "digits", train=4, test=4)
    flags = ("--data", "digits", "--color_channel", 3, "--arch", "torchvision.models:resnet18")
    flags += ("--epoch_num", 1, "--train_batchsize", 2)
    flags += ("--data_dir", tmp_path, "--output_dir", tmp_path)
    status, out, err = quick("train_prune.py", *flags)
    assert status == 0 and "Epoch 1/1: loss " in out, err
    return flags


def test_torchvisions_resnet_is_trained_pruned_and_saved(quick, resnet, tmp_path):
    prune = ("--ratios", 0.9, "--save_pruned", 0.9, "--bn_recalibrate", 4)
    status, out, err = quick("test_prune.py", *resnet, *prune)
    assert status == 0 and "torchvision.models:resnet18 with 11,181,642 parameters" in out, err
    (path,) = tmp_path.rglob("data=digits_model=torchvision.models-resnet18_*.npz")
    model = load_pruned(path, arch="torchvision.models:resnet18")
    assert sum(int((p != 0).sum()) for p in model.parameters()) == 1_118_165
    flags = (*resnet[:6], "--model_path", path, "--output_dir", tmp_path)
    status, out, err = quick("test_weight_distribution.py", *flags)
    assert status == 0, err


@pytest.mark.parametrize("allocation", ALLOCATIONS)
def test_a_vision_transformer_is_pruned_by_each_allocation(allocation, quick, vit):
    prune = ("--allocation", allocation, "--prune_scope", "weights", "--ratios", 0.5, 0.9)
    status, out, err = quick("test_prune.py", *vit, *prune)
    assert status == 0, err
    table = out[out.index("sparsity") :].splitlines()
    entries = sum(p.numel() for p in trained_network(vit).parameters() if p.dim() > 1)
    assert table[1].split()[1] == f"{entries - int(0.5 * entries):,}"


def trained_network(flags):
    return load_pruned(next(folder_of(flags).rglob(f"{RUN}.pt")), arch="own_networks:vit")


def folder_of(flags):
    return Path(flags[-1])


def test_a_vision_transformer_is_exported_and_repaired(quick, vit):
    onnxruntime = pytest.importorskip("onnxruntime")
    prune = ("--ratios", 0.5, "--save_pruned", 0.5, "--repair", 64)
    formats = ("--pruned_format", "npz", "state_dict", "onnx")
    status, _, err = quick("test_prune.py", *vit, *prune, *formats)
    assert status == 0, err
    (path,) = folder_of(vit).rglob(f"{RUN}_repair=64_sparsity=0.5.npz")
    model = load_pruned(path, arch="own_networks:vit")
    state = torch.load(path.with_name(path.name.replace(".npz", ".pt")))
    assert all(torch.equal(values, state[n]) for n, values in model.state_dict().items())
    dataset = Config(**VIT).load_dataset()
    session = onnxruntime.InferenceSession(path.with_suffix(".onnx"))
    images = dataset.test_images.numpy().astype(np.float32) / 255
    (logits,) = session.run(None, {"images": images})
    (row,) = read_csv(next(folder_of(vit).rglob(f"SFW_prune_test/{RUN}_repair=64*.csv")))
    right = (torch.from_numpy(logits).argmax(1) == dataset.test_labels).double().mean().item()
    assert 100 * right == pytest.approx(float(row["repaired"]), abs=1e-3)


@pytest.mark.parametrize("steps", [3, 9])  # an epoch has 6
def test_dropout_goes_on_where_a_run_was_stopped(steps, quick, vit, tmp_path, stop_within):
    stop_within(steps)
    flags = [*vit[:-1], tmp_path]
    assert quick("train_prune.py", *flags)[0] == 143
    torch.manual_seed(99)
    assert quick("train_prune.py", *flags)[0] == 0
    assert outcome(tmp_path, VIT) == outcome(folder_of(vit), VIT)


def test_the_comparison_sees_dropout_that_is_not_drawn_again(
    quick, vit, tmp_path, stop_within, monkeypatch
):
    drawn = lambda *numbers: [secrets.randbits(31) for _ in range(numbers[-1])]  # noqa: E731
    monkeypatch.setattr("train_prune.step_seeds", drawn)
    flags = [*vit[:-1], tmp_path]
    stop_within(3)
    assert [quick("train_prune.py", *flags)[0] for _ in range(2)] == [143, 0]
    assert outcome(tmp_path, VIT) != outcome(folder_of(vit), VIT)


def test_dropout_differs_between_steps_epochs_processes_and_seeds():
    runs = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)]
    seeds = [seed for run in runs for seed in step_seeds(*run, steps=3)]
    assert len(set(seeds)) == 12
    assert step_seeds(0, 0, 0, 3) == seeds[:3]


def test_a_file_never_chooses_what_code_is_run(quick, tmp_path, monkeypatch):
    code = "from torch import nn\nopen('imported', 'w').close()\n"
    code += "def net(num_classes):\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))\n"
    (tmp_path / "nets_of_a_file.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    config = Config(data="digits", arch="nets_of_a_file:net", epoch_num=1)
    flags = ("--data", "digits", "--arch", config.arch, "--epoch_num", 1)
    assert quick("train_prune.py", *flags)[0] == 0
    assert quick("test_prune.py", *flags, "--ratios", 0.5, "--save_pruned", 0.5)[0] == 0
    monkeypatch.delitem(sys.modules, "nets_of_a_file")
    (tmp_path / "imported").unlink()
    pruned = next(tmp_path.rglob("saved_models/*.npz"))
    for path in (config.files.model, pruned):
        for script in ("test_prune.py", "test_weight_distribution.py"):
            result = quick(script, "--model_path", path)
            assert_refused(result, f"{path}: its network is made by nets_of_a_file:net, and a file")
        other = quick(script, "--model_path", path, "--arch", "own_networks:vit")
        assert_refused(other, "was trained with --arch nets_of_a_file:net, not own_networks:vit")
        with pytest.raises(UserError, match="must not choose what code is run"):
            load_pruned(path)
    table = next(tmp_path.rglob("SFW_prune_test/*.csv"))
    assert quick("test_prune.py", "--compare", table)[0] == 0
    assert not (tmp_path / "imported").exists()
    assert quick("test_prune.py", "--model_path", pruned, "--arch", config.arch)[0] == 0
    assert (tmp_path / "imported").exists()


def test_a_model_file_names_the_factory_and_its_name_has_no_colon(vit):
    path = folder_of(vit) / "saved_models" / f"{RUN}.pt"
    assert path.name.startswith("data=digits_model=own_networks-vit_")
    assert read_contents(path, "")["config"]["arch"] == "own_networks:vit"
    log = next(folder_of(vit).rglob("SFW_one_shot_prune/*.log")).read_text()
    assert "Model: own_networks:vit " in log


def test_a_network_that_flattens_by_view_keeps_the_ordinary_memory_format(quick, tmp_path):
    flags = ("--data", "digits", "--arch", "own_networks:shared", "--epoch_num", 1)
    flags += ("--sfw_init", 1, "--sfw_init_iters", 2, "--output_dir", tmp_path)
    assert quick("train_prune.py", *flags)[0] == 0
    status, _, err = quick("test_prune.py", *flags, "--ratios", 0.9, "--save_pruned", 0.9)
    assert status == 0, err
    model = load_pruned(next(tmp_path.rglob("saved_models/*.npz")), arch="own_networks:shared")
    assert model.second.weight is model.first.weight
    entries = sum(p.numel() for p in model.parameters())
    zeros = sum(int((p == 0).sum()) for p in model.parameters())
    assert zeros == int(0.9 * entries)


def test_sfw_init_needs_second_derivatives(quick, tmp_path):
    flags = ("--data", "digits", "--arch", "own_networks:no_second_derivative")
    flags += ("--output_dir", tmp_path, "--epoch_num", 1)
    status, _, err = quick("train_prune.py", *flags, "--sfw_init", 1)
    assert status == 2
    assert re.fullmatch("error: --sfw_init 1: .*cannot be differentiated twice.*; leave.*\n", err)
    assert quick("train_prune.py", *flags)[0] == 0
