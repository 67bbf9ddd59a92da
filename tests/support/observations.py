# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Observations made by hand."""

import torch

from sol_hf import (
    ActionSpace,
    Observation,
)
from sol_hf.budget.ledger import BudgetLedger


SPACE = ActionSpace([0.2, 0.6, 1.0], [0.5, 1.0], [4, 8, 16])


def observe(rows: int = 2, space: ActionSpace = SPACE, targets=None, step: int = 0, length: int = 8, **changes):
    """An observation at some step, of rows that have been controllable all along."""
    values = dict(
        hidden_state=torch.randn(rows, 6),
        token_embedding=torch.randn(rows, 5),
        previous_action=torch.full((rows,), len(space)),
        controllable=torch.ones(rows, dtype=torch.bool),
        remaining=torch.full((rows,), float(length - step)),
        step=step,
        total_step=step,
        episode_length=length,
        targets=targets,
        ledger=BudgetLedger(rows, space),
        action_space=space,
        state={},
        page_fill=torch.full((rows,), 0.5),
    )
    return Observation(**{**values, **changes})
