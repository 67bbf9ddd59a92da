# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Checks whether numba, an optional dependency, can compile the kernels."""

import importlib
import importlib.util
import warnings
from functools import lru_cache

import torch


DTYPES = (torch.float32, torch.bfloat16)


@lru_cache
def loads(module: str) -> bool:
    """Whether a module of this folder that needs numba can be imported. If numba fails, a warning states the reason.

    It fails if the installed numpy is too new for it, or if there is no writable folder for its cache of compiled
    code.
    """
    if importlib.util.find_spec("numba") is None:
        return False
    try:
        importlib.import_module(f".{module}", __package__)
    except Exception as error:
        warnings.warn(
            f"numba cannot be loaded, so decode steps run without compiled code: {type(error).__name__}: {error}",
            RuntimeWarning,
            stacklevel=2,
        )
        return False
    return True
