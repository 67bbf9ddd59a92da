# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The limits of a call in numbers, for compiled code."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True, eq=False)
class Limits:
    """What holds a call to its budget; it says in numbers what the call's processors do.

    Args:
        pinned (`tuple[bool, ...]` or `torch.BoolTensor` of shape `(rows, axes)`, *optional*): Axes that stay at their
            largest level.
        horizon (`str`, *optional*): Over what a hard budget is kept, one of `HORIZONS`; `None` without one.
        exact (`bool`, *optional*, defaults to `False`): Whether its mean ends at or below the target.
        holds_dense_rows (`bool`, *optional*, defaults to `False`): Whether rows with the largest targets are dense.
    """

    pinned: tuple[bool, ...] | torch.Tensor | None = None
    horizon: str | None = None
    exact: bool = False
    holds_dense_rows: bool = False
