# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The special tokens with which a tokenizer begins every text, such as BOS.

Models were trained on texts that begin with them, and some give far worse predictions without: their first token takes
the attention that is meant for none. What a tokenizer does is found by trying, since its attributes do not tell:

    tokenizer("a")                              <bos> a <eos>
    tokenizer("a", add_special_tokens=False)          a          ->  begins with <bos>
"""

import torch
from transformers import PreTrainedTokenizerBase


TRIED = ("a", "A", "the", "1", ".")
"""Texts to try, since a small vocabulary may lack some of them."""


def begin_tokens(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Ids of the special tokens that a tokenizer puts before every text; an empty list if there are none.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): Tokenizer of the base.

    Raises:
        ValueError: if the tokens of the text cannot be told from the special ones.
    """
    for text in TRIED:
        plain = tokenizer(text, add_special_tokens=False)["input_ids"]
        whole = tokenizer(text)["input_ids"]
        if whole == plain:
            return []
        for begin in range(len(whole) - len(plain) + 1) if plain else ():
            if whole[begin : begin + len(plain)] == plain:
                return list(whole[:begin])
    raise ValueError(
        f"The special tokens of {type(tokenizer).__name__} cannot be told from those of a text ({TRIED[0]!r} gives "
        f"{whole} with them and {plain} without): give token ids instead of texts (`input_ids`)."
    )


def first_token(tokens: torch.Tensor) -> int | None:
    """The token that all blocks `(blocks, length)` begin with, such as BOS; `None` if they differ in it."""
    first = tokens[:, 0].unique()
    return int(first[0]) if len(first) == 1 else None
