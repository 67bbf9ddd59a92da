# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Texts to evaluate on: blocks that begin their steps at every place of a page, after several context lengths.

    contexts 256, 512, pages of 8      text 0: 256    text 1: 512    text 2: 257    text 3: 513    text 4: 258 ...

A text is the end of a block, so that the document that it ends in is known. It begins with the tokens that begin the
block, such as BOS.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from .text_blocks import TextBlocks


@dataclass(frozen=True)
class SpreadTexts:
    """Texts with a context length each.

    Args:
        tokens (`torch.LongTensor` of shape `(texts, longest context + steps + 1)`): Token ids. A text with a shorter
            context ends earlier; zeros follow, which are not read.
        contexts (`tuple[int, ...]`): Tokens of every text before its first step.
        documents (`torch.LongTensor` of shape `(texts,)`): The document that each ends in.
    """

    tokens: torch.Tensor
    contexts: tuple[int, ...]
    documents: torch.Tensor

    @classmethod
    def of(
        cls, blocks: TextBlocks, context_lengths: Sequence[int], places: int, steps: int, begin: int = 0
    ) -> "SpreadTexts":
        """One text of every block; context lengths and then places of a page are taken in turn.

        Args:
            blocks ([`TextBlocks`]): Of [`block_length`] tokens.
            context_lengths (`Sequence[int]`): Shortest contexts.
            places (`int`): Numbers of tokens by which contexts are longer, from 0; 1 for none.
            steps (`int`): Decode steps of a text.
            begin (`int`, *optional*, defaults to 0): Tokens that begin every block, such as BOS.
        """
        number = range(len(blocks.tokens))
        lengths = len(context_lengths)
        contexts = tuple(context_lengths[i % lengths] + i // lengths % places for i in number)
        tokens = torch.zeros(len(contexts), max(contexts) + steps + 1, dtype=blocks.tokens.dtype)
        for row, block, context in zip(tokens, blocks.tokens, contexts, strict=True):
            length = context + steps + 1
            row[:length] = torch.cat([block[:begin], block[len(block) - length + begin :]])
        return cls(tokens, contexts, blocks.documents)


def block_length(context_lengths: Sequence[int], places: int, steps: int) -> int:
    """Tokens of a block from which texts of all these contexts can be cut."""
    return max(context_lengths) + places - 1 + steps + 1
