# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Runs a compiled function in the threads that torch computes with.

numba has its own thread pools. Two pools that are used in turn slow each other down, since an OpenMP thread spins for
a while after a parallel region. Therefore `GOMP_parallel` of the OpenMP library that torch has loaded runs the
function in torch's own threads. Without such a library the function runs once, in the calling thread. Functions
therefore take their tasks from a counter, not by the number of the thread.
"""

import ctypes
import functools
from collections.abc import Callable

import torch


@functools.lru_cache
def _parallel_region() -> Callable | None:
    """`GOMP_parallel(function, data, threads, flags)`, which LLVM's and Intel's OpenMP have, too; or `None`."""
    try:
        region = ctypes.CDLL(None).GOMP_parallel
    except (AttributeError, OSError, TypeError):
        return None
    region.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
    region.restype = None
    return region


@functools.lru_cache
def _at(address: int) -> Callable:
    return ctypes.CFUNCTYPE(None, ctypes.c_void_p)(address)


def run_in_torch_threads(address: int, data: int) -> None:
    """Call a compiled function once in each of torch's threads, and wait for all of them.

    Args:
        address (`int`): Of the function, a `void f(void *data)`.
        data (`int`): Address of the data, passed to every call.
    """
    threads, region = torch.get_num_threads(), _parallel_region()
    if threads > 1 and region is not None:
        region(address, data, threads, 0)
    else:
        _at(address)(data)
