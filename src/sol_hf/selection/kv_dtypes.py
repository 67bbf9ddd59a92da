# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""In which dtype a cache keeps keys and values: that of the base, or a smaller one."""

import reprlib
from typing import Any

import torch


KV_DTYPES = ("bfloat16", "float32")
"""Values of `kv_dtype`; `None` is the dtype of the base."""


def check_kv_dtype(value: Any) -> None:
    """Raise a ValueError for a value of `kv_dtype` that there is not."""
    if value is not None and (not isinstance(value, str) or value not in KV_DTYPES):
        raise ValueError(
            f"`kv_dtype` must be one of {', '.join(KV_DTYPES)}, or None for the dtype of the base, got "
            f"{reprlib.repr(value)}."
        )


def stored_dtype(kv_dtype: str | None, base_dtype: torch.dtype) -> torch.dtype | None:
    """The dtype of the storage of a cache; `None` if it is that of the base.

    Args:
        kv_dtype (`str`, *optional*): One of [`KV_DTYPES`].
        base_dtype (`torch.dtype`): Of the base.

    Raises:
        ValueError: for another name, or a base of which keys cannot be kept in this dtype.
    """
    check_kv_dtype(kv_dtype)
    wanted = None if kv_dtype is None else getattr(torch, kv_dtype)
    if wanted in (None, base_dtype):
        return None
    if base_dtype not in (torch.float32, torch.float64):
        raise ValueError(
            f"`kv_dtype={kv_dtype!r}` is for bases in float32, whose keys and values it keeps in fewer bits. This "
            f"base is in {str(base_dtype).removeprefix('torch.')}: leave `kv_dtype` out, or load the base with "
            "`dtype=torch.float32`."
        )
    return wanted
