"""What the GPU's step launches, and that its kernels compile, on machines without a GPU."""

import copy
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from constraints import KSparsePolytope, LpBall
from optim import cuda

triton = pytest.importorskip("triton")
step = pytest.importorskip("optim.cuda.step")
FusedStep, Slot = step.FusedStep, step.Slot

STEP = [
    "advance", "select", "refine", "select", "refine", "select", "count_ties", "limit_ties",
    "measure", "set_alpha", "move",
]  # fmt: skip


@pytest.fixture
def launches(monkeypatch):
    """The names of the kernels that are launched, none of which runs."""
    names = []

    def note(kernel, *args, grid, warmup, **options):
        names.append(kernel.__name__)

    monkeypatch.setattr(triton.runtime.jit.JITFunction, "run", note)
    return names


def slots_of(sizes):
    group = {"lr": 0.5, "momentum": 0.9, "weight_decay": 0.0, "rescale": "gradient"}
    slots = []
    for n in sizes:
        tensors, region = (torch.zeros(n) for _ in range(3)), KSparsePolytope(n, 1, radius=1.0)
        slots.append(Slot(*tensors, torch.zeros(()), region, group))
    return slots


def during(launches, fused, slots):
    """What a step launches."""
    launches.clear()
    fused(slots)
    return list(launches)


@pytest.mark.parametrize("sizes", [[7], [10_000, 64, 4_096] * 20], ids=["one", "sixty"])
def test_a_step_is_eleven_launches_whatever_the_number_of_tensors(sizes, launches):
    fused, slots = FusedStep(), slots_of(sizes)
    assert during(launches, fused, slots) == ["write", *STEP]
    assert during(launches, fused, slots) == STEP


def test_only_what_changed_is_written(launches):
    fused, slots = FusedStep(), slots_of([5] * 200)
    assert during(launches, fused, slots) == ["write", "write", *STEP]
    slots[-1].group["lr"] = 0.1
    assert during(launches, fused, slots) == ["write", *STEP]
    slots[0] = slots[0]._replace(gradient=torch.zeros(5))
    assert during(launches, fused, slots) == ["write", *STEP]
    assert during(launches, fused, slots) == STEP


def test_a_graph_and_each_step_after_it_write_for_themselves(launches, monkeypatch):
    """A replay writes the addresses of the graph's own gradients."""
    fused, slots = FusedStep(), slots_of([5, 6])
    during(launches, fused, slots)
    with monkeypatch.context() as patch:
        patch.setattr(step, "_is_capturing", lambda device: True)
        assert during(launches, fused, slots) == ["write", *STEP]
    for _ in range(2):
        assert during(launches, fused, slots) == ["write", *STEP]


def test_a_graphs_tables_are_kept_when_other_parameters_take_steps(launches, monkeypatch):
    fused, slots = FusedStep(), slots_of([5, 6])
    fused(slots)
    captured = fused.plans[torch.device("cpu")]
    with monkeypatch.context() as patch:
        patch.setattr(step, "_is_capturing", lambda device: True)
        fused(slots)
    fused(slots[:1])
    assert fused.plans[torch.device("cpu")] is not captured
    assert fused.captured == [captured]


def test_tables_cannot_be_made_while_a_graph_is_captured(launches, monkeypatch):
    monkeypatch.setattr(step, "_is_capturing", lambda device: True)
    with pytest.raises(RuntimeError, match="take a step of SFW with these parameters before"):
        FusedStep()(slots_of([5]))
    assert launches == []


def test_autograd_notices_that_weights_moved(launches):
    (slot,) = slots_of([3])
    version = slot.weights._version
    FusedStep()([slot])
    assert slot.weights._version > version


def test_a_copy_has_no_tables(launches):
    fused = FusedStep()
    fused(slots_of([5]))
    assert copy.deepcopy(fused).plans == {}


def test_what_is_not_taken():
    (slot,) = slots_of([24])
    assert slot.is_taken()
    assert not slot._replace(region=LpBall(24, 2, radius=1.0)).is_taken()
    assert not slot._replace(region=KSparsePolytope(23, 1, radius=1.0)).is_taken()
    assert not slot._replace(gradient=slot.gradient.bfloat16()).is_taken()
    assert not slot._replace(gradient=torch.zeros(24, device="meta")).is_taken()
    assert not slot._replace(gradient=slot.gradient.to_sparse()).is_taken()
    assert not slot._replace(momentum=slot.momentum[:23]).is_taken()
    first = slot.weights.view(2, 3, 4)
    last = first.movedim(1, -1).contiguous().movedim(-1, 1)
    strange = first.transpose(0, 1)
    assert not slot._replace(momentum=first).is_taken()
    assert Slot(last, last, last, *slot[3:]).is_taken()
    assert not Slot(last, first, last, *slot[3:]).is_taken()
    assert not Slot(strange, strange, strange, *slot[3:]).is_taken()


def test_where_nothing_can_be_launched_the_reason_is_said():
    cuda.self_test._try.cache_clear()
    assert "RuntimeError: 0 active drivers" in cuda.available(torch.device("cpu"))


@pytest.fixture
def compiled(monkeypatch, tmp_path):
    """compiled(capability) gives a list of the kernels that later steps compile.

    All is as on a GPU, but for the launch itself.
    """
    jit, kernels = triton.runtime.jit.JITFunction, []
    compile_kernel, run = jit._do_compile, jit.run

    def note(self, *args, **options):
        kernels.append(compile_kernel(self, *args, **options))
        return kernels[-1]

    def run_without_launch(self, *args, grid, warmup, **options):
        return run(self, *args, grid=grid, warmup=True, **options)

    def prepare(capability):
        target = triton.backends.compiler.GPUTarget("cuda", capability, 32)
        driver = SimpleNamespace(
            get_current_device=lambda: f"sm_{capability}",  # Triton finds kernels by this
            get_current_stream=lambda device: 0,
            get_current_target=lambda: target,
        )
        monkeypatch.setattr(triton.runtime.driver, "_active", driver)
        return kernels

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(jit, "_do_compile", note)
    monkeypatch.setattr(jit, "run", run_without_launch)
    return prepare


@pytest.mark.parametrize("capability", [80, 90])
def test_kernels_compile_once_and_spill_no_registers(capability, compiled, tmp_path):
    kernels, fused = compiled(capability), FusedStep()
    fused(slots_of([5]))
    assert {kernel.name for kernel in kernels} == {"write", *STEP}
    for kernel in kernels:
        cubin = tmp_path / "kernel.cubin"
        cubin.write_bytes(kernel.asm["cubin"])
        usage = resources(cubin)
        assert "STACK:0 " in usage and "LOCAL:0 " in usage, f"{kernel.name}: {usage}"
    # Other addresses, numbers and sizes need no others.
    kernels.clear()
    slots = slots_of([1, 2, 10_001] * 90)
    for lr in (1.0, 1 / 3, torch.tensor(0.1)):
        slots[0].group["lr"] = lr
        slots[1] = slots[1]._replace(gradient=torch.zeros(3)[1:])
        fused(slots)
    assert kernels == []


def resources(cubin):
    """What a compiled kernel takes: registers that are spilled lie on its stack."""
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    command = [tool, "-res-usage", cubin]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout
