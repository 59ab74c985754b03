#!/usr/bin/env bash
# Nine counters of multiply-adds on four networks. "True" is PyTorch's FlopCounterMode halved, without
# oneDNN and without attention's fast path, which hide operations from it; it counts convolutions and
# matrix products, and the true number of a transposed convolution or an LSTM follows from its sizes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.15.0 torchvision==0.29.2 numpy==2.4.6 \
    fvcore==0.1.5.post20221221 calflops==0.3.2 thop==0.1.1.post2209072238 torchinfo==1.8.0 torchprofile==0.1.0 \
    torch-pruning==1.6.1 ptflops==0.7.5 deepspeed==0.19.8 transformers accelerate
cd "$folder"
cat > counters.py <<'PYTHON'
import copy
import io
import logging
import warnings
from contextlib import redirect_stderr, redirect_stdout
from importlib.metadata import version

import torch
import torchvision
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

warnings.simplefilter("ignore")
logging.disable()


def flop_counter_mode(model, x):
    with FlopCounterMode(display=False) as counter:
        model(x)
    return counter.get_total_flops()


def true(model, x):
    torch.backends.mha.set_fastpath_enabled(False)
    with torch.backends.mkldnn.flags(enabled=False):
        operations = flop_counter_mode(model, x)
    torch.backends.mha.set_fastpath_enabled(True)
    return operations / 2


def fvcore(model, x):
    from fvcore.nn import FlopCountAnalysis

    return FlopCountAnalysis(model, x).total()


def calflops(model, x):
    from calflops import calculate_flops

    return calculate_flops(
        model, args=[x], print_results=False, output_as_string=False
    )[1]


def thop(model, x):
    import thop

    return thop.profile(model, (x,), verbose=False)[0]


def torchinfo(model, x):
    import torchinfo

    return torchinfo.summary(model, input_data=x, verbose=0).total_mult_adds


def torchprofile(model, x):
    import torchprofile

    return torchprofile.profile_macs(model, x)


def torch_pruning(model, x):
    import torch_pruning

    return torch_pruning.utils.count_ops_and_params(model, x)[0]


def ptflops(model, x):
    from ptflops import get_model_complexity_info

    return get_model_complexity_info(
        model,
        tuple(x.shape[1:]),
        input_constructor=lambda _: {next(iter(names(model))): x},
        as_strings=False,
        print_per_layer_stat=False,
        verbose=False,
    )[0]


def names(model):
    import inspect

    return inspect.signature(model.forward).parameters


def deepspeed(model, x):
    from deepspeed.profiling.flops_profiler import get_model_profile

    return get_model_profile(model, args=[x], print_profile=False, as_string=False)[1]


COUNTERS = {
    "fvcore": fvcore,
    "calflops": calflops,
    "thop": thop,
    "torchinfo": torchinfo,
    "torchprofile": torchprofile,
    "torch-pruning": torch_pruning,
    "ptflops": ptflops,
    "deepspeed": deepspeed,
    "torch": flop_counter_mode,  # of FlopCounterMode, as it is
}
image = torch.randn(1, 3, 224, 224)
NETWORKS = {
    "resnet18": (torchvision.models.resnet18(), image),
    "vit_b_16": (torchvision.models.vit_b_16(), image),
    "transposed": (nn.ConvTranspose2d(64, 32, 4, 2, 1), torch.randn(1, 64, 16, 16)),
    "lstm": (nn.LSTM(64, 64, batch_first=True), torch.randn(1, 16, 64)),
}


def counted(count, model, x):
    try:
        with torch.no_grad(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            found = count(copy.deepcopy(model).eval(), x)
            return "fails" if found is None else found
    except Exception as error:
        return type(error).__name__


expected = {name: counted(true, *network) for name, network in NETWORKS.items()}
print("torch", torch.__version__, "torchvision", torchvision.__version__)
print("| counter |", " | ".join(NETWORKS), "|")
print("| true multiply-adds, millions |", " | ".join(f"{n / 1e6:,.1f}" for n in expected.values()), "|")
ratios = {}
for name, count in COUNTERS.items():
    cells = []
    for network, (model, x) in NETWORKS.items():
        found = counted(count, model, x)
        ratios[name, network] = found if isinstance(found, str) else found / expected[network]
        cells.append(found if isinstance(found, str) else f"{found / expected[network]:.2f}")
    print(f"| {name} {version(name)} |", " | ".join(cells), "|", flush=True)
PYTHON
