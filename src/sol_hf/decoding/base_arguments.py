# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Which arguments the forward of a base takes, and how the base counts positions that it is not given."""

import functools
import inspect
from collections.abc import Callable

import torch
from transformers import GenerationMixin, PreTrainedModel


def accepted_arguments(base: PreTrainedModel) -> frozenset[str]:
    """Names of the arguments that the forward of a base takes; it may pass `position_ids` on without naming them."""
    named, passes_on = _signature(type(base).forward)
    if not passes_on or "position_ids" in named:
        return named
    return _with_positions(named, type(base.get_decoder()).forward)


@functools.lru_cache
def _signature(forward: Callable) -> tuple[frozenset[str], bool]:
    """Names of the arguments of a forward, and whether it takes others too."""
    parameters = inspect.signature(forward).parameters
    return frozenset(parameters), any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())


@functools.lru_cache
def _with_positions(named: frozenset[str], of_decoder: Callable) -> frozenset[str]:
    return named | ({"position_ids"} & _signature(of_decoder)[0])


def counts_cached_tokens(base: PreTrainedModel) -> bool:
    """Whether a base that gets no positions adds the length of its cache to them; some hybrid families do not."""
    return _reads_length(type(base.get_decoder()).forward) or _reads_length(type(base).forward)


@functools.lru_cache
def _reads_length(forward: Callable) -> bool:
    return "get_seq_length" in inspect.unwrap(forward).__code__.co_names


def first_position(base: PreTrainedModel) -> int:
    """Position of the first token of a text, where a base counts positions by itself.

    It is 0, except in relatives of RoBERTa, whose positions begin after the id of the padding token, and in bases that
    add to the positions that transformers' loop prepares, as PaliGemma does.
    """
    counting = (m for m in base.modules() if hasattr(m, "create_position_ids_from_input_ids"))
    found = next((module.padding_idx + 1 for module in counting if isinstance(module.padding_idx, int)), None)
    if found is not None:
        return found
    if type(base).prepare_inputs_for_generation is GenerationMixin.prepare_inputs_for_generation:
        return 0
    token = torch.zeros(1, 1, dtype=torch.long, device=base.device)
    given = {"attention_mask": torch.ones_like(token), "position_ids": token, "past_key_values": None}
    prepared = base.prepare_inputs_for_generation(token, **given, use_cache=True, is_first_iteration=True)
    positions = prepared.get("position_ids")
    return 0 if positions is None else int(positions.flatten()[0])
