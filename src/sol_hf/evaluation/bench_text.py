# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Text for a bench: prompts of any length, and blocks on which quality is measured.

Without texts of the user it is the reference of the Python language, which comes with every Python: English prose
that a base can predict, if not the text that it is used for.
"""

import importlib
from itertools import chain, islice

import torch
from transformers import PreTrainedTokenizerBase


MANUAL = "Python's manual"
OFFSET = 997
"""Tokens between the beginnings of rows, a prime."""
MOST_CHARACTERS = 400_000


def read_tokens(source: str | None, text_column: str, tokenizer: PreTrainedTokenizerBase) -> torch.Tensor:
    """Tokens `(length,)` of a text.

    Args:
        source (`str`, *optional*): As for [`load_text`]; `None` for Python's manual.
        text_column (`str`): Column that holds the text.
        tokenizer (`PreTrainedTokenizerBase`): Of the base.

    Raises:
        ValueError: if there is no text.
    """
    if source is None:
        try:
            text = "\n\n".join(importlib.import_module("pydoc_data.topics").topics.values())
        except ImportError as error:
            raise ValueError(f"This Python has no manual ({error}): give texts with --data FILE.") from error
    else:
        from ..episodes.text_blocks import load_text

        rows = load_text(source, streaming=True, text_column=text_column)
        texts = (row[text_column] for row in rows)
        text = "".join(islice(chain.from_iterable(f"{text}\n\n" for text in texts), MOST_CHARACTERS))
    tokens = torch.tensor(tokenizer(text[:MOST_CHARACTERS], add_special_tokens=False, verbose=False).input_ids)
    if not len(tokens):
        raise ValueError(f"{source} has no text.")
    return tokens.long()


def prompt_of(tokens: torch.Tensor, context: int, rows: int) -> torch.Tensor:
    """A prompt `(rows, context)`; rows begin at different places, and the text begins anew where it ends."""
    places = torch.arange(context)[None] + OFFSET * torch.arange(rows)[:, None]
    return tokens[places % len(tokens)]


def blocks_of(tokens: torch.Tensor, number: int, length: int) -> torch.Tensor:
    """Blocks `(number, length)`, spread over the text, none of which overlaps another.

    Raises:
        ValueError: if the text is too short.
    """
    if number * length > len(tokens):
        raise ValueError(
            f"The text has {len(tokens)} tokens, {number} blocks of {length} need {number * length}: give more text "
            "with --data, or fewer --blocks."
        )
    apart = len(tokens) // max(1, number)
    return tokens[torch.arange(number)[:, None] * apart + torch.arange(length)[None]]
