# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The prefill that some golden numbers were recorded with.

The golden runs were made one after the other in one process, and the page selection of a run's last step was still in
force during the dense forward that opened the next run. The steps themselves are not affected. To compare with those
numbers, the base is given an attention of its own that repeats this in forwards of several tokens.
"""

import math
from contextlib import contextmanager

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask


PAGE_SIZE = 4
FINAL_LENGTH = 55
_stale_token_keep: list[float] = []


@contextmanager
def stale_prefill(token_keep: list[float]):
    """Forwards of several tokens read, per row and query, only the best `token_keep` of the pages."""
    _stale_token_keep[:] = token_keep
    try:
        yield
    finally:
        _stale_token_keep.clear()


def page_mask(query: torch.Tensor, key: torch.Tensor, visible: torch.Tensor) -> torch.Tensor:
    """Keys of each query's best pages, `(rows, heads, queries, keys)`; keys already repeated to query heads."""
    length = key.shape[2]
    pages = key.split(PAGE_SIZE, dim=2)
    upper = torch.stack([page.amax(2) for page in pages], dim=2)[:, :, None]
    lower = torch.stack([page.amin(2) for page in pages], dim=2)[:, :, None]
    scores = torch.maximum(query[:, :, :, None] * upper, query[:, :, :, None] * lower).sum(-1)
    scores = scores.masked_fill(~visible[:, ::PAGE_SIZE], float("-inf"))
    best = torch.zeros_like(scores, dtype=torch.bool)
    for row, keep in enumerate(_stale_token_keep):
        budget = math.ceil(math.ceil(keep * FINAL_LENGTH - 1e-6) / PAGE_SIZE)
        best[row].scatter_(-1, scores[row].topk(min(budget, len(pages)), dim=-1).indices, True)
    return best.repeat_interleave(PAGE_SIZE, dim=-1)[..., :length]


def stale_attention_forward(module, query, key, value, attention_mask, scaling=None, dropout=0.0, **kwargs):
    group = module.num_key_value_groups
    key, value = key.repeat_interleave(group, 1), value.repeat_interleave(group, 1)
    queries, length = query.shape[2], key.shape[2]
    mask = torch.ones(queries, length, dtype=torch.bool).tril(length - queries)
    if queries > 1 and _stale_token_keep:
        mask = mask & page_mask(query, key, mask)
    output = scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scaling)
    return output.transpose(1, 2).contiguous(), None


AttentionInterface.register("stale_prefill", stale_attention_forward)
AttentionMaskInterface.register("stale_prefill", sdpa_mask)
