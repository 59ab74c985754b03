#!/usr/bin/env bash
# numpy.savez takes names of arrays as keywords, and has parameters of its own: an array called
# "file" cannot be stored.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check numpy==2.4.6
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import numpy as np

print("numpy", np.__version__)
try:
    np.savez_compressed("a.npz", **{"file": np.ones(2), "weight": np.ones(2)})
    raise SystemExit("changed: an array called file is stored")
except TypeError as error:
    print("seen:", error)
PYTHON
