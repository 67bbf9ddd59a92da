# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""A step of the policy on the CPU but for its products, compiled by numba.

    perceive   the numbers of a row's state, token, budget and last action: the inputs of the network
    dense      linear layers with few inputs
    recall     attention to the earlier steps of the episode, whose keys and values are kept
    decide     prior, limits of a hard budget, the best action that is left: see `numba_decision`

Operations take their arguments from an array of int64, like those of `numba_step`; a *line* is a row of the batch.
Real numbers are float32, in the order of torch's operations where they have to be the same.
"""

import numpy as np
from numba import types

from .code_cache import cfunc, njit
from .numba_memory import (
    FAST_MATH,
    exp_of_negative,
    fetch_add,
    float32_at,
    float32_of,
    int64_at,
    uint8_at,
    uint16_at,
    widen,
)
from .numba_mlp import _activate


(NEXT, LINES) = range(2)
"""Of every operation: the counter of tasks, and lines. Without lines it does nothing."""

(STATE, EMBEDDING, ARE_HALF, STATE_WIDTH, EMBEDDING_WIDTH, FEATURES, FEATURES_STRIDE) = range(2, 9)
(ACTIONS, ACTION_WIDTH, ACTION_PLACE, PREVIOUS, NONE_BEFORE) = range(9, 14)
(POSITIONS, STEP, PAGES, STREAM, SIZE) = range(14, 19)
(SCALARS, SCALARS_STRIDE, AXES, PROGRESS, ASKED, SUMS, DONE, APART, DIVISORS) = range(19, 28)
(CONTROLLABLE, PAGE_FILL, PAGE_SIZE, PERCEIVE_HEADER) = range(28, 32)
"""Of [`perceive`]: state and embedding, whether they are bfloat16, their widths; the features. Embeddings of actions,
their width and place among the features; actions before, or the one for all rows. Embeddings of steps, the step; those
of pages, or 0; where both go to. Scalars; axes; progress as bits; what is asked, what was spent, counted steps, those
of them that held an axis, or 0; divisors of means, or 0. Which rows are under control, how full pages are, and the
keys of a page."""

(INPUT, INPUT_STRIDE, INPUTS, WEIGHT, BIAS, KIND, OUTPUT, OUTPUT_STRIDE, OUTPUTS, DENSE_HEADER) = range(2, 12)
"""Of [`dense`]: input, its stride and numbers; weight and bias; the activation, or -1 to add the product to the
output; output, its stride and numbers."""

(QUERY, KEY, VALUE, KEYS, VALUES, CAPACITY, PAST, HEADS, DIM, SCALE, RECALLED, RECALL_HEADER) = range(2, 14)
"""Of [`recall`]: products of a layer; kept keys and values `(lines, heads, capacity, dim)` and their number, after
which those of this step are written; heads and numbers of a head; the scale of the scores; the output."""

ZERO, ONE = np.float32(0.0), np.float32(1.0)
_SIGNATURE = types.void(types.CPointer(types.int64))


@njit(error_model="numpy")
def _note_scalars(a, line):
    """The numbers of a budget, see `BudgetLedger.scalars`."""
    axes, scalars = a[AXES], float32_at(a[SCALARS] + 4 * line * a[SCALARS_STRIDE])
    asked, sums = float32_at(a[ASKED] + 4 * line * axes), float32_at(a[SUMS] + 4 * line * axes)
    apart, divisors = float32_at(a[APART] + 4 * line * axes), float32_at(a[DIVISORS])
    scalars[0] = float32_of(a[PROGRESS])
    scalars[1] = ONE if uint8_at(a[CONTROLLABLE])[line] else ZERO
    for axis in range(axes):
        counts = float32_at(a[DONE])[line]
        if a[APART]:
            counts -= apart[axis]
        mean = sums[axis] / max(counts, ONE)
        if a[DIVISORS]:
            mean /= divisors[axis]
        scalars[2 + axis] = asked[axis]
        scalars[2 + axes + axis] = mean - asked[axis] if counts > ZERO else ZERO
    scalars[2 + 2 * axes] = float32_at(a[PAGE_FILL])[line]


@njit(error_model="numpy")
def _perceive(a, states, embeddings):
    width, more = a[STATE_WIDTH], a[EMBEDDING_WIDTH]
    while True:
        line = fetch_add(a, NEXT, 1)
        if line >= a[LINES]:
            return
        features = float32_at(a[FEATURES] + 4 * line * a[FEATURES_STRIDE])
        for i in range(width):
            features[i] = widen(states[line * width + i])
        for i in range(more):
            features[width + i] = widen(embeddings[line * more + i])
        before = int64_at(a[PREVIOUS])[line] if a[PREVIOUS] else a[NONE_BEFORE]
        action = float32_at(a[ACTIONS] + 4 * before * a[ACTION_WIDTH])
        for i in range(a[ACTION_WIDTH]):
            features[a[ACTION_PLACE] + i] = action[i]
        _note_scalars(a, line)
        size = a[SIZE]
        filled = np.int64(np.rint(float32_at(a[PAGE_FILL])[line] * np.float32(a[PAGE_SIZE]))) - 1
        stream, position = float32_at(a[STREAM] + 4 * line * size), float32_at(a[POSITIONS] + 4 * a[STEP] * size)
        page = float32_at(a[PAGES] + 4 * filled * size)
        for i in range(size):
            stream[i] = position[i]
        if a[PAGES]:
            for i in range(size):
                stream[i] += page[i]


@cfunc(_SIGNATURE, error_model="numpy")
def perceive(a):
    """Write the inputs of the network."""
    if a[ARE_HALF]:
        _perceive(a, uint16_at(a[STATE]), uint16_at(a[EMBEDDING]))
    else:
        _perceive(a, float32_at(a[STATE]), float32_at(a[EMBEDDING]))


@cfunc(_SIGNATURE, fastmath=FAST_MATH, error_model="numpy")
def dense(a):
    """A linear layer with few numbers, in float32, and its activation."""
    number, outputs = a[INPUTS], a[OUTPUTS]
    weight, bias = float32_at(a[WEIGHT]), float32_at(a[BIAS])
    while True:
        line = fetch_add(a, NEXT, 1)
        if line >= a[LINES]:
            return
        x = float32_at(a[INPUT] + 4 * line * a[INPUT_STRIDE])
        y = float32_at(a[OUTPUT] + 4 * line * a[OUTPUT_STRIDE])
        for j in range(outputs):
            total = bias[j]
            for i in range(number):
                total += x[i] * weight[j * number + i]
            y[j] = total if a[KIND] >= 0 else y[j] + total
        if a[KIND] >= 0:
            _activate(a[KIND], y, 0, outputs)


@njit(fastmath=FAST_MATH, error_model="numpy")
def _product_of(a, b, count):
    total = ZERO
    for i in range(count):
        total += a[i] * b[i]
    return total


@cfunc(_SIGNATURE, error_model="numpy")
def recall(a):
    """Attention of one token to itself and the few before it; a running softmax, head by head."""
    heads, past, dim, scale = a[HEADS], a[PAST], a[DIM], float32_of(a[SCALE])
    while True:
        task = fetch_add(a, NEXT, 1)
        if task >= a[LINES] * heads:
            return
        begin, kept = 4 * task * dim, 4 * task * a[CAPACITY] * dim
        query, key = float32_at(a[QUERY] + begin), float32_at(a[KEY] + begin)
        value, output = float32_at(a[VALUE] + begin), float32_at(a[RECALLED] + begin)
        keys, values = float32_at(a[KEYS] + kept), float32_at(a[VALUES] + kept)
        highest, weight = _product_of(query, key, dim) * scale, ONE
        for i in range(dim):
            output[i] = value[i]
            keys[past * dim + i] = key[i]
            values[past * dim + i] = value[i]
        for step in range(past):
            score = _product_of(query, float32_at(a[KEYS] + kept + 4 * step * dim), dim) * scale
            top = max(highest, score)
            shrink, share = exp_of_negative(highest - top), exp_of_negative(score - top)
            weight, highest = weight * shrink + share, top
            for i in range(dim):
                output[i] = output[i] * shrink + share * values[step * dim + i]
        for i in range(dim):
            output[i] /= weight
