# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""How many rows of a text fit into a batch on a CPU, counted from the sizes of the model.

On a GPU this is found by trying. On a CPU a batch that is too large does not fail: the machine swaps, or computes for
an hour.
"""

import psutil
from transformers import PreTrainedModel


MOST_TOKENS = 16_384
"""Tokens of a batch above which a CPU gets no faster."""
SHARE_OF_MEMORY = 0.5
"""Share of the free memory that a batch may take."""


def rows_for_cpu(base: PreTrainedModel, length: int, most: int, all_logits: bool) -> int:
    """The number of rows to compute at once, at least 1.

    Args:
        base (`PreTrainedModel`): The model.
        length (`int`): Tokens of the longest row.
        most (`int`): Rows to use at most.
        all_logits (`bool`): Whether the logits of all tokens are computed, and not only those of the last one.
    """
    free = psutil.virtual_memory().available * SHARE_OF_MEMORY
    by_memory = int(free / (max(length, 1) * bytes_per_token(base, length, all_logits)))
    return max(1, min(most, MOST_TOKENS // max(length, 1), by_memory))


def bytes_per_token(base: PreTrainedModel, length: int, all_logits: bool) -> int:
    """About the largest memory that one token of a row takes: keys and values, activations, logits.

    Args:
        base (`PreTrainedModel`): The model.
        length (`int`): Tokens of the row.
        all_logits (`bool`): Whether every token has logits; they are held as float32 once more for the softmax.
    """
    text, size = base.config.get_text_config(), base.dtype.itemsize
    width = base.get_input_embeddings().weight.shape[-1]
    layers = getattr(text, "num_hidden_layers", None) or 1
    inner = getattr(text, "intermediate_size", None) or 4 * width
    inner = max(inner) if isinstance(inner, list | tuple) else inner
    numbers = 2 * layers * width + 8 * width + 3 * inner
    if base.config._attn_implementation == "eager":
        numbers += 2 * (getattr(text, "num_attention_heads", None) or 1) * length
    logits = base.get_output_embeddings().weight.shape[0] * (size + 8) if all_logits else 0
    return numbers * size + logits
