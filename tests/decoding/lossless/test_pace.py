# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Drafts are as long as they pay, and there are none where they do not; to find it out costs next to nothing."""

import math
import random

import pytest

from sol_hf.decoding.lossless.agreement import Agreement
from sol_hf.decoding.lossless.pace import Costs, Pace, expected_tokens


def run(
    step: float,
    whole: float,
    more: float,
    chance: float,
    tokens: int = 512,
    costs: Costs | None = None,
    rows: int = 1,
    jump: int = 99,
) -> tuple[float, list[int], Costs]:
    """Time of a text in dense steps, and the lengths of its drafts, if dense steps take a second.

    Of the drafted tokens of a row a share `chance` is taken, those with a small gap half of the time.
    """
    costs, drawn = Costs(rows) if costs is None else costs, random.Random(1)
    pace = Pace(costs, Agreement(), rows)
    made, seconds, lengths = 0, 0.0, []
    while made < tokens:
        most = pace.begin(tokens - made, tokens - made)
        if not most:
            costs.note_dense(1.0)
            pace.note_tokens(1)
            made, seconds = made + 1, seconds + 1
            continue
        gaps, hold = [], 1.0
        while len(gaps) < most:
            gaps.append([0.05 if drawn.random() < 2 * (1 - chance) else 1.5 for _ in range(rows)])
            hold *= math.prod(map(pace.agreement.probability, gaps[-1]))
            if not pace.goes_on(len(gaps), hold):
                break
        taken = 0
        for row_gaps in gaps:
            are_taken = [gap > 1 or drawn.random() < 0.5 for gap in row_gaps]
            for gap, is_taken in zip(row_gaps, are_taken, strict=True):
                pace.agreement.record(gap, is_taken)
            if not all(are_taken):
                break
            taken += 1
        spent = len(gaps) * step + (whole + more * (len(gaps) + 1)) * (1 + (len(gaps) + 1 > jump))
        pace.note_draft(step * len(gaps), len(gaps), spent - step * len(gaps))
        pace.settle(1 + taken, spent)
        lengths.append(len(gaps))
        made, seconds = made + 1 + taken, seconds + spent
    return seconds / made, lengths, costs


@pytest.mark.parametrize(
    ("step", "whole", "more", "chance", "least"),
    [
        (0.35, 1.1, 0.1, 0.95, 1.35),
        (0.35, 1.1, 0.1, 0.99, 1.6),
        (0.5, 1.1, 0.05, 0.95, 1.15),
        (0.3, 2.0, 0.1, 0.95, 1.2),
    ],
)
def test_drafts_that_pay_are_made(step, whole, more, chance, least):
    assert 1 / run(step, whole, more, chance)[0] > least


@pytest.mark.parametrize(("chance", "least"), [(0.96, 1.03), (0.985, 1.08)])
def test_short_drafts_of_several_rows_pay(chance, least):
    """Every token of a draft makes a check of four rows much longer, so only the shortest drafts pay."""
    seconds, lengths, _ = run(0.5, 0.35, 0.42, chance, rows=4)
    assert 1 / seconds > least and sum(lengths) / len(lengths) < 2


@pytest.mark.parametrize(
    ("step", "whole", "more", "chance"),
    [
        (0.6, 3.0, 0.3, 0.95),
        (1.0, 1.1, 0.1, 0.99),
        (20.0, 1.1, 0.1, 0.99),
        (0.5, 1.2, 0.1, 0.55),
        (0.8, 1.5, 0.1, 0.9),
    ],
)
def test_drafts_that_do_not_pay_cost_at_most_three_percent(step, whole, more, chance):
    assert run(step, whole, more, chance, tokens=128)[0] < (1.36 if step > 2 else 1.036 if whole > 2 else 1.03)
    first, _, costs = run(step, whole, more, chance)
    again, _, _ = run(step, whole, more, chance, costs=costs)
    assert again < 1.03 and first < (1.03 if step < 2 else 1.1)


def test_a_short_text_after_others_is_not_slower_either():
    costs = run(0.6, 3.0, 0.3, 0.95)[2]
    assert run(0.6, 3.0, 0.3, 0.95, tokens=24, costs=costs)[0] == 1


@pytest.mark.parametrize(("step", "whole", "more"), [(0.6, 3.0, 0.3), (1.0, 1.1, 0.1), (0.5, 1.2, 0.1)])
def test_short_texts_find_it_out_together(step, whole, more):
    """None of them is long enough to pay for it; later ones are, with those before."""
    costs, times = Costs(), []
    for _ in range(40):
        times.append(run(step, whole, more, 0.55, tokens=24, costs=costs)[0])
    assert times[0] == 1 and sum(times) / len(times) < 1.03


def test_short_texts_gain_where_drafts_pay():
    costs, times = Costs(), []
    for _ in range(12):
        times.append(run(0.35, 1.1, 0.1, 0.97, tokens=24, costs=costs)[0])
    assert times[0] == 1 and sum(times[-6:]) / 6 < 0.75


def test_drafts_are_longer_the_better_they_are():
    means = [sum(lengths) / len(lengths) for lengths in (run(0.35, 1.3, 0.1, c)[1] for c in (0.8, 0.9, 0.97))]
    assert means == sorted(means) and means[0] < means[-1]


def test_a_fixed_length_depends_on_no_time():
    pace = Pace(Costs(), Agreement(), length=5)
    assert [pace.begin(most) for most in (100, 5, 3, 0)] == [5, 5, 3, 0]
    assert pace.goes_on(3, 0.0)


def test_what_a_draft_gives_on_average():
    assert expected_tokens(4, 1.0) == 5 and expected_tokens(3, 0.0) == 1 and expected_tokens(2, 0.5) == 1.75


def test_times_of_checks_may_jump():
    """Where a check of six tokens takes twice the time of one of five, drafts have four tokens."""
    lengths = run(0.4, 1.2, 0.0, 0.99, jump=5)[1]
    assert lengths[-10:].count(4) > 7


def test_agreement_follows_what_is_recorded():
    agreement = Agreement()
    before = agreement.probability(0.05), agreement.mean
    for _ in range(200):
        agreement.record(0.05, False)
    assert agreement.probability(0.05) < 0.05 < before[0] and agreement.mean < before[1]
    assert agreement.probability(float("inf")) == 1 and agreement.probability(5.0) > 0.99


def test_the_first_draft_of_a_call_is_not_timed():
    """It brings the index of the keys up to date; and the first check of a length puts its program together."""
    costs = Costs()
    for _ in range(3):
        pace = Pace(costs, Agreement())
        pace.note_draft(9.0, 1, 9.0)
        pace.note_draft(0.4, 1, 1.2)
    assert list(costs.step) == [0.4] * 3 and list(costs.checks[2]) == [1.2, 1.2]


def test_compiled_code_that_a_first_draft_loads_does_not_count():
    """Otherwise thousands of tokens would have to be made before the next draft."""
    costs = Costs()
    for _ in range(4):
        costs.note_dense(1.0)
    pace = Pace(costs, Agreement())
    pace.settle(2, 400.0)
    assert costs.lost == 0 and pace.begin(200, 200) == 1
    pace.settle(2, 400.0)
    assert costs.lost == 398 and pace.begin(200, 200) == 0
