"""Whether a network of one's own can be trained and tested as the paper's are."""

import traceback
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.parameter import is_lazy
from torch.nn.utils.prune import BasePruningMethod

# Classes of PyTorch that stand for another module. To import some of them would take seconds.
WRAPPERS = {
    "_StatefulGraphModule": "torch.export",
    "UnflattenedModule": "torch.export",
    "DataParallel": "DataParallel",
    "DistributedDataParallel": "DistributedDataParallel",
    "ScriptModule": "TorchScript",
    "OptimizedModule": "torch.compile",
}

# Folders whose lines tell nothing about an error in somebody's network: PyTorch's, and this one.
ELSEWHERE = Path(torch.__file__).parent, Path(__file__).parent


@torch.no_grad()
def check_network(model: nn.Module, num_classes: int, color_channel: int, image_size: int) -> None:
    """Raise ValueError unless the network takes such images, returns logits, and can be trained.

    It is run on two black images. Lazy layers are thus initialised; otherwise the model and the
    global random state of the CPU stay as they are.
    """
    if not isinstance(model, nn.Module):
        raise ValueError(f"returns {type(model).__name__}, which is no torch.nn.Module")
    for name, module in model.named_modules():
        what = f"its layer {name}" if name else "its network"
        for kind in type(module).__mro__:
            if kind.__name__ in WRAPPERS and kind.__module__.startswith("torch."):
                source = WRAPPERS[kind.__name__]
                raise ValueError(f"{what} comes from {source}; give the plain module")
    refuse_masks(model)
    images, followed = torch.zeros(2, color_channel, image_size, image_size), False
    # The last pass has no gradients again: what the network keeps of it can be copied.
    for mode, gradients in (("evaluation", False), ("training", True), ("training", False)):
        try:
            logits = dry_run(model, images, mode == "training", gradients)
        except Exception as error:
            raise ValueError(
                f"its network takes no images of shape {tuple(images.shape)} in {mode} mode:"
                f" {describe_error(error)}"
            ) from error
        is_tensor = isinstance(logits, Tensor)
        output = f"shape {tuple(logits.shape)}" if is_tensor else f"type {type(logits).__name__}"
        if output != f"shape (2, {num_classes})":
            raise ValueError(
                f"its network returns an output of {output} in {mode} mode, and must return"
                f" logits of shape (2, {num_classes}) for two images"
            )
        followed = followed or logits.requires_grad
    _check_tensors(model)
    if not followed:
        raise ValueError("no gradient leads from its network's outputs to what is to be trained")


def dry_run(model: nn.Module, images: Tensor, training: bool, gradients: bool = False) -> Tensor:
    """What the model returns for these images in this mode, with all of it left as it was.

    With `gradients` its operations are recorded; what it keeps of them cannot be copied.
    """
    modes = {module: module.training for module in model.modules()}
    model.train(training)
    devices = [images.device] if images.is_cuda else []
    try:
        with torch.random.fork_rng(devices=devices), torch.set_grad_enabled(gradients):
            if any(map(is_lazy, (*model.parameters(), *model.buffers()))):
                model(images)
            buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
            return functional_call(model, buffers, (images,))
    finally:
        for module, mode in modes.items():
            module.training = mode


def refuse_masks(model: nn.Module) -> None:
    """Raise ValueError for a model with masks of torch.nn.utils.prune.

    Their layers compute with other weights than their parameters, and what is counted, ranked or
    removed of the parameters would be wrong.
    """
    for name, module in model.named_modules():
        for hook in module._forward_pre_hooks.values():
            if isinstance(hook, BasePruningMethod):
                raise ValueError(
                    f"its layer {name or type(module).__name__} has a mask of torch.nn.utils.prune;"
                    f' make it final by torch.nn.utils.prune.remove(layer, "{hook._tensor_name}")'
                )


def _check_tensors(model: nn.Module) -> None:
    """Raise ValueError for parameters and buffers that cannot be trained or saved."""
    parameters = dict(model.named_parameters())
    if not any(p.requires_grad for p in parameters.values()):
        raise ValueError("its network has no parameters, or all are frozen")
    for name, p in parameters.items():
        if not p.is_floating_point() or not p.numel():
            form = f"{str(p.dtype).removeprefix('torch.')} {tuple(p.shape)}"
            raise ValueError(f"parameter {name} is {form}: each must hold real numbers")
    for name, module in model.named_modules():
        embeds = isinstance(module, (nn.Embedding, nn.EmbeddingBag))
        if embeds and module.sparse and module.weight.requires_grad:
            raise ValueError(f"its layer {name} has sparse gradients; build it with sparse=False")
    for name, values in model.state_dict().items():
        if not isinstance(values, Tensor):
            raise ValueError(f"{name} in its state dict is no tensor: files hold tensors alone")


def describe_error(error: BaseException) -> str:
    """An error in somebody's code in one line, with the last place of that code it came by."""
    text = str(error).strip().partition("\n")[0]
    described = f"{type(error).__name__}: {text}" if text else type(error).__name__
    if isinstance(error, SyntaxError):  # its own text names the file and line
        return described
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        file = Path(frame.filename)
        if not (frame.filename.startswith("<") or any(f in file.parents for f in ELSEWHERE)):
            return f"{described} ({file.name}, line {frame.lineno})"
    return described
