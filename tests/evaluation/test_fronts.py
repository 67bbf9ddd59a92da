# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Fronts and hypervolumes, against cases worked out by hand and against their definitions."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sol_hf.evaluation.sweep.fronts import hypervolume, pareto_front


GRID = st.lists(st.tuples(st.integers(0, 8), st.integers(0, 8)), min_size=1, max_size=12)


def dominates(a, b) -> bool:
    return a[0] <= b[0] and a[1] <= b[1] and a != b


def test_a_front_by_hand():
    points = [(0.5, 3.0), (0.2, 5.0), (0.5, 2.0), (0.8, 2.5), (0.9, 1.0), (0.2, 5.0)]
    assert pareto_front(points) == [1, 2, 4]
    assert pareto_front([]) == []


def test_a_hypervolume_by_hand():
    points = [(0.2, 5.0), (0.5, 2.0), (0.8, 2.5)]
    assert hypervolume(points, (1.0, 6.0)) == pytest.approx(0.3 * 1.0 + 0.5 * 4.0)
    assert hypervolume(points, (1.0, 4.0)) == pytest.approx(0.5 * 2.0)
    assert hypervolume(points, (0.2, 9.0)) == 0


@given(GRID)
def test_a_front_is_what_nothing_dominates(points):
    front = [points[index] for index in pareto_front(points)]
    assert set(front) == {p for p in points if not any(dominates(other, p) for other in points)}
    assert front == sorted(set(front))


@given(GRID)
def test_a_hypervolume_counts_the_cells_that_are_dominated(points):
    cells = [(x, y) for x in range(9) for y in range(9)]
    assert hypervolume(points, (9, 9)) == sum(any(p[0] <= x and p[1] <= y for p in points) for x, y in cells)
