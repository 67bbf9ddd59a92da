# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Runs a case: its calls of `generate` on one cache, and what came out of each."""

import copy
import pickle
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import GenerationConfig, StoppingCriteria, StoppingCriteriaList

from fuzz.case import Case
from fuzz.controllers import CONTROLLERS, PROCESSORS
from fuzz.mistakes import MISTAKES
from fuzz.watch import Calls, watched
from sol_hf import Budget, SOLCache, SOLForCausalLM
from sol_hf.budget.action_space import ActionSpace
from sol_hf.execution.spending import space_under


VOCABULARY, PAD = 99, 0


class RowLimits(StoppingCriteria):
    """Ends each row after a number of new tokens of its own."""

    def __init__(self, begin: int, limits: tuple[int, ...]):
        self.begin, self.limits = begin, limits

    def __call__(self, input_ids, scores, **kwargs):
        limits = torch.tensor(self.limits).repeat_interleave(len(input_ids) // len(self.limits))
        return torch.as_tensor(input_ids.shape[1] - self.begin) >= limits


@dataclass
class Turn:
    """One call of `generate`.

    Args:
        tokens (`torch.LongTensor` of shape `(rows, length)`): Its prompt, with all of the conversation so far.
        mask (`torch.LongTensor` of shape `(rows, length)`): 1 for real tokens.
        output (`ModelOutput`): What came out; `None` before it ran.
        trace (`list`): Actions and counted flags `(flat rows,)` of every step, as executed.
        steps_from (`int`): Tokens before the steps of the episodes that this call adds to, or begins.
        earlier (`list`): Executed steps of earlier calls since then.
        calls (`int`): Calls of modules of the base.
        asked (`int`): Its `max_new_tokens`.
    """

    tokens: torch.Tensor
    mask: torch.Tensor
    output: Any = None
    trace: list[tuple[torch.Tensor, torch.Tensor]] = field(default_factory=list)
    steps_from: int = 0
    earlier: list[tuple[torch.Tensor, torch.Tensor]] = field(default_factory=list)
    calls: int = 0
    asked: int = 0

    @property
    def length(self) -> int:
        """Tokens of the prompt."""
        return self.tokens.shape[1]

    @property
    def new(self) -> int:
        """New tokens of the longest row."""
        return self.output.sequences.shape[1] - self.length

    @property
    def padding(self) -> torch.Tensor:
        """Padding of every row of the prompt, `(rows,)`."""
        return (self.mask == 0).sum(dim=1)


@dataclass
class Conversation:
    """What a case did: the turns that were finished, and the cache."""

    case: Case
    model: SOLForCausalLM
    turns: list[Turn] = field(default_factory=list)
    cache: SOLCache | None = None
    controller: Any = None
    calls: Calls = field(default_factory=Calls)

    @property
    def last(self) -> Turn:
        return self.turns[-1]

    @property
    def space(self) -> ActionSpace:
        """The actions, with what they spend."""
        return space_under(self.case.options.get("bits_backend", "fake"), self.model.action_space)


def first_prompt(case: Case) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens and mask `(rows, length)` of the first prompt, padded on the left."""
    generator, width = torch.Generator().manual_seed(case.seed), max(case.lengths)
    tokens = torch.randint(3, VOCABULARY, (case.rows, width), generator=generator)
    mask = (torch.arange(width) >= width - torch.tensor(case.lengths)[:, None]).long()
    return tokens.masked_fill(mask == 0, PAD), mask


def next_prompt(case: Case, index: int, before: Turn) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens and mask of a later prompt: the conversation so far, and what the user adds."""
    generator = torch.Generator().manual_seed(case.seed + index)
    sequences = before.output.sequences
    added = torch.randint(3, VOCABULARY, (len(sequences), case.added[index - 1]), generator=generator)
    tokens = torch.cat([sequences, added], dim=1)
    new = torch.ones(len(tokens), tokens.shape[1] - before.length, dtype=torch.long)
    return tokens, torch.cat([before.mask, new], dim=1)


def arguments(conversation: Conversation, turn: Turn, new_tokens: int) -> dict[str, Any]:
    """The arguments of a call that belong to the case, without budget and cache."""
    case = conversation.case
    result: dict[str, Any] = {**case.options, **case.decoding, "max_new_tokens": new_tokens}
    result |= {"return_dict_in_generate": True, "output_logits": True}
    result.setdefault("do_sample", False)
    if case.controller != "policy":
        result["controller"] = conversation.controller
    if case.processor is not None:
        result["action_processors"] = [PROCESSORS[case.processor]()]
    if case.end_every is not None:
        result["eos_token_id"] = list(range(3, VOCABULARY, case.end_every))
    if case.row_limits is not None:
        limits = RowLimits(0 if case.embeds and not conversation.turns else turn.length, case.row_limits)
        result["stopping_criteria"] = StoppingCriteriaList([limits])
    if case.is_padded or conversation.turns:
        result["attention_mask"] = turn.mask
    return result


def budget_arguments(case: Case) -> dict[str, Any]:
    """The budget as the arguments of a call; see `Case.given`."""
    if case.given == "arguments" or not case.budget:
        return dict(case.budget)
    if case.given == "object":
        return {"budget": Budget.of(case.budget)}
    if case.given == "generation_config":
        return {"generation_config": GenerationConfig(**case.budget, pad_token_id=PAD)}
    return {}


def store_budget(case: Case, model: SOLForCausalLM) -> None:
    """Store a budget with the model: that of the case, or the other one, of which nothing must be seen."""
    for name, value in (case.budget if case.given == "stored" else case.stored).items():
        setattr(model.generation_config, name, value)


def begin(case: Case, model: SOLForCausalLM) -> Conversation:
    """A conversation without turns."""
    store_budget(case, model)
    return Conversation(case, model, controller=CONTROLLERS[case.controller](model, case.seed))


def say(conversation: Conversation, turn: Turn, new_tokens: int, interrupt_at: int | None = None, **further) -> Turn:
    """One call of `generate`; the turn is part of the conversation once it is finished.

    Args:
        conversation ([`Conversation`]): With the cache from which it goes on; the first call makes one.
        turn ([`Turn`]): Prompt and mask.
        new_tokens (`int`): New tokens at most.
        interrupt_at (`int`, *optional*): Number of the module call that raises [`Interrupted`].
        further: Further arguments of generate.
    """
    case, model = conversation.case, conversation.model
    given = arguments(conversation, turn, new_tokens) | budget_arguments(case) | further
    if conversation.cache is None:
        conversation.cache = model.new_cache()
    cache = conversation.cache
    if case.is_tested or not case.is_dense:  # other bases may not take a cache
        given.setdefault("past_key_values", cache)
    follows = bool(conversation.turns) and cache.get_seq_length() >= turn.length - 1
    if conversation.turns:
        before = conversation.last
        turn.steps_from = before.steps_from if follows else turn.length - 1
        turn.earlier = before.earlier + before.trace if follows else []
    else:
        turn.steps_from = turn.length - 1
    prompt, turn.asked = turn.tokens, new_tokens
    if case.embeds and not conversation.turns:
        given["inputs_embeds"], prompt = model.get_input_embeddings()(turn.tokens), None
    torch.manual_seed(case.seed + len(conversation.turns))
    with watched(model.base, interrupt_at) as conversation.calls:
        turn.output = model.generate(prompt, **given)
    if case.rows_out != case.rows:
        turn.tokens, turn.mask = (x.repeat_interleave(case.rows_out // case.rows, 0) for x in (turn.tokens, turn.mask))
    if prompt is None:
        turn.output.sequences = torch.cat([turn.tokens, turn.output.sequences], dim=1)
    turn.trace, turn.calls = list(cache.trace), conversation.calls.number
    conversation.turns.append(turn)
    return turn


def hold(case: Case, model: SOLForCausalLM, turns: int | None = None) -> Conversation:
    """Run the first `turns` calls of a case, or all of them."""
    return hold_on(begin(case, model), turns)


def hold_on(conversation: Conversation, turns: int | None = None) -> Conversation:
    """Run the calls of a conversation that has begun."""
    case, model = conversation.case, conversation.model
    for index in range(len(case.turns) if turns is None else turns):
        is_wrong = case.wrong is not None and index == len(case.turns) - 1
        wrong = MISTAKES[case.wrong].arguments(case, model) if is_wrong else {}
        say(conversation, prompt_of(conversation, index), case.turns[index], **wrong)
    return conversation


def prompt_of(conversation: Conversation, index: int) -> Turn:
    """The turn to come; the cache is copied before it if the case says so."""
    case = conversation.case
    if not index:
        return Turn(*first_prompt(case))
    if case.copies is not None:
        cache = conversation.cache
        conversation.cache = copy.deepcopy(cache) if case.copies == "deepcopy" else pickle.loads(pickle.dumps(cache))
    return Turn(*next_prompt(case, index, conversation.last))
