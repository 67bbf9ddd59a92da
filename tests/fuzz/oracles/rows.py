# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""A row gives alone what it gives in a batch, left-padded and next to rows with other budgets and actions."""

import torch

from fuzz.case import Case
from fuzz.claims import claim_identical
from fuzz.controllers import ROWS_MATTER
from fuzz.conversation import Conversation, Turn, begin, say
from fuzz.models import model_of
from fuzz.oracles.replay import logits_of, options_of
from fuzz.replay import replay, script_of
from fuzz.rounding import claim_close


def applies(conversation: Conversation) -> bool:
    """Not to a single row, and not in bfloat16, where a batch rounds differently."""
    case = conversation.case
    return case.rows_out > 1 and case.dtype != "bfloat16"


def check(conversation: Conversation) -> None:
    """Run one row again, alone: the whole conversation where its choices are its own, else its text."""
    case = conversation.case
    row = case.seed % case.rows
    if chooses_alone(case):
        check_conversation(conversation, row)
    elif case.beams == 1:
        check_text(conversation, row * (case.rows_out // case.rows))


def chooses_alone(case: Case) -> bool:
    """Whether tokens and actions of a row do not depend on other rows, nor on a generator that rows share."""
    draws = case.decoding.get("do_sample") or case.options.get("do_sample_actions")
    return case.is_exact and not draws and case.controller not in ROWS_MATTER


def alone(case: Case, row: int) -> Case:
    """The case of one row, of those of the prompt."""
    limits = None if case.row_limits is None else (case.row_limits[row],)
    return case.but(lengths=(case.lengths[row],), budget=dict(case.targets_of_row(row)), row_limits=limits)


def check_conversation(conversation: Conversation, row: int) -> None:
    """All turns of one row: the same tokens, actions and logits."""
    case = conversation.case
    single = alone(case, row)
    own = begin(single, model_of(single))
    width = case.rows_out // case.rows
    rows = slice(row * width, (row + 1) * width)
    for index, theirs in enumerate(conversation.turns):
        name = f"turn {index}, row {row} alone and in a batch"
        first = theirs.tokens[row * width, theirs.mask[row * width].bool()][None]
        ours = say(own, Turn(first, torch.ones_like(first)), case.turns[index])
        new = min(ours.new, theirs.new)
        actions = theirs.output.actions[rows]
        claim_identical(ours.output.actions[:, :new], actions[:, :new], f"{name}: actions")
        tokens = theirs.output.sequences[rows, theirs.length :]
        claim_identical(ours.output.sequences[:, ours.length :][:, :new], tokens[:, :new], f"{name}: tokens")
        steps = actions[:, :new] >= 0
        claim_close(single, name, logits_of(ours)[:, :new], logits_of(theirs)[rows, :new], steps)
        if ours.new != theirs.new:
            return  # the row goes on in the batch, as padding


def check_text(conversation: Conversation, row: int) -> None:
    """The text of the first turn of one row, under its actions."""
    case, turn, model = conversation.case, conversation.turns[0], model_of(conversation.case)
    script, options = script_of(turn).of_row(row), options_of(conversation)

    def again(base):
        return replay(model_of(case, base), script, **options_of(conversation, "reference"))

    logits = logits_of(turn)[row : row + 1, : script.running.shape[1]]
    expected = replay(model, script, **options)
    claim_close(case, f"row {row} alone and in a batch", logits, expected, script.running, again, model.base)
