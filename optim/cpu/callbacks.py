"""Compiled functions that C code calls in several threads, and what they need of addresses."""

import warnings
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import cfunc, types
from numba.core import cgutils
from numba.extending import intrinsic


@intrinsic
def pointer(context, address):
    """What `carray` takes, from an integer."""

    def generate(context, builder, signature, arguments):
        return builder.inttoptr(arguments[0], cgutils.voidptr_t)

    return types.voidptr(address), generate


@intrinsic
def fetch_and_add(context, address):
    """The int64 at the address, which then is greater by 1: each thread gets another one."""

    def generate(context, builder, signature, arguments):
        number = ir.IntType(64)
        place = builder.inttoptr(arguments[0], number.as_pointer())
        return builder.atomic_rmw("add", place, number(1), "seq_cst")

    return types.int64(address), generate


def compiled_callback(function: Callable[[int], None]) -> Any:
    """The function as C code can call it. Its compiled code is kept on the disk, if it can be."""
    signature = types.void(types.int64)
    try:
        return cfunc(signature, cache=True)(function)
    except Exception as error:  # the file is damaged, or no folder can be written to
        warnings.warn(
            "SFW's step is compiled anew in this run, which takes some seconds: compiled code"
            f" cannot be loaded or kept ({type(error).__name__}: {error}). Remove the folder"
            " optim/cpu/__pycache__, or set NUMBA_CACHE_DIR to another folder, with space",
            stacklevel=1,  # so that Python shows it once
        )
        return cfunc(signature)(function)
