"""What the GPU's step launches, and that its kernels compile, on machines without a GPU."""

import subprocess
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from constraints import KSparsePolytope, LpBall
from optim import cuda
from optim.base import TensorStep

triton = pytest.importorskip("triton")
step = pytest.importorskip("optim.cuda.step")
CudaStep = step.CudaStep

STEP = [
    "advance",
    "select",
    "refine",
    "select",
    "refine",
    "select",
    "count_ties",
    "limit_ties",
    "measure",
    "set_alpha",
    "move",
]


@pytest.fixture
def launches(monkeypatch):
    """The names of the kernels that are launched, none of which runs."""
    names = []

    def note(kernel, *args, grid, warmup, **options):
        names.append(kernel.__name__)

    monkeypatch.setattr(triton.runtime.jit.JITFunction, "run", note)
    return names


def steps_of(sizes):
    group, steps = {"lr": 0.5, "weight_decay": 0.0, "rescale": "gradient"}, []
    for n in sizes:
        theta, gradient, m = (torch.zeros(n) for _ in range(3))
        region = KSparsePolytope(n, 1, radius=1.0)
        steps.append(TensorStep(theta, theta, gradient, m, 0.9, region, group))
    return steps


def during(launches, take, steps):
    """What a step launches."""
    launches.clear()
    take(steps)
    return list(launches)


@pytest.mark.parametrize("sizes", [[7], [10_000, 64, 4_096] * 20], ids=["one", "sixty"])
def test_a_step_is_eleven_launches_whatever_the_number_of_tensors(sizes, launches):
    take, steps = CudaStep(), steps_of(sizes)
    assert during(launches, take, steps) == ["write", *STEP]
    assert during(launches, take, steps) == STEP


def test_only_what_changed_is_written(launches):
    take, steps = CudaStep(), steps_of([5] * 100)
    assert during(launches, take, steps) == ["write", "write", *STEP]
    steps[-1].group["lr"] = 0.1
    assert during(launches, take, steps) == ["write", *STEP]
    steps[0].gradient = torch.zeros(5)
    assert during(launches, take, steps) == ["write", *STEP]
    assert during(launches, take, steps) == STEP


def test_a_graph_and_each_step_after_it_write_for_themselves(launches, monkeypatch):
    """A replay writes the addresses of the graph's own gradients."""
    take, steps = CudaStep(), steps_of([5, 6])
    take(steps)
    with monkeypatch.context() as patch:
        patch.setattr(step, "_is_capturing", lambda device: True)
        assert during(launches, take, steps) == ["write", *STEP]
    for _ in range(2):
        assert during(launches, take, steps) == ["write", *STEP]


def test_a_graphs_tables_are_kept_when_other_parameters_take_steps(launches, monkeypatch):
    take, steps, device = CudaStep(), steps_of([5, 6]), torch.device("cpu")
    take(steps)
    captured = take.plans[device]
    with monkeypatch.context() as patch:
        patch.setattr(step, "_is_capturing", lambda device: True)
        take(steps)
    take(steps[:1])
    assert take.plans[device] is not captured
    assert take.captured == [captured]


def test_tables_cannot_be_made_while_a_graph_is_captured(launches, monkeypatch):
    monkeypatch.setattr(step, "_is_capturing", lambda device: True)
    with pytest.raises(RuntimeError, match="take a step of SFW with these parameters before"):
        CudaStep()(steps_of([5]))
    assert launches == []


def test_autograd_notices_that_weights_moved(launches):
    (s,) = steps_of([3])
    version = s.theta._version
    CudaStep()([s])
    assert s.theta._version > version


def test_what_cannot_be_taken_is_said(monkeypatch):
    monkeypatch.setattr(cuda, "available", lambda device: "tried")
    region, x = KSparsePolytope(24, 1, radius=1.0), torch.zeros(24)
    cube = x.view(2, 3, 4)
    last = cube.movedim(1, -1).contiguous().movedim(-1, 1)
    strange = cube.transpose(0, 1)

    def reason(*tensors, region=region):
        return cuda.obstacle(x.device, region, tensors)

    for tensors in ((), (x, x, x), (cube, cube, cube), (last, last, last)):
        assert reason(*tensors) == "tried"
    assert "vertices" in reason(region=LpBall(24, 2, radius=1.0))
    assert "more than" in reason(region=KSparsePolytope(2**31 - 1, 1, radius=1.0))
    assert "float32" in reason(x, x.double(), x)
    for odd in (x.to("meta"), x.to_sparse(), x[:23], last, strange):
        assert "lie in memory alike" in reason(cube, odd, cube)
    assert "lie in memory alike" in reason(strange, strange, strange)
    with FakeTensorMode():
        assert "plain" in reason(*(torch.zeros(24, device="cuda") for _ in range(3)))


def test_where_triton_fails_one_warning_says_why():
    cuda.available.cache_clear()
    with pytest.warns(UserWarning, match="SFW takes its plain step on cpu.*0 active drivers"):
        assert "RuntimeError: 0 active drivers" in cuda.available(torch.device("cpu"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert "RuntimeError: 0 active drivers" in cuda.available(torch.device("cpu"))


def test_where_triton_is_absent_nothing_is_said(monkeypatch):
    cuda.available.cache_clear()
    monkeypatch.setattr(cuda, "find_spec", lambda name: None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert "not installed" in cuda.available(torch.device("cpu"))
    cuda.available.cache_clear()


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
    kernels, take = compiled(capability), CudaStep()
    take(steps_of([5]))
    assert {kernel.name for kernel in kernels} == {"write", *STEP}
    for kernel in kernels:
        cubin = tmp_path / "kernel.cubin"
        cubin.write_bytes(kernel.asm["cubin"])
        usage = resources(cubin)
        assert "STACK:0 " in usage and "LOCAL:0 " in usage, f"{kernel.name}: {usage}"
    # Other addresses, numbers and sizes need no others.
    kernels.clear()
    steps = steps_of([1, 2, 10_001] * 90)
    for lr in (1.0, 1 / 3, torch.tensor(0.1)):
        steps[0].group["lr"] = lr
        steps[1].gradient = torch.zeros(3)[1:]
        take(steps)
    assert kernels == []


def resources(cubin):
    """What a compiled kernel takes: registers that are spilled lie on its stack."""
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    command = [tool, "-res-usage", cubin]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout
