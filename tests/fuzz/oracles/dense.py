# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Without a budget, and under one of dense targets, the base itself runs: the same tokens and scores, bit for bit.

With `backend="fast"` dense steps run by the fast paths, which give the same up to rounding.
"""

from typing import Any

import torch

from fuzz.case import Case
from fuzz.claims import claim, claim_identical
from fuzz.conversation import Conversation, Turn, arguments, first_prompt
from fuzz.rounding import claim_close


def applies(conversation: Conversation) -> bool:
    """Not over a cache that rounds keys and values, which the base then reads, too."""
    return "kv_dtype" not in conversation.case.settings


def dense_output(conversation: Conversation) -> Any:
    """The output of the base's own generate for the first turn."""
    case = conversation.case
    plain = Conversation(case.but(options={}, controller="policy", processor=None), conversation.model)
    tokens, mask = first_prompt(case)
    given, prompt = arguments(plain, Turn(tokens, mask), case.turns[0]), tokens
    if case.embeds:
        given["inputs_embeds"], prompt = conversation.model.base.get_input_embeddings()(tokens), None
    torch.manual_seed(case.seed)
    return conversation.model.base.generate(prompt, **given)


def check(conversation: Conversation) -> None:
    """Compare the first turn with the base's own generate."""
    case, turn, expected = conversation.case, conversation.turns[0], dense_output(conversation)
    sequences = turn.output.sequences[:, turn.length :] if case.embeds else turn.output.sequences
    if not case.runs_base:
        if case.dtype != "bfloat16" and case.beams == 1:
            check_close(case, turn, turn.output.sequences[:, turn.length :], expected)
        return
    claim_identical(sequences, expected.sequences, "tokens other than the base's")
    for step, (own, theirs) in enumerate(zip(turn.output.logits, expected.logits, strict=True)):
        claim_identical(own, theirs, f"logits of step {step} other than the base's")
    if getattr(expected, "sequences_scores", None) is not None:
        claim_identical(turn.output.sequences_scores, expected.sequences_scores, "scores of beams")
    claim(not conversation.cache.trace, "a dense call recorded steps")


def check_close(case: Case, turn: Turn, tokens: torch.Tensor, expected: Any) -> None:
    """Dense steps by other paths give the base's logits up to rounding, as long as the tokens are the same."""
    theirs = expected.sequences[:, -len(expected.logits) :]
    width = min(tokens.shape[1], theirs.shape[1])
    same = (tokens[:, :width] == theirs[:, :width]).long().cumprod(dim=1)
    steps = torch.cat([torch.ones_like(same[:, :1]), same[:, :-1]], dim=1).bool()
    logits = [torch.stack(output.logits, dim=1)[:, :width] for output in (turn.output, expected)]
    claim_close(case, "dense steps and the base", *logits, steps)
