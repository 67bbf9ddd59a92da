# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""With `lossless` the first turn is the base's own text, whatever budget and controller its drafts have."""

import torch

from fuzz.case import Case
from fuzz.claims import claim
from fuzz.controllers import FAULTS
from fuzz.conversation import Conversation, Turn, arguments, begin, budget_arguments, first_prompt
from fuzz.oracles import dense


LONGEST_DRAFT = 5
LEFT_OUT = ("kv_refresh", "exact")
"""Options that say how drafts end; the second is refused, since nobody knows how many steps they have."""


def applies(conversation: Conversation) -> bool:
    """Not to beams, to a cache that rounds keys and values, and in a dtype in which logits have ties."""
    case = conversation.case
    if case.beams > 1 or case.dtype == "bfloat16" or case.controller in FAULTS:
        return False
    return case.is_tested and "kv_dtype" not in case.settings


def lossless_turn(case: Case, conversation: Conversation) -> Turn:
    """The first turn of a case as a call with drafts of a length that its seed chooses."""
    own = begin(case, conversation.model)
    tokens, mask = first_prompt(case)
    turn = Turn(tokens, mask)
    given = arguments(own, turn, case.turns[0]) | budget_arguments(case)
    given["lossless"] = 1 + case.seed % LONGEST_DRAFT
    if case.embeds:
        given["inputs_embeds"], tokens = own.model.base.get_input_embeddings()(tokens), None
    torch.manual_seed(case.seed)
    turn.output = own.model.generate(tokens, **given)
    return turn


def check(conversation: Conversation) -> None:
    """Compare it with the base's own generate."""
    case = conversation.case
    case = case.but(options={name: value for name, value in case.options.items() if name not in LEFT_OUT})
    turn = lossless_turn(case, conversation)
    output, begin_of_text = turn.output, 0 if case.embeds else turn.length
    dense.check_close(case, turn, output.sequences[:, begin_of_text:], dense.dense_output(conversation))
    claim(output.agreement is None or 0 <= output.agreement <= 1, "agreement is", output.agreement)
    claim(
        output.tokens_per_forward is None or output.tokens_per_forward >= 1,
        "tokens of a row for every dense forward:",
        output.tokens_per_forward,
    )
