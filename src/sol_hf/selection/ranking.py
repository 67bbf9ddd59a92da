# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Helpers of criteria: queries by key-value head, and the highest scores of every row."""

import torch

from .rule import SelectionRule


def group_queries(query: torch.Tensor, kv_heads: int) -> torch.Tensor:
    """Query heads of one token by key-value head: `(rows, heads, 1, dim)` to `(rows, kv_heads, group, dim)`."""
    rows, heads, _, dim = query.shape
    return query.reshape(rows, kv_heads, heads // kv_heads, dim)


def share_scores(scores: torch.Tensor, rule: SelectionRule) -> torch.Tensor:
    """`(rows, kv_heads, group, n)` to `(rows, H, n)`, summed over the group with `selection="group"`."""
    return scores.sum(dim=2) if rule.selection == "group" else scores.flatten(1, 2)


def top_ranked(scores: torch.Tensor, wanted: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Indices of the `wanted` `(rows,)` highest of `scores` `(rows, H, n)`, and a mask of the indices that are wanted.

    On the CPU there are as many indices as the largest of `wanted`. On other devices there are all `n`: to read the
    largest of `wanted` would stall the device.
    """
    total = scores.shape[-1]
    most = min(int(wanted.max()), total) if scores.device.type == "cpu" else total
    order = scores.topk(most, dim=-1).indices
    place = torch.arange(most, device=scores.device)
    return order, (place < wanted[:, None, None]).expand_as(order)
