# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Pareto fronts of points (cost, loss), for both of which smaller is better, and their hypervolume.

loss
  │ a ┌───────── reference        front: a, c
  │ ──┘▓▓▓▓▓▓▓▓│                  b is dominated by c
  │      b ▓▓▓▓│                  hypervolume: the dominated area up to the reference
  │    c ──────│
  └──────────────── cost
"""

from collections.abc import Sequence


Point = tuple[float, float]


def pareto_front(points: Sequence[Point]) -> list[int]:
    """Indices of the points that no other point dominates, by ascending cost; of equal points the first.

    Args:
        points (`Sequence` of pairs): Cost and loss.
    """
    front: list[int] = []
    for index in sorted(range(len(points)), key=lambda i: (points[i], i)):
        if not front or points[index][1] < points[front[-1]][1]:
            front.append(index)
    return front


def hypervolume(points: Sequence[Point], reference: Point) -> float:
    """Area that the points dominate, up to a reference point.

    Args:
        points (`Sequence` of pairs): Cost and loss; points that are worse than the reference in either are ignored.
        reference (`tuple` of 2 `float`): Cost and loss.
    """
    within = [point for point in points if point[0] < reference[0] and point[1] < reference[1]]
    area, ceiling = 0.0, reference[1]
    for index in pareto_front(within):
        cost, loss = within[index]
        area += (reference[0] - cost) * (ceiling - loss)
        ceiling = loss
    return area
