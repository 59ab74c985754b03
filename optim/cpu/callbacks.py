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


@intrinsic
def prefetch(context, address):
    """Have the cache line at the address fetched from memory; any address may be given."""

    def generate(context, builder, signature, arguments):
        place = builder.inttoptr(arguments[0], cgutils.voidptr_t)
        number = ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [cgutils.voidptr_t, number, number, number])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        builder.call(function, [place, number(0), number(3), number(1)])
        return context.get_dummy_value()

    return types.void(address), generate


def compiled_callback(function: Callable[[int], None]) -> Any:
    """The function as C code can call it. Its compiled code is kept on the disk, if it can be.

    Numba compiles it anew after a change of the file that defines it, and not of this one alone.
    """
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
