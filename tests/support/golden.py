# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Golden schedules, and controllers that follow them."""

import torch

from sol_hf import ScheduleController


CONTEXT = 43


def axis_schedule(vectors, space, axis):
    """The golden schedule with every axis but one at its dense level."""
    schedule = vectors["action_schedule"]
    if axis == "joint":
        return schedule
    columns = {name: torch.full(schedule.shape, float(max(space.levels[name]))) for name in space.levels}
    columns[axis] = vectors[f"action_{axis}"][schedule].double()
    ids = torch.empty_like(schedule)
    for place, _ in enumerate(schedule.flatten()):
        row = [
            min(space.levels[name], key=lambda v: abs(v - columns[name].flatten()[place].item())) for name in columns
        ]
        ids.view(-1)[place] = space.index(*row)
    return ids


def stepwise_logits(model, vectors, schedule, kv_refresh=False, backend=None):
    output = model.score(
        vectors["input_ids"],
        context_length=CONTEXT,
        controller=ScheduleController(schedule),
        kv_refresh=kv_refresh,
        backend=backend,
        return_logits=True,
    )
    return output.logits.transpose(0, 1)
