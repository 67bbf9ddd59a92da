# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""A call that was interrupted anywhere can be continued on its cache, and leaves nothing behind for other calls.

What the user has after it are the tokens that the cache holds, and one more, which was chosen but not processed. The
call that goes on from there gives what a call gives that goes on after a call which ended there by itself.
"""

import torch

from fuzz.case import Case
from fuzz.claims import claim, claim_identical
from fuzz.conversation import Conversation, Turn, begin, hold, prompt_of, say
from fuzz.models import model_of
from fuzz.watch import Interrupted


def applies(conversation: Conversation) -> bool:
    return conversation.case.interrupt is not None


def check(conversation: Conversation) -> None:
    """Interrupt the last call in a second run, go on with it, and run everything a third time."""
    case = conversation.case
    second, turn, before = interrupted(case, conversation.last.calls)
    check_length(second, turn, before)
    if case.rows_out == case.rows * case.beams:
        check_continued(conversation, second, turn)
    third = hold(case, model_of(case))
    compare(case, conversation.last, third.last, "a new conversation after an interrupted one")


def interrupted(case: Case, calls: int) -> tuple[Conversation, Turn, int]:
    """Run a case up to its interruption.

    Args:
        case ([`Case`]): The case.
        calls (`int`): Calls of modules in the last call of generate. The first use of a base has more of them, as
            parts are tried out; if the interruption does not come, it is placed again.

    Returns:
        The conversation without its last turn, that turn, and the tokens in the cache before it.
    """
    turns = len(case.turns) - 1
    second = hold(case, model_of(case), turns)
    turn, before = prompt_of(second, turns), second.cache.get_seq_length() if turns else 0
    try:
        finished = say(second, turn, case.turns[-1], interrupt_at=1 + int(case.interrupt * (calls - 1)))
    except Interrupted:
        return second, turn, before
    claim(finished.calls < calls, "the interruption did not come through")
    return interrupted(case, finished.calls)


def check_length(second: Conversation, turn: Turn, before: int) -> None:
    """The cache holds whole tokens: the same number in every layer, not fewer than before the call."""
    cache = second.cache
    lengths = {layer.get_seq_length() for layer in cache.layers if layer.is_initialized}
    claim(len(lengths) <= 1, "layers of the interrupted cache hold", lengths)
    expected = turn.length - 1 + len(cache.trace)
    claim(not cache.trace or cache.get_seq_length() == expected, "tokens and steps of the interrupted cache", expected)
    claim(cache.get_seq_length() >= before, "the interrupted cache lost tokens", cache.get_seq_length(), before)


def check_continued(conversation: Conversation, second: Conversation, turn: Turn) -> None:
    """Go on with the interrupted cache, and with one whose call ended at the same token."""
    case, whole, held = conversation.case, conversation.last, second.cache.get_seq_length()
    if case.beams > 1 or case.options.get("exact"):  # what an exact call chooses depends on its length
        return
    done = max(held + 1 - turn.length, 0)
    twin = hold(case, model_of(case), len(case.turns) - 1)
    if done:
        say(twin, prompt_of(twin, len(case.turns) - 1), done)
        second.turns = list(twin.turns)
        tokens = whole.output.sequences[:, : turn.length + done]
        claim_identical(twin.last.output.sequences, tokens, "tokens of a shorter call")
    going_on = [go_on(each, turn, whole, done, case) for each in (second, twin)]
    compare(case, *going_on, "after an interruption")


def go_on(conversation: Conversation, turn: Turn, whole: Turn, done: int, case: Case) -> Turn:
    """The rest of an interrupted call, with a controller that knows nothing of it."""
    tokens = whole.output.sequences[:, : turn.length + done]
    ones = torch.ones(len(tokens), done, dtype=torch.long)
    rest = Turn(tokens, torch.cat([turn.mask, ones], dim=1))
    conversation.controller = begin(case, conversation.model).controller
    return say(conversation, rest, case.turns[-1] - done)


def compare(case: Case, first: Turn, second: Turn, name: str) -> None:
    """Two runs of the same computations agree bit for bit."""
    claim_identical(first.output.sequences, second.output.sequences, f"{name}: tokens")
    if not case.is_dense:
        claim_identical(first.output.actions, second.output.actions, f"{name}: actions")
    for step, (own, other) in enumerate(zip(first.output.logits, second.output.logits, strict=True)):
        claim_identical(own, other, f"{name}: logits of step {step}")
