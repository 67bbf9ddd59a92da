# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""A hard budget holds at every step and over a call, whatever the controller wants.

If it is kept over episodes, it also holds at the end of each, and if the call is `exact`, at its end.
"""

import torch

from fuzz.claims import claim
from fuzz.conversation import Conversation, Turn


SLACK = 1e-4
"""Of means in ratio units: targets and levels are float32, and the sums of an episode have a tolerance of 1e-5."""


def check(conversation: Conversation) -> None:
    """Check the executed steps of every turn."""
    case = conversation.case
    for turn in conversation.turns:
        check_pinned(conversation, turn)
        check_short_texts(conversation, turn)
        if case.is_hard:
            check_kept(conversation, turn)


def executed(conversation: Conversation, turn: Turn) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The steps of every row of the output, from the first step of the turn's first episode on.

    Returns:
        Levels `(rows, steps, axes)` in ratio units, and two `torch.BoolTensor` of shape `(rows, steps)`: the steps
        that count, and those that the row has.
    """
    space = conversation.space
    if conversation.case.beams > 1:
        actions = turn.output.actions
        seen = turn.length - turn.padding[:, None] + torch.arange(actions.shape[1])
        counted = (seen >= conversation.case.first_controllable) & (actions >= 0)
        return space.ratios[actions.clamp(min=0)].double(), counted, actions >= 0
    steps = turn.earlier + turn.trace
    actions, counted = (torch.stack(column, dim=1) for column in zip(*steps, strict=True))
    return space.ratios[actions].double(), counted, torch.ones_like(counted)


def budgeted(conversation: Conversation, turn: Turn, counted: torch.Tensor) -> torch.Tensor:
    """The steps that count against the budget, `(rows, steps, axes)`: on `token_keep` not those of a short text."""
    case = conversation.case
    begin = turn.length if case.beams > 1 else turn.steps_from + 1
    seen = begin - turn.padding[:, None] + torch.arange(counted.shape[1])
    is_short = (seen <= case.short_text_tokens).repeat_interleave(len(counted) // len(seen), dim=0)
    held = torch.tensor([name == "token_keep" for name in conversation.space.axis_names])
    return counted[..., None] & ~(is_short[..., None] & held)


def check_short_texts(conversation: Conversation, turn: Turn) -> None:
    """A step of a short text reads all tokens."""
    ratios, counted, _ = executed(conversation, turn)
    held = counted[..., None] & ~budgeted(conversation, turn, counted)
    claim((ratios[held] == 1).all(), "a step of a short text reads a part of it", ratios[held].tolist())


def check_pinned(conversation: Conversation, turn: Turn) -> None:
    """An axis that the budget leaves out, or whose target is its largest level, stays at that level."""
    case, space = conversation.case, conversation.space
    ratios, counted, _ = executed(conversation, turn)
    largest = space.ratios.amax(0).double()
    for row in range(len(ratios)):
        targets = case.targets_of_row(row // (len(ratios) // case.rows))
        for column, axis in enumerate(space.axes):
            if axis.name in targets and not (case.is_hard and targets[axis.name] / axis.scale >= largest[column]):
                continue
            if not case.budget:
                continue
            chosen = ratios[row, :, column][counted[row]]
            claim((chosen == largest[column]).all(), f"`{axis.name}` of row {row} left its level", chosen.tolist())


def check_kept(conversation: Conversation, turn: Turn) -> None:
    """The running mean of a call, or of every episode, overshoots by one step at most, and at an end not at all."""
    case, space = conversation.case, conversation.space
    ratios, counted, ran = executed(conversation, turn)
    counts = budgeted(conversation, turn, counted)
    largest = space.ratios.amax(0).double()
    for row in range(len(ratios)):
        targets = case.targets_of_row(row // (len(ratios) // case.rows))
        goal = torch.tensor([targets.get(x.name, x.dense) / x.scale for x in space.axes], dtype=torch.float64)
        length = case.episode_length if case.keeps_episodes else ratios.shape[1]
        for start in range(0, ratios.shape[1], length):
            end = start + length
            spent, kept = ratios[row, start:end], counts[row, start:end]
            where = f"row {row}, episode at step {start}"
            check_means(spent, kept, goal, largest, where)
            whole = case.keeps_episodes and ran[row, start:end].sum() == length
            if whole and bool(counted[row, start:end].any()):
                mean = (spent * kept).sum(0) / kept.sum(0).clamp(min=1)
                claim((mean <= goal + SLACK).all(), f"{where}: the whole episode has", mean.tolist())
        if case.options.get("exact") and bool(ran[row].all()):
            check_exact(turn, ratios[row], counts[row], goal, f"row {row}")
        if turn.earlier:
            continue
        check_means(ratios[row], counts[row], goal, largest, f"row {row}, the call")
        if not torch.equal(counts[row].any(-1), counts[row].all(-1)):
            continue  # `realised` is a mean over steps of a short text, too
        if bool(counted[row].any()):
            number = int((counted[row] & (turn.output.actions[row] >= 0)).sum()) if case.beams == 1 else 0
            if number:
                mean = turn.output.realised[row].double() / space.scales.double()
                bound = goal + (largest - goal).clamp(min=0) / number + SLACK
                claim((mean <= bound).all(), f"row {row} of `realised` is above its bound:", mean.tolist())


def check_exact(turn: Turn, spent: torch.Tensor, counts: torch.Tensor, goal: torch.Tensor, where: str) -> None:
    """The mean over all steps of a call is at most the target, if it has as many as were asked for."""
    spent, counts = spent[len(turn.earlier) :], counts[len(turn.earlier) :]
    mean = (spent * counts).sum(0) / counts.sum(0).clamp(min=1)
    claim((mean <= goal + SLACK).all() or len(spent) < turn.asked, f"{where}, the exact call has", mean.tolist())


def check_means(
    spent: torch.Tensor, counts: torch.Tensor, goal: torch.Tensor, largest: torch.Tensor, where: str
) -> None:
    """After `n` steps that count, the mean is at most target + (largest - target) / n; all `(steps, axes)`."""
    number = counts.cumsum(0)
    bound = goal * number + (largest - goal).clamp(min=0) + SLACK * number
    kept = (spent * counts).cumsum(0) <= bound
    claim((kept | (number == 0)).all(), f"{where}: the budget {goal.tolist()} is exceeded", spent.tolist())
