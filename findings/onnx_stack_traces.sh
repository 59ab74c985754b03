#!/usr/bin/env bash
# torch.onnx.export writes into each node of a file where in the source code it comes from, with whole
# paths of the machine that exported it. One network with the same weights, exported from two folders,
# gives files of other bytes and sizes, so that a checksum or a size says nothing of the network.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
    torch==2.15.0 numpy==2.4.6 onnx==1.23.2 onnxscript==0.7.2
mkdir "$folder/one" "$folder/another_one"
cat > "$folder/one/net.py" <<'PYTHON'
import io
import sys
from contextlib import redirect_stdout
from pathlib import Path

import onnx
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x):
        return self.layer(x).relu()


torch.manual_seed(0)
with redirect_stdout(io.StringIO()):
    program = torch.onnx.export(Net().eval(), (torch.zeros(1, 4),), dynamo=True)
Path("net.onnx").write_bytes(program.model_proto.SerializeToString())
nodes = onnx.load("net.onnx").graph.node
traces = [p.value for node in nodes for p in node.metadata_props if "stack_trace" in p.key]
size = Path("net.onnx").stat().st_size
print(f"torch {torch.__version__}, onnx {onnx.__version__}")
print(f"seen: {size} bytes, {len(nodes)} nodes, {len(traces)} with a stack trace")
if not any(str(Path(__file__).resolve()) in trace for trace in traces):
    sys.exit("changed: no stack trace has the path of net.py")
PYTHON
cp "$folder/one/net.py" "$folder/another_one/"
for place in one another_one; do
    (cd "$folder/$place" && "$folder/venv/bin/python" "$folder/$place/net.py" 2> stderr) ||
        { tail -n 5 "$folder/$place/stderr"; exit 1; }
done
if cmp --silent "$folder/one/net.onnx" "$folder/another_one/net.onnx"; then
    echo "changed: the files are the same"
    exit 1
fi
echo "seen: the two files differ, though network and weights are the same"
