# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""What the policy computes by numpy is what torch computes, to the bit."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sol_hf import ActionSpace
from sol_hf.policy.budget_prior import BudgetPrior
from sol_hf.policy.factored_head import joint_logits
from sol_hf.policy.step_tables import joint


SPACES = (ActionSpace([0.1, 0.2, 0.5, 1.0], [0.5, 0.7, 1.0], [4, 6, 8, 16]), ActionSpace([0.2, 1.0], [1.0], [8, 16]))
KEEP = st.floats(0.0625, 1.0, width=32)


@settings(max_examples=30, deadline=None)
@given(
    space=st.sampled_from(SPACES),
    targets=st.lists(KEEP, min_size=3, max_size=3),
    drift=st.lists(st.floats(-1, 1, width=32), min_size=3, max_size=3),
    step=st.integers(1, 16),
    spread=st.floats(-1, 4, width=32),
)
def test_the_prior(space, targets, drift, step, spread):
    prior = BudgetPrior(space, 16)
    with torch.no_grad():
        prior.repayment_spread.fill_(spread)
        scalars = torch.tensor([[step / 16, 1.0, *targets, *drift, 0.5], [step / 16, 0.0, *drift, *targets, 0.25]])
        expected = prior(scalars)
    assert np.array_equal(prior.of_step(scalars.numpy()), expected.numpy())


@settings(max_examples=10, deadline=None)
@given(counts=st.lists(st.integers(1, 5), min_size=1, max_size=4), rows=st.integers(1, 3))
def test_actions_from_levels(counts, rows):
    levels = torch.randn(rows, sum(counts))
    found = joint(levels.numpy(), tuple(counts))
    assert np.array_equal(found, joint_logits(levels, counts).numpy())
    assert not np.shares_memory(found, levels.numpy())
