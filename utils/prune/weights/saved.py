"""The weights in the file of a saved network, and whether they have a pattern N:M."""

from collections import Counter
from pathlib import Path

import torch
from torch import Tensor, nn

from utils.checkpoints.model_file import read_contents
from utils.prune.weights.patterns import fits, has_pattern, layer_weights


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors (outputs, inputs, ...) of at least two dimensions in a file of --save_pruned.

    Of an ONNX file those of its Conv, Gemm and MatMul nodes. Raises UserError as `read_contents`.
    """
    if ".onnx" in path.suffixes:  # the temporary file of `atomic_write` has one more
        return _onnx_weights(path)
    contents = read_contents(path, "name another file")
    tensors = contents.get("state_dict", contents)
    return {name: values for name, values in tensors.items() if values.dim() > 1}


def _onnx_weights(path: Path) -> dict[str, Tensor]:
    import onnx

    graph, found = onnx.load(path).graph, {}
    constants = {c.name: c for c in graph.initializer}
    for node in graph.node:
        if node.op_type in ("Conv", "Gemm", "MatMul") and node.input[1] in constants:
            array = onnx.numpy_helper.to_array(constants[node.input[1]])
            weight, options = torch.from_numpy(array.copy()), {a.name: a.i for a in node.attribute}
            has_outputs_first = node.op_type == "Conv" or options.get("transB")
            found[node.input[1]] = weight if has_outputs_first else weight.mT
    return found


def check_pattern(path: Path, model: nn.Module, pattern: str) -> None:
    """Raise ValueError unless all weights of the model that fit have this pattern in the file.

    An ONNX file may have other names: weights are compared by their shapes.
    """
    fitting = Counter(tuple(w.shape) for w in layer_weights(model).values() if fits(w, pattern))
    saved = (w for w in read_weights(path).values() if has_pattern(w, pattern))
    if missing := fitting - Counter(tuple(w.shape) for w in saved):
        shape = "x".join(map(str, next(iter(missing))))
        raise ValueError(f"the file has no {pattern} in a weight of shape {shape}")
