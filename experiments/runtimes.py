#!/usr/bin/env python3
"""What runtimes make of the zeros of a pruned network, on a CPU.

Takes a network dense, with 95 % of each weight zero, at 2:4, and sliced to a quarter of its
multiply-adds. Prints for each runtime its time on one image as a ratio to the dense network's, both
taking turns, the size of its file, and what fails or is wrong; the dense network, loaded again as
the last, shows what chance does. Then how fast PyTorch's product of a weight in CSR is. The files
are kept in a folder.
"""

import argparse
import copy
import sys
import warnings
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.machine import describe, row, table
from utils.checkpoints.model_file import new_model
from utils.checkpoints.onnx_file import InputImages, encode_onnx
from utils.checkpoints.trained_model import load_model_file
from utils.compute.timing import time_in_turns
from utils.process.errors import exit_status, reason, require
from utils.prune.channels.slicing import ChannelRanking
from utils.prune.weights.patterns import PatternRanking
from utils.prune.weights.ranking import MagnitudeRanking
from utils.settings.config import Config
from utils.settings.fields import path

NETWORKS = ("dense", "95 % zeros", "2:4", "sliced", "dense again")
TOLERANCE = 1e-3  # of outputs, relative to the largest
COLUMNS, SPARSITIES = 1024, (0.5, 0.9, 0.95, 0.98, 0.99)  # of the products in CSR
Run = Callable[[], Tensor]


def pruned(model: nn.Module, images: Tensor) -> list[nn.Module]:
    """The networks that are compared, in the order of NETWORKS."""
    zeros, pattern, again = (copy.deepcopy(model) for _ in range(3))
    MagnitudeRanking(zeros, "uniform", "weights").prune(0.95)
    PatternRanking(pattern).prune("2:4")
    ranking = ChannelRanking(model, images.repeat(2, 1, 1, 1), "uniform", round_to=8)
    return [model, zeros, pattern, ranking.slice(0.75)[0], again]


def load_torch(model: nn.Module, images: Tensor, stem: Path) -> tuple[Run, Path]:
    torch.save(model.state_dict(), file := stem.with_suffix(".pt"))
    return partial(model, images), file


def onnx_file(model: nn.Module, images: Tensor, stem: Path) -> Path:
    channels, side = images.shape[1:3]
    described = InputImages(channels, side, mean=(0.0,) * channels, std=(1.0,) * channels)
    file = stem.with_suffix(".onnx")
    file.write_bytes(encode_onnx(model, described, {}))
    return file


def load_onnxruntime(model: nn.Module, images: Tensor, stem: Path) -> tuple[Run, Path]:
    import onnxruntime

    options, file = onnxruntime.SessionOptions(), onnx_file(model, images, stem)
    options.intra_op_num_threads = torch.get_num_threads()
    # Threads that wait actively would take the cores from the other networks.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(file, options, ["CPUExecutionProvider"])
    array = images.numpy()
    return lambda: torch.from_numpy(session.run(None, {"images": array})[0]), file


def load_openvino(
    model: nn.Module, images: Tensor, stem: Path, **settings: str
) -> tuple[Run, Path]:
    import openvino

    settings |= {"INFERENCE_NUM_THREADS": torch.get_num_threads(), "PERFORMANCE_HINT": "LATENCY"}
    settings["INFERENCE_PRECISION_HINT"] = "f32"  # otherwise bfloat16 where the CPU has it
    file, array = onnx_file(model, images, stem), images.numpy()
    compiled = openvino.compile_model(file, "CPU", settings)
    return lambda: torch.from_numpy(compiled([array])[0]), file


def load_executorch(model: nn.Module, images: Tensor, stem: Path) -> tuple[Run, Path]:
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower
    from executorch.runtime import Runtime

    exported = torch.export.export(model, (images,))
    lowered = to_edge_transform_and_lower(exported, partitioner=[XnnpackPartitioner()])
    file = stem.with_suffix(".pte")
    file.write_bytes(lowered.to_executorch().buffer)
    method = Runtime.get().load_program(file).load_method("forward")
    return lambda: method.execute([images])[0], file


def load_ncnn(model: nn.Module, images: Tensor, stem: Path) -> tuple[Run, Path]:
    import ncnn
    import pnnx

    file = stem.with_suffix(".ncnn.bin")
    pnnx.export(model, str(stem.with_suffix(".pt")), (images,), fp16=False)
    net, image = ncnn.Net(), ncnn.Mat(images[0].numpy()).clone()
    net.opt.num_threads = torch.get_num_threads()
    net.load_param(str(file.with_suffix(".param")))
    net.load_model(str(file))

    def run() -> Tensor:
        extractor = net.create_extractor()
        extractor.input("in0", image)
        return torch.from_numpy(extractor.extract("out0")[1].numpy()[None])

    return run, file


# By name: the packages that a runtime needs, and what gives a forward pass of a network in it with
# its file, from the network, an image, and the path of the file without its suffix.
RUNTIMES = {
    "PyTorch": (("torch",), load_torch),
    "onnxruntime": (("onnxruntime",), load_onnxruntime),
    "OpenVINO": (("openvino",), load_openvino),
    "OpenVINO, sparse weights": (
        ("openvino",),
        partial(load_openvino, CPU_SPARSE_WEIGHTS_DECOMPRESSION_RATE="0.5"),
    ),
    "ExecuTorch, XNNPACK": (("executorch",), load_executorch),
    "ncnn": (("ncnn", "pnnx"), load_ncnn),
}


def print_row(name: str, networks: list[nn.Module], images: Tensor, folder: Path, seconds: float):
    """A row of the table: milliseconds of the dense network, and the times of others to its."""
    packages, load = RUNTIMES[name]
    if missing := [package for package in packages if find_spec(package) is None]:
        row(name, f"left out: {', '.join(missing)} not installed", *[""] * 4)
        return
    runs: dict[str, Run] = {}
    cells: dict[str, str] = {}
    for number, (title, model) in enumerate(zip(NETWORKS, networks, strict=True)):
        try:
            run, file = load(model, images, folder / f"network{number}")
            expected = model(images)
            wrong = (run() - expected).abs().max().item() / expected.abs().max().item()
        except Exception as error:  # each package has errors of its own
            cells[title] = f"fails: {reason(error)}"
            continue
        runs[title] = run
        cells[title] = f"{file.stat().st_size / 1e6:.1f} MB"
        cells[title] += f", outputs wrong by {wrong:.1%}" if not wrong < TOLERANCE else ""
    dense = runs.pop("dense", None)
    if dense and runs:  # else there is nothing to compare
        for title, other in runs.items():
            first, second = time_in_turns([dense, other], seconds / len(runs), "cpu")
            cells[title] = f"{second / first:.2f}, {cells[title]}"
        cells["dense"] = f"{1000 * first:.1f} ms, {cells['dense']}"
    row(f"{name} ({', '.join(f'{p} {version(p)}' for p in packages)})", *cells.values())


def print_products(model: nn.Module, seconds: float) -> None:
    """How much faster the largest weight times COLUMNS columns is in CSR."""
    weight = max(model.parameters(), key=torch.numel).detach().flatten(1)
    columns = torch.randn(weight.shape[1], COLUMNS)
    print(f"\n{tuple(weight.shape)} times {tuple(columns.shape)} in PyTorch")
    table(["zeros", "dense / CSR"])
    for sparsity in SPARSITIES:
        threshold = weight.abs().flatten().kthvalue(int(sparsity * weight.numel())).values
        dense = weight.masked_fill(weight.abs() <= threshold, 0)
        with warnings.catch_warnings(action="ignore"):  # that CSR is in beta
            csr = dense.to_sparse_csr()
        steps = [partial(torch.matmul, w, columns) for w in (dense, csr)]
        a, b = time_in_turns(steps, seconds, "cpu")
        row(f"{sparsity:.0%}", f"{a / b:.2f}")


@torch.no_grad()
def compare(options: argparse.Namespace) -> None:
    require("experiments/runtimes.py", "torch_pruning", "onnx", "onnxscript")
    config = Config()
    if options.model_path is None:
        model = new_model(config).eval()
    else:
        trained = load_model_file(options.model_path, {})
        config, model = trained.config, trained.model.eval()
    images = torch.randn(1, *config.image_shape, generator=torch.Generator().manual_seed(0))
    options.folder.mkdir(parents=True, exist_ok=True)
    networks = pruned(model, images)
    print(describe("cpu") + "\n")
    table(["runtime", *NETWORKS])
    for name in options.runtimes:
        print_row(name, networks, images, options.folder, options.seconds)
    if "PyTorch" in options.runtimes:
        print_products(model, options.seconds / len(SPARSITIES))


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    add, names = parser.add_argument, list(RUNTIMES)
    text = "a trained model of a built-in network (default: ResNet18 for CIFAR-10 as it is built)"
    add("--model_path", type=path, metavar="FILE", help=text)
    text = "for the runtimes' files (default: %(default)s)"
    add("--folder", type=path, default=Path("saved_models/runtimes"), metavar="FOLDER", help=text)
    text = f"of {', '.join(names)} (default: all)"
    add("--runtimes", nargs="*", choices=names, default=names, metavar="NAME", help=text)
    text = "how long the networks take turns in each runtime (default: %(default)s)"
    add("--seconds", type=float, default=10, metavar="X", help=text)
    return exit_status(lambda: compare(parser.parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())
