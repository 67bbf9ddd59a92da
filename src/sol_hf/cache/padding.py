# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The padding of the rows of a cache, taken from the attention mask of a forward."""

import torch


def padding_of(
    attention_mask: torch.Tensor, begin: int, length: int, decode_from: int | None, mask_was_passed: bool
) -> torch.Tensor:
    """Number of padding slots on the left of every row, `(rows,)`.

    Args:
        attention_mask (`torch.Tensor` of shape `(rows, begin + length)`): 0 marks left padding.
        begin (`int`): Cached tokens.
        length (`int`): New tokens.
        decode_from (`int`, *optional*): Length of the cache at which the decode steps of the call begin.
        mask_was_passed (`bool`): Whether the mask is the caller's, not made by transformers from pad tokens.

    Raises:
        ValueError: for a mask of another length, or padding anywhere but on the left of the first turn.
    """
    real = attention_mask.bool()
    padding = (~real).sum(dim=1)
    left_padded = torch.arange(real.shape[1], device=real.device) >= padding[:, None]
    gaps = real != left_padded
    if not mask_was_passed and bool(gaps.any()):
        raise ValueError(
            f"Row {int(gaps.any(dim=1).nonzero()[0, 0])} has the pad token within its text, and no "
            "`attention_mask` was passed, so transformers takes it for padding: pass "
            "`attention_mask=torch.ones_like(input_ids)`, with 0 for padding on the left."
        )
    if real.shape[1] != begin + length or bool(gaps.any()):
        raise ValueError(
            "`attention_mask` must cover cached and new tokens and mark padding on the left of the first turn "
            "only: a gap between two turns, or padding on the right, would change which keys a page holds."
        )
    if not bool(real[:, -1].all()) and (decode_from is None or begin + length > decode_from):
        raise ValueError("`attention_mask` must leave every row at least one token.")
    return padding
