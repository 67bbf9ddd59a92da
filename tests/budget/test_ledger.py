# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Sums and means of the ledger, and the eight scalar inputs of the policy."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sol_hf import ActionSpace
from sol_hf.budget.ledger import BudgetLedger


SPACE = ActionSpace([0.2, 1.0], [0.4, 0.8], [8, 16])


def levels(*rows) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float32)


def flags(*values) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.bool)


def test_only_counted_rows_enter():
    ledger = BudgetLedger(2, SPACE)
    ledger.record(levels([0.2, 0.6, 0.5], [0.2, 0.6, 0.5]), flags(True, False))
    ledger.record(levels([0.4, 1.0, 1.0], [0.8, 0.8, 0.25]), flags(True, True))
    torch.testing.assert_close(ledger.episode_means(), levels([0.3, 0.8, 0.75], [0.8, 0.8, 0.25]))
    assert ledger.episode_counts.tolist() == [2, 1]


def test_means_before_the_first_counted_step():
    ledger = BudgetLedger(2, SPACE)
    ledger.record(levels([0.2, 0.6, 0.5], [0.2, 0.6, 0.5]), flags(True, False))
    assert ledger.episode_means()[1].tolist() == [0, 0, 0]
    assert ledger.total_means()[1].tolist() == [1, 1, 1]


def test_a_new_episode_keeps_the_totals():
    ledger = BudgetLedger(1, SPACE)
    ledger.record(levels([0.2, 0.6, 0.5]), flags(True))
    ledger.start_episode()
    assert ledger.episode_counts.tolist() == [0]
    ledger.record(levels([0.6, 1.0, 1.0]), flags(True))
    torch.testing.assert_close(ledger.episode_means(), levels([0.6, 1.0, 1.0]))
    torch.testing.assert_close(ledger.total_means(), levels([0.4, 0.8, 0.75]))


def test_a_step_can_be_taken_back():
    ledger = BudgetLedger(2, SPACE)
    first, second = levels([0.2, 0.6, 0.5], [1.0, 1.0, 1.0]), levels([0.5, 0.7, 0.25], [0.5, 0.5, 0.5])
    ledger.record(first, flags(True, True))
    ledger.record(second, flags(True, False))
    ledger.take_back(second, flags(True, False))
    torch.testing.assert_close(ledger.episode_means(), first)
    torch.testing.assert_close(ledger.total_means(), first)
    assert ledger.total_counts.tolist() == [1, 1]


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 10**6), steps=st.integers(1, 40), rows=st.integers(1, 4))
def test_means_are_the_plain_averages(seed, steps, rows):
    generator = torch.Generator().manual_seed(seed)
    ratios = torch.rand(steps, rows, 3, generator=generator)
    counted = torch.rand(steps, rows, generator=generator) < 0.7
    ledger = BudgetLedger(rows, SPACE)
    for step in range(steps):
        ledger.record(ratios[step], counted[step])
    for row in range(rows):
        chosen = ratios[:, row][counted[:, row]].double()
        if len(chosen):
            torch.testing.assert_close(ledger.total_means()[row].double(), chosen.mean(0), atol=1e-5, rtol=0)
        else:
            assert ledger.total_means()[row].tolist() == [1, 1, 1]


def test_rows_can_be_selected_repeated_and_reordered():
    ledger = BudgetLedger(3, SPACE)
    ledger.record(levels([0.1] * 3, [0.2] * 3, [0.3] * 3), flags(True, True, False))
    ledger.map_rows(lambda x: x[torch.tensor([2, 0, 0, 1])])
    assert ledger.episode_counts.tolist() == ledger.total_counts.tolist() == [0, 1, 1, 1]
    torch.testing.assert_close(ledger.episode_sums[:, 0], torch.tensor([0, 0.1, 0.1, 0.2]))
    torch.testing.assert_close(ledger.total_sums[:, 0], torch.tensor([0, 0.1, 0.1, 0.2]))


def test_recording_leaves_earlier_sums_alone():
    ledger = BudgetLedger(1, SPACE)
    before = ledger.episode_sums
    ledger.record(levels([0.5, 0.5, 0.5]), flags(True))
    assert before.tolist() == [[0, 0, 0]]


def test_scalars_in_their_published_order():
    ledger = BudgetLedger(2, SPACE)
    ledger.record(levels([0.2, 0.6, 0.5], [1.0, 1.0, 1.0]), flags(True, False))
    targets = levels([0.5, 0.8, 0.75], [0.3, 0.4, 0.5])
    scalars = ledger.scalars(step=1, episode_length=16, controllable=flags(True, False), targets=targets)
    expected = levels(
        [2 / 16, 1, 0.5, 0.8, 0.75, 0.2 - 0.5, 0.6 / 0.8 - 0.8, 0.5 - 0.75],
        [2 / 16, 0, 0.3, 0.4, 0.5, 0, 0, 0],
    )
    torch.testing.assert_close(scalars, expected)


@pytest.mark.parametrize(("step", "progress"), [(0, 0.25), (3, 1.0)])
def test_progress_counts_the_step_itself(step, progress):
    scalars = BudgetLedger(1, SPACE).scalars(step, 4, flags(True), levels([1, 1, 1]))
    assert scalars[0, 0] == progress
