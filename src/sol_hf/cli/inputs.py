# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The model and the blocks of text that the arguments of a command name."""

import argparse
import os
from itertools import islice
from typing import Any

from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from ..episodes.begin_tokens import begin_tokens
from ..episodes.spread_texts import SpreadTexts, block_length
from ..episodes.step_settings import StepSettings
from ..episodes.text_blocks import TextBlocks, at_most_of_each, load_text, pack_blocks
from ..evaluation.budget_search import find_budgets
from ..evaluation.budget_targets import budgets_within
from ..integrations.packaged_bases import PACKAGED_BASES, base_source
from ..integrations.smollm2 import SMOLLM2
from ..modeling_sol import SOLForCausalLM
from ..stored.hub_names import hub_id
from .arguments import AUTO, add_input_arguments, budget_values


__all__ = [
    "SMOLLM2",
    "add_input_arguments",
    "budget_values",
    "budgets_of",
    "is_hard",
    "load_policy",
    "load_policy_and_texts",
    "read_blocks",
    "read_texts",
]


def load_policy(options: argparse.Namespace) -> tuple[SOLForCausalLM, PreTrainedTokenizerBase]:
    """The policy on its base, and the tokenizer.

    Args:
        options (`argparse.Namespace`): `policy`, `base` and `dtype`.

    Raises:
        ValueError: if the base is a folder that is not here.
    """
    if (
        options.base not in (None, *PACKAGED_BASES)
        and not os.path.isdir(options.base)
        and hub_id(options.base) is None
    ):
        raise ValueError(
            f"--base {options.base}: there is no such folder, and it is no id of a repository on the Hub."
        )
    if options.base is None:
        model = SOLForCausalLM.from_pretrained(options.policy, dtype=options.dtype)
        source, revision = model.config.base_model_name_or_path, model.config.base_model_revision
        return model, AutoTokenizer.from_pretrained(source, revision=revision or "main")
    source = base_source(options.base)
    base = AutoModelForCausalLM.from_pretrained(source, dtype=options.dtype)
    return SOLForCausalLM.from_pretrained(options.policy, base=base), AutoTokenizer.from_pretrained(source)


def load_policy_and_texts(options: argparse.Namespace) -> tuple[SOLForCausalLM, SpreadTexts]:
    """The model, with the options as its own, and the texts to play; only as much text is read as needed.

    Args:
        options (`argparse.Namespace`): `policy`, `texts`, and the arguments of [`add_input_arguments`].

    Raises:
        ValueError: if the texts give fewer blocks.
    """
    model, tokenizer = load_policy(options)
    if options.budget_horizon is not None:
        model.generation_config.budget_horizon = options.budget_horizon
    if options.bits_backend is not None:
        model.generation_config.bits_backend = options.bits_backend
    return model, read_texts(options, model, tokenizer, options.episodes * model.config.episode_length)


def read_texts(
    options: argparse.Namespace, model: SOLForCausalLM, tokenizer: PreTrainedTokenizerBase, steps: int
) -> SpreadTexts:
    """Texts over all places of a page and all context lengths; only as much text is read as needed.

    Args:
        options (`argparse.Namespace`): `texts` and the arguments of [`add_input_arguments`].
        model ([`SOLForCausalLM`]): Its base limits the length of a text.
        tokenizer (`PreTrainedTokenizerBase`): Of the base.
        steps (`int`): Decode steps of a text.

    Raises:
        ValueError: if the texts give fewer blocks.
    """
    contexts, places = options.context_length, options.page_places or model.config.page_size
    whole = argparse.Namespace(**vars(options) | {"context_length": block_length(contexts, places, steps) - steps - 1})
    blocks = read_blocks(whole, model, tokenizer, steps, options.skip_blocks)
    return SpreadTexts.of(blocks, contexts, places, steps, len(begin_tokens(tokenizer)))


def is_hard(options: argparse.Namespace, model: SOLForCausalLM) -> bool:
    """Whether budgets are enforced: by `--hard` or `--soft`, else as `generate` does by the stored options."""
    if options.hard or options.soft:
        return options.hard
    return StepSettings.of(model).budget_mode == "hard"


def budgets_of(options: argparse.Namespace, model: SOLForCausalLM, texts: SpreadTexts) -> list[tuple[float, ...]]:
    """The budgets to evaluate at: those of `--budgets`, nine found by a measurement, or defaults.

    Raises:
        ValueError: for `auto` beside other budgets.
    """
    space, given = StepSettings.of(model).space, options.budgets
    if not given:
        return budgets_within(space)
    if AUTO not in given:
        return list(given)
    if len(given) > 1:
        raise ValueError("`--budgets auto` finds all budgets: leave out the others, or leave out `auto`.")
    return find_budgets(model, texts.tokens, texts.contexts)


def read_blocks(
    options: argparse.Namespace, model: SOLForCausalLM, tokenizer: PreTrainedTokenizerBase, steps: int, skip: int = 0
) -> TextBlocks:
    """Blocks of `context + steps + 1` tokens of the texts; only as much text is read as needed.

    Args:
        options (`argparse.Namespace`): `texts`, `text_column`, `blocks` and `context_length`.
        model ([`SOLForCausalLM`]): Its base limits the length of a block.
        tokenizer (`PreTrainedTokenizerBase`): Of the base.
        steps (`int`): Decode steps of a block.
        skip (`int`, *optional*, defaults to 0): Blocks to leave out before them.

    Raises:
        ValueError: if the texts give fewer blocks.
    """
    length = options.context_length + steps + 1
    longest = model.config.base_max_position_embeddings
    packing: dict[str, Any] = dict(text_column=options.text_column, max_positions=longest, documents=True)
    packed = pack_blocks(load_text(options.texts, streaming=True), tokenizer, length, **packing)
    if skip < 0:
        raise ValueError(f"The number of blocks to skip cannot be negative, got {skip}.")
    chosen = at_most_of_each(packed, getattr(options, "per_document", None))
    blocks = list(islice(chosen, skip, skip + options.blocks))
    if len(blocks) < options.blocks:
        after = f" after the first {skip}" if skip else ""
        raise ValueError(
            f"{options.texts} gives {len(blocks)} blocks of {length} tokens{after}, not {options.blocks}: give more "
            f"text, or --blocks {len(blocks)}."
        )
    return TextBlocks.of(blocks)
