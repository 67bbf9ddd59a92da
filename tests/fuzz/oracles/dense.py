# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Without a budget, and under one of dense targets, the base itself runs: the same tokens and scores, bit for bit."""

from typing import Any

import torch

from fuzz.claims import claim, claim_identical
from fuzz.conversation import Conversation, Turn, arguments, first_prompt


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
    turn, expected = conversation.turns[0], dense_output(conversation)
    sequences = turn.output.sequences[:, turn.length :] if conversation.case.embeds else turn.output.sequences
    claim_identical(sequences, expected.sequences, "tokens other than the base's")
    for step, (own, theirs) in enumerate(zip(turn.output.logits, expected.logits, strict=True)):
        claim_identical(own, theirs, f"logits of step {step} other than the base's")
    if getattr(expected, "sequences_scores", None) is not None:
        claim_identical(turn.output.sequences_scores, expected.sequences_scores, "scores of beams")
    claim(not conversation.cache.trace, "a dense call recorded steps")
