# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Checks whether numba, an optional dependency, can compile the kernels."""

import importlib
import importlib.util
import sys
import warnings
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

import torch


DTYPES = (torch.float32, torch.bfloat16)
SUFFIXES = {torch.float32: "_float32", torch.bfloat16: "_bfloat16"}
"""How the names of kernels for one dtype end; the others work on all dtypes."""
OVER_CACHE = ("attend", "rotate")
"""How the names of those begin whose dtype is that of keys and values."""
PAIRS = "numba_pair_"
"""How the names of modules begin that are of use where the processor multiplies pairs of bfloat16 numbers."""


def multiplies_pairs() -> bool:
    """Whether the processor has an instruction for products of pairs, and numba can be loaded."""
    if not loads("numba_pairs"):
        return False
    from .numba_pairs import HAS_PAIRS

    return HAS_PAIRS


@lru_cache
def loads(module: str) -> bool:
    """Whether a module of this folder that needs numba can be imported. If numba fails, a warning states the reason.

    It fails if the installed numpy is too new for it, or if it cannot compile on this machine, which the smallest
    kernel shows. The kernels of the module are compiled when they are first used.
    """
    if importlib.util.find_spec("numba") is None:
        return False
    try:
        importlib.import_module(f".{module}", __package__)
        _smallest_kernel()
    except Exception as error:
        warnings.warn(
            f"numba cannot be loaded, so decode steps run without compiled code: {type(error).__name__}: {error}",
            RuntimeWarning,
            stacklevel=2,
        )
        return False
    return True


@lru_cache
def _smallest_kernel() -> int:
    from . import numba_program

    return numba_program.run.address


def compile_kernels(dtypes: Iterable[torch.dtype], stored: torch.dtype | None = None) -> bool:
    """Load all kernels that work on some dtypes, and compile those that are not in the cache; `False` without numba.

    Args:
        dtypes (`Iterable[torch.dtype]`): Of weights and caches.
        stored (`torch.dtype`, *optional*): Of keys and values alone.
    """
    modules = sorted(file.stem for file in Path(__file__).parent.glob("numba_*.py"))
    modules = [module for module in modules if not module.startswith(PAIRS) or multiplies_pairs()]
    if not all([loads(module) for module in modules]):
        return False
    from .code_cache import Kernel

    left_out = tuple(SUFFIXES[dtype] for dtype in set(DTYPES).difference(dtypes))
    for_cache = {kind + SUFFIXES[stored] for kind in OVER_CACHE} if stored in SUFFIXES else set()
    for module in modules:
        for name, kernel in vars(sys.modules[f"{__package__}.{module}"]).items():
            if isinstance(kernel, Kernel) and (name in for_cache or not name.endswith(left_out)):
                kernel.load()
    return True
