"""SFW's step on a GPU in a few launches of Triton kernels.

`obstacle` says whether it can be taken; if so, `optim.cuda.step.CudaStep` takes it. Without Triton
that module cannot be imported. Nothing in this folder has run on a GPU yet: tests run the kernels
in Triton's interpreter and compile them for the A100 and the H100.
"""

from optim.cuda.conditions import available, obstacle

__all__ = ["available", "obstacle"]
