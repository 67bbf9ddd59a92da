# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""A hard budget holds at every step, at the end of every episode and over a call, whatever the controller wants."""

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
    """The running mean of every episode overshoots by one step at most, that of a whole episode not at all."""
    case, space = conversation.case, conversation.space
    ratios, counted, ran = executed(conversation, turn)
    largest = space.ratios.amax(0).double()
    for row in range(len(ratios)):
        targets = case.targets_of_row(row // (len(ratios) // case.rows))
        goal = torch.tensor([targets.get(x.name, x.dense) / x.scale for x in space.axes], dtype=torch.float64)
        for start in range(0, ratios.shape[1], case.episode_length):
            end = start + case.episode_length
            spent = ratios[row, start:end][counted[row, start:end]]
            where = f"row {row}, episode at step {start}"
            check_means(spent, goal, largest, where)
            whole = ran[row, start:end].sum() == case.episode_length
            if whole and len(spent):
                claim((spent.mean(0) <= goal + SLACK).all(), f"{where}: the whole episode has", spent.mean(0).tolist())
        if turn.earlier:
            continue
        check_means(ratios[row][counted[row]], goal, largest, f"row {row}, the call")
        if bool(counted[row].any()):
            number = int((counted[row] & (turn.output.actions[row] >= 0)).sum()) if case.beams == 1 else 0
            if number:
                mean = turn.output.realised[row].double() / space.scales.double()
                bound = goal + (largest - goal).clamp(min=0) / number + SLACK
                claim((mean <= bound).all(), f"row {row} of `realised` is above its bound:", mean.tolist())


def check_means(spent: torch.Tensor, goal: torch.Tensor, largest: torch.Tensor, where: str) -> None:
    """After `n` counted steps the mean is at most target + (largest - target) / n."""
    if not len(spent):
        return
    number = torch.arange(1, len(spent) + 1)[:, None]
    bound = goal + (largest - goal).clamp(min=0) / number + SLACK
    claim(
        (spent.cumsum(0) / number <= bound).all(), f"{where}: the budget {goal.tolist()} is exceeded", spent.tolist()
    )
