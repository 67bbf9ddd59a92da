# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The output says what was executed: as many steps as new tokens, `actions` from the trace, `realised` their mean."""

import torch

from fuzz.claims import claim, claim_identical
from fuzz.conversation import PAD, Conversation, Turn


def check(conversation: Conversation) -> None:
    """Check the outputs of all turns."""
    for turn in conversation.turns:
        check_steps(conversation, turn)
        check_realised(conversation, turn)
    last = conversation.last
    claim(last.output.past_key_values is conversation.cache, "another cache came back than was given")
    expected, held = last.length + len(last.trace) - 1, conversation.cache.get_seq_length()
    claim(held == expected, "tokens in the cache:", held, "in place of", expected)


def check_steps(conversation: Conversation, turn: Turn) -> None:
    """There is a step for every new token, of every row."""
    case, output = conversation.case, turn.output
    flat = case.rows_out if case.beams == 1 else case.rows * case.beams
    claim(output.actions.shape == (case.rows_out, turn.new), "`actions` has the shape", tuple(output.actions.shape))
    steps = len(turn.trace)
    claim(steps == len(output.logits), "steps and forwards of the loop:", steps, len(output.logits))
    claim(all(len(action) == flat for action, _ in turn.trace), "a step of the trace has other rows")
    if case.beams > 1:
        return
    claim(steps == turn.new, "steps in the trace and new tokens:", steps, turn.new)
    actions = torch.stack([action for action, _ in turn.trace], dim=1)
    running = output.actions >= 0
    claim_identical(output.actions[running], actions[running], "`actions` and the trace")
    claim((running[:, :-1] | ~running[:, 1:]).all(), "a row goes on after its end")
    claim(running[:, 0].all(), "a row has no step")
    ended = turn.output.sequences[:, turn.length :][~running]
    claim(case.row_limits is not None or (ended == PAD).all(), "tokens after the end of a row", ended.tolist())


def check_realised(conversation: Conversation, turn: Turn) -> None:
    """`realised` is the mean of the actions of the row's controllable steps, and the largest levels without any."""
    case, space = conversation.case, conversation.space
    actions = turn.output.actions
    seen = turn.length - turn.padding[:, None] + torch.arange(actions.shape[1])
    counted = (actions >= 0) & (seen >= case.first_controllable)
    values = space.values[actions.clamp(min=0)].double() * counted[..., None]
    largest = space.values.amax(dim=0).double()
    number = counted.sum(dim=1)[:, None]
    expected = torch.where(number > 0, values.sum(dim=1) / number.clamp(min=1), largest)
    difference = (turn.output.realised.double() - expected).abs() / space.scales
    claim((difference < 1e-5).all(), "`realised`", turn.output.realised.tolist(), "is not", expected.tolist())
    dense = (actions == space.dense_id) | counted | (actions < 0)
    claim(dense.all(), "a step that is not controllable is not dense", actions.tolist())
