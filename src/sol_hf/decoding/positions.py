# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Positions of tokens that come without any."""

import torch
from transformers import PreTrainedModel

from ..cache.sol_cache import SOLCache
from .base_arguments import counts_cached_tokens
from .forward_inputs import ForwardInputs


def default_positions(base: PreTrainedModel, inputs: ForwardInputs, cache: SOLCache) -> torch.Tensor | None:
    """Positions `(rows, length)` of tokens without any, `None` if they are those that the base itself takes."""
    begin, device, offset = cache.get_seq_length(), inputs.tokens.device, cache.position_offset
    if offset is None and begin and not counts_cached_tokens(base):
        offset = torch.zeros(len(inputs.tokens), dtype=torch.long, device=device)
    if offset is None:
        return None
    slots = torch.arange(begin, begin + inputs.length, device=device)
    return (slots - offset[:, None]).clamp(min=0)
