"""Memory, its formats, and compilation."""

import ctypes
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from runs import DIGITS, ROOT
from torch import nn

from models import build_model
from utils.compute.device import compiled, placed

CPU = torch.device("cpu")


def test_convolutions_are_channels_last_on_the_cpu():
    model = placed(build_model("VGG16", 10, 3, 32), CPU)
    kernels = [p for p in model.parameters() if p.dim() == 4]
    assert all(p.is_contiguous(memory_format=torch.channels_last) for p in kernels)


HUGE = """
import torch
from utils.compute.device import pick_device
pick_device(-1)
address, flags = torch.zeros(1 << 24)[1 << 23 :].data_ptr(), {}
for line in open("/proc/self/smaps"):
    words = line.split()
    if not words[0].endswith(":"):
        area = range(*(int(end, 16) for end in words[0].split("-")))
    elif words[0] == "VmFlags:":
        flags[area] = words[1:]
print(*(flags[area] for area in flags if address in area))
"""


@pytest.mark.skipif(
    not Path("/sys/kernel/mm/transparent_hugepage").is_dir()
    or not hasattr(ctypes.CDLL(None), "mallopt"),
    reason="needs huge pages of Linux, and glibc",
)
def test_large_tensors_lie_where_huge_pages_are_asked_for():
    run = subprocess.run([sys.executable, "-c", HUGE], cwd=ROOT, capture_output=True, text=True)
    assert "'hg'" in run.stdout, run.stderr


@pytest.mark.parametrize(("channels", "last"), [(15, False), (16, True)])
def test_strided_1x1_convolutions_of_few_channels_keep_pytorchs_format(channels, last, monkeypatch):
    """In channels_last oneDNN's gradient is wrong below 8 (AVX2) or 16 (AVX-512) channels."""
    model = placed(nn.Sequential(nn.Conv2d(channels, 16, 1, stride=2), nn.Conv2d(16, 2, 3)), CPU)
    kernel, options = model[1].weight, []
    assert kernel.is_contiguous(memory_format=torch.channels_last) == last
    monkeypatch.setattr(torch, "compile", lambda module, **given: options.append(given["options"]))
    compiled(model, 4)
    assert options == [{"layout_optimization": last}]


def test_a_network_with_a_tensor_of_five_dimensions_keeps_pytorchs_format():
    model = placed(nn.Sequential(nn.Conv2d(3, 16, 3), nn.Conv3d(1, 16, 3)), CPU, (3, 8, 8))
    assert all(p.is_contiguous() for p in model.parameters())


class Strict(nn.Conv2d):
    def train(self, mode=True):
        super().train(mode)  # returns nothing, as many networks that freeze some of their layers


@pytest.mark.parametrize("stride", [1, 2])  # which keeps PyTorch's format with 1x1 kernels
def test_a_network_whose_train_returns_nothing_is_placed(stride):
    model = Strict(3, 16, 1, stride=stride)
    assert placed(model, CPU, (3, 8, 8)) is model and model.training


def test_a_smaller_batch_is_not_compiled_for(monkeypatch):
    model = build_model("Mlp", 10, 1, 8)
    sizes = []

    def compile_nothing(module, **options):
        return lambda inputs: sizes.append(len(inputs)) or module(inputs)

    monkeypatch.setattr(torch, "compile", compile_nothing)
    network = compiled(model, 16)
    for size in (16, 5):
        network(torch.randn(size, 1, 8, 8))
    assert sizes == [16]


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
def test_a_compiled_run_trains_as_a_plain_one(quick, tmp_path):
    outputs = {}
    for name, flags in (("plain", ()), ("compiled", ("--compile",))):
        quick("train_prune.py", *DIGITS, *flags, "--output_dir", tmp_path / name)
        (path,) = (tmp_path / name / "saved_models").glob("*.pt")
        outputs[name] = torch.load(path, weights_only=True)["metrics"]["train_loss"]
    assert outputs["compiled"] == pytest.approx(outputs["plain"], rel=1e-3)


def test_a_missing_compiler_is_told_before_any_work(quick, tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", "no_such_compiler")
    status, out, err = quick("train_prune.py", *DIGITS, "--compile", "--output_dir", tmp_path)
    assert (status, out) == (2, "") and list(tmp_path.iterdir()) == []
    assert err == "error: --compile: needs no_such_compiler, which is not there; install it\n"
