# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The best action that a hard budget allows, compiled by numba.

Every limit allows some levels of each axis, and actions are all combinations of levels. So a row's limits are a mask
over levels, and the best action is found in one loop over the actions that are left. Numbers are float32, and every
operation is that of torch or numpy in the modules which say what the limits are: `controllers/hard_budget.py`,
`budget/bank.py`, `policy/budget_prior.py`.
"""

import math

import numpy as np
from numba import types

from .code_cache import cfunc, njit
from .numba_memory import fetch_add, float32_at, int64_at, uint8_at


(NEXT, LINES, AXES, NUMBERS, LEVELS, LARGEST, SMALLEST, ALL_LEVELS) = range(8)
"""Counter of tasks; rows; axes; levels of every axis, what they spend, the largest and the smallest of an axis; the
levels of all axes together."""

(SCORES, SCORES_STRIDE, ARE_OF_LEVELS, SCALARS, SCALARS_STRIDE, PRIOR_LEVELS) = range(8, 14)
(LOG_WIDTH, SPREAD, PRIOR_DIVISORS, STEP, EPISODE) = range(14, 19)
"""Scores, and whether they are of levels. What a prior needs, or 0: the budget's numbers, levels, parameters, divisors
of means; step of the episode, and steps of an episode."""

(HORIZON, TARGETS, SUMS, DONE, APART, REMAINING) = range(19, 25)
(BALANCE, GOALS, BEGIN, LEAST, LEFT_IN_CALL) = range(25, 30)
"""The budget: `NO_BUDGET` or over what it is kept; targets; spent, counted, held steps of the episode, or 0; steps
under control that are left of it. Of a bank; steps left in the call, or 0."""

(CONTROLLABLE, PINNED, PINNED_ROW, HELD, DENSE_TARGETS) = range(30, 35)
"""Which rows are under control; axes that stay at the largest level, and the distance of rows; axes that this step
holds there, or 0; targets by which rows are dense, or 0."""

(DENSE_ID, CHOSEN, IS_UNDECIDED, ROOM, DECIDE_HEADER) = range(35, 40)
"""The action of rows that are not under control; where actions go to; where rows are noted that this cannot decide;
room for two numbers a level of every row."""

(NO_BUDGET, OVER_EPISODE, OVER_GENERATION) = range(3)
TOLERANCE, TIE_MARGIN = np.float32(1e-5), np.float32(1e-5)
"""Those of `budget/bank.py` and of `policy/budget_prior.py`."""
ZERO, ONE, LOWEST = np.float32(0.0), np.float32(1.0), np.float32(-np.inf)
_SIGNATURE = types.void(types.CPointer(types.int64))


@njit(error_model="numpy")
def _most(a, row, axis):
    """The largest level that the budget allows; it may be below the smallest."""
    axes = a[AXES]
    place = row * axes + axis
    if a[HORIZON] == OVER_GENERATION:
        balance, goal = float32_at(a[BALANCE])[place], float32_at(a[GOALS])[place]
        most = balance + goal
        if a[LEFT_IN_CALL]:
            left = float32_at(a[LEFT_IN_CALL])[row]
            least, begin = float32_at(a[LEAST])[place], float32_at(a[BEGIN])[place]
            most = min(most, balance - begin + goal * left - (left - ONE) * least)
        return most
    largest, smallest = float32_at(a[LARGEST])[axis], float32_at(a[SMALLEST])[axis]
    done, spent = float32_at(a[DONE])[row], float32_at(a[SUMS])[place]
    if a[APART]:
        done -= float32_at(a[APART])[place]
    left = float32_at(a[REMAINING])[row]
    goal = min(float32_at(a[TARGETS])[place], largest)
    return min(goal * done + largest - spent, goal * (done + left) - spent - (left - ONE) * smallest)


@njit(error_model="numpy")
def _stays_largest(a, row, axis, is_dense):
    """Whether an axis is at its largest level in this step, apart from the hard budget."""
    if is_dense or (a[PINNED] and uint8_at(a[PINNED])[row * a[PINNED_ROW] + axis]):
        return True
    return a[HELD] != 0 and uint8_at(a[HELD])[row * a[AXES] + axis] != 0


@njit(error_model="numpy")
def _is_dense(a, row):
    if not a[DENSE_TARGETS]:
        return False
    targets, largest = float32_at(a[DENSE_TARGETS]), float32_at(a[LARGEST])
    for axis in range(a[AXES]):
        if targets[row * a[AXES] + axis] < largest[axis] - TOLERANCE:
            return False
    return True


@njit(error_model="numpy")
def _allow(a, row, allowed):
    """Mark the levels that the limits allow; whether every axis has one."""
    levels, numbers, place, is_dense = float32_at(a[LEVELS]), int64_at(a[NUMBERS]), 0, _is_dense(a, row)
    for axis in range(a[AXES]):
        largest, smallest = float32_at(a[LARGEST])[axis], float32_at(a[SMALLEST])[axis]
        stays, least, most = _stays_largest(a, row, axis, is_dense), smallest, largest
        if a[HORIZON] != NO_BUDGET:
            held = a[HELD] != 0 and uint8_at(a[HELD])[row * a[AXES] + axis] != 0
            if held or float32_at(a[TARGETS])[row * a[AXES] + axis] >= largest - TOLERANCE:
                least = largest
            else:
                most = max(_most(a, row, axis), smallest)
        least, most, found = least - TOLERANCE, most + TOLERANCE, False
        for level in range(place, place + numbers[axis]):
            fits = levels[level] >= least and levels[level] <= most and (not stays or levels[level] == largest)
            allowed[level] = ONE if fits else ZERO
            found = found or fits
        if not found:
            return False
        place += numbers[axis]
    return True


@njit(error_model="numpy")
def _add_prior(a, row, scores):
    """Add the prior of every level to its score."""
    axes, numbers, levels = a[AXES], int64_at(a[NUMBERS]), float32_at(a[PRIOR_LEVELS])
    scalars, place = float32_at(a[SCALARS] + 4 * row * a[SCALARS_STRIDE]), 0
    step, left = np.float32(a[STEP]), np.float32(max(a[EPISODE] - a[STEP], 1))
    for axis in range(axes):
        target, drift = scalars[2 + axis], scalars[2 + axes + axis]
        overspent = ((drift + target) * float32_at(a[PRIOR_DIVISORS])[axis] - target) * step
        share = ONE / (ONE + max(float32_at(a[SPREAD])[axis], ZERO) * left)
        centre = target - overspent * share - TIE_MARGIN
        width = np.float32(math.exp(float32_at(a[LOG_WIDTH])[axis]))
        for level in range(place, place + numbers[axis]):
            distance = (levels[level] - centre) / width
            scores[level] -= distance * distance
        place += numbers[axis]


@njit(error_model="numpy")
def _best(a, row, by_level, allowed):
    """The first action with the highest score of those that are allowed."""
    axes, numbers, scores = a[AXES], int64_at(a[NUMBERS]), float32_at(a[SCORES] + 4 * row * a[SCORES_STRIDE])
    last, begin, groups = numbers[axes - 1], a[ALL_LEVELS] - numbers[axes - 1], 1
    for axis in range(axes - 1):
        groups *= numbers[axis]
    best, highest = -1, LOWEST
    adds = a[ARE_OF_LEVELS] != 0 or a[PRIOR_LEVELS] != 0
    for group in range(groups):
        stride, rest, place, total, fits = groups, group, 0, ZERO, True
        for axis in range(axes - 1):
            stride //= numbers[axis]
            level = place + rest // stride
            rest %= stride
            place += numbers[axis]
            fits = fits and allowed[level] > ZERO
            total = by_level[level] if axis == 0 else total + by_level[level]
        if not fits:
            continue
        for n in range(last):
            if allowed[begin + n] > ZERO:
                score = by_level[begin + n] if axes == 1 else total + by_level[begin + n]
                if not a[ARE_OF_LEVELS]:
                    own = scores[group * last + n]
                    score = own + score if adds else own
                if best < 0 or score > highest:
                    best, highest = group * last + n, score
    return best


@njit(error_model="numpy")
def _are_finite(scores, number):
    for i in range(number):
        if not math.isfinite(scores[i]):
            return False
    return True


@cfunc(_SIGNATURE, error_model="numpy")
def decide(a):
    """Choose the action of every row."""
    total, chosen, undecided = a[ALL_LEVELS], int64_at(a[CHOSEN]), uint8_at(a[IS_UNDECIDED])
    while True:
        row = fetch_add(a, NEXT, 1)
        if row >= a[LINES]:
            return
        by_level = float32_at(a[ROOM] + 8 * row * total)
        allowed = float32_at(a[ROOM] + 8 * row * total + 4 * total)
        scores = float32_at(a[SCORES] + 4 * row * a[SCORES_STRIDE])
        for level in range(total):
            by_level[level] = scores[level] if a[ARE_OF_LEVELS] else ZERO
        if a[PRIOR_LEVELS]:
            _add_prior(a, row, by_level)
        decides = _allow(a, row, allowed) and _are_finite(scores, a[SCORES_STRIDE]) and _are_finite(by_level, total)
        undecided[row] = 0 if decides else 1
        if not uint8_at(a[CONTROLLABLE])[row]:
            chosen[row] = a[DENSE_ID]
        elif decides:
            chosen[row] = _best(a, row, by_level, allowed)
