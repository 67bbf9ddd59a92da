# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Attention of a few new tokens over many cached keys on the CPU, compiled by numba: for KV refreshes.

The queries of a key-value head, for all query heads of its group and all new tokens, are the columns of a matrix.
Scores and outputs have the layout `(keys or channels, columns)`, and a vector register holds several columns of one
key. Products and softmax then need no sum over the elements of a register.

    task    (row, key-value head, some columns of its queries, part of the keys), for block after block of BLOCK keys:

    scores  (keys, columns)      = keys @ queries        tiles of 8 keys x 3 vectors, summed over channels
    output  (channels, columns) += values.T @ weights    tiles of 8 channels x 3 vectors, summed over keys

A task has three vectors of columns, or with few queries two vectors or one. Keys and values in bfloat16
are widened first, a block at a time. If there are too few tasks for the threads, the keys are split into parts, whose
results are merged afterwards.
"""

import numpy as np
from numba import types

from .code_cache import cfunc, njit
from .numba_linear import TILE_LINES
from .numba_memory import (
    FAST_MATH,
    bend,
    exp_of_negative,
    fetch_add,
    float32_at,
    float32_of,
    prefetch,
    uint8_at,
    uint16_at,
    widen,
)
from .numba_tiles import add_weighted, multiply_columns


(QUERIES, KEYS, VALUES, MASK, OUTPUT, SCRATCH) = range(6)
(ROWS, KV_HEADS, PARTS, TOKENS, SLOTS, DIM, VALUE_DIM) = range(6, 13)
(KEY_ROW, KEY_HEAD, KEY_SLOT, VALUE_ROW, VALUE_HEAD, VALUE_SLOT, MASK_ROW, MASK_TOKEN) = range(13, 21)
(SPLITS, IS_HALF, SCRATCH_EACH, WIDTH, SOFT_CAP, NEXT) = range(21, 27)
"""`WIDTH` are the columns of a task. `SOFT_CAP` are the bits of a float32: scores `x` become `cap * tanh(x / cap)`; 0
without one."""
BLOCK = 64
"""Keys per update of the running softmax."""
TILES_AHEAD = 2
LINE = 64
"""Bytes in a cache line."""
STATE = BLOCK
"""Numbers of every column in the scratch memory of a task before the maxima of the columns; the sums follow."""
SCRATCH_FLOATS = BLOCK + 4
"""Scratch memory of a task for every column. Keys and values to be widened need memory for one block of each."""
ZERO, NOTHING = np.float32(0.0), np.float32(-np.inf)


_score_many, _score_one = (multiply_columns(lines, False) for lines in (TILE_LINES, 1))
_add_values = add_weighted()


@njit()
def _prefetch_tile(memory, stride, dim):
    """Prefetch the keys or values of a tile."""
    for n in range(TILE_LINES):
        for offset in range(0, 4 * dim, LINE):
            prefetch(memory + 4 * n * stride + offset)


@njit(error_model="numpy")
def _widen_lines(source, stride, count, dim, target):
    """Vectors of bfloat16 as float32, one after the other."""
    for n in range(count):
        numbers, place = uint16_at(source + 2 * n * stride), float32_at(target + 4 * n * dim)
        for i in range(dim):
            place[i] = widen(numbers[i])


@njit(error_model="numpy")
def _score(args, keys, stride, values, count, queries, scores):
    """Products of `count` keys with all columns. Prefetches their values, which are needed next, and later keys."""
    dim, width = args[DIM], args[WIDTH]
    key = 0
    while key + TILE_LINES <= count:
        if not args[IS_HALF]:
            _prefetch_tile(keys + 4 * (key + TILES_AHEAD * TILE_LINES) * stride, stride, dim)
            _prefetch_tile(values + 4 * key * args[VALUE_SLOT], args[VALUE_SLOT], args[VALUE_DIM])
        _score_many(width, keys + 4 * key * stride, stride, 1, queries, dim, scores + 4 * key * width)
        key += TILE_LINES
    while key < count:
        _score_one(width, keys + 4 * key * stride, stride, 1, queries, dim, scores + 4 * key * width)
        key += 1


@njit(error_model="numpy")
def _hide(args, row, part, begin, count, scores):
    """Set the scores of keys that a column's token does not see to -inf."""
    tokens, width, memory = args[TOKENS], args[WIDTH], args[MASK] + row * args[MASK_ROW] + begin
    seen = 0
    for token in range(tokens):
        mask = uint8_at(memory + token * args[MASK_TOKEN])
        for j in range(count):
            seen += mask[j]
    if seen == tokens * count:
        return
    for column in range(width):
        mask = uint8_at(memory + (part * width + column) % tokens * args[MASK_TOKEN])
        for j in range(count):
            if mask[j] == 0:
                scores[j * width + column] = NOTHING


@njit(fastmath=FAST_MATH, error_model="numpy")
def _update_softmax(width, scores, count, state, value_dim, output):
    """Turn scores into weights, and rescale the previous sums to the new maximum.

    `state` holds the maxima and sums so far, and scratch memory for an update, `width` numbers each.
    """
    sums, highest, shrink = width, 2 * width, 3 * width
    for c in range(width):
        state[highest + c] = state[c]
    for j in range(count):
        for c in range(width):
            state[highest + c] = max(state[highest + c], scores[j * width + c])
    for c in range(width):
        base = state[highest + c] if state[highest + c] > NOTHING else ZERO
        state[shrink + c] = exp_of_negative(min(state[c] - base, ZERO))
        state[c], state[highest + c] = state[highest + c], base
        state[sums + c] *= state[shrink + c]
    for i in range(value_dim):
        for c in range(width):
            output[i * width + c] *= state[shrink + c]
    for j in range(count):
        for c in range(width):
            weight = exp_of_negative(scores[j * width + c] - state[highest + c])
            scores[j * width + c] = weight
            state[sums + c] += weight


@njit(fastmath=FAST_MATH, error_model="numpy")
def _attend(args, task):
    """Attention of some columns of one key-value head over a part of its keys.

    With several parts the result is not normalized yet.
    """
    split, columns, width = task % args[SPLITS], task // args[SPLITS], args[WIDTH]
    part, pair = columns % args[PARTS], columns // args[PARTS]
    row, head = pair // args[KV_HEADS], pair % args[KV_HEADS]
    size = 2 if args[IS_HALF] else 4
    queries = args[QUERIES] + 4 * columns * args[DIM] * width
    all_keys = args[KEYS] + size * (row * args[KEY_ROW] + head * args[KEY_HEAD])
    all_values = args[VALUES] + size * (row * args[VALUE_ROW] + head * args[VALUE_HEAD])
    scores = args[SCRATCH] + 4 * task * args[SCRATCH_EACH]
    answer = args[OUTPUT] + 4 * task * args[VALUE_DIM] * width
    state, output = float32_at(scores + 4 * STATE * width), float32_at(answer)
    wide_keys = scores + 4 * SCRATCH_FLOATS * width
    wide_values = wide_keys + 4 * BLOCK * args[DIM]
    blocks = -(-args[SLOTS] // BLOCK)
    each = -(-blocks // args[SPLITS]) * BLOCK
    for c in range(width):
        state[c], state[width + c] = NOTHING, ZERO
    for i in range(args[VALUE_DIM] * width):
        output[i] = ZERO
    for begin in range(split * each, min((split + 1) * each, args[SLOTS]), BLOCK):
        count = min(BLOCK, args[SLOTS] - begin)
        keys, key_stride = all_keys + size * begin * args[KEY_SLOT], args[KEY_SLOT]
        values, value_stride = all_values + size * begin * args[VALUE_SLOT], args[VALUE_SLOT]
        if args[IS_HALF]:
            _widen_lines(keys, key_stride, count, args[DIM], wide_keys)
            _widen_lines(values, value_stride, count, args[VALUE_DIM], wide_values)
            keys, key_stride, values, value_stride = wide_keys, args[DIM], wide_values, args[VALUE_DIM]
        _score(args, keys, key_stride, values, count, queries, scores)
        if args[SOFT_CAP]:
            bend(float32_at(scores), count * width, float32_of(args[SOFT_CAP]))
        _hide(args, row, part, begin, count, float32_at(scores))
        _update_softmax(width, float32_at(scores), count, state, args[VALUE_DIM], output)
        _add_values(width, values, value_stride, count, scores, args[VALUE_DIM], answer)
    if args[SPLITS] == 1:
        for i in range(args[VALUE_DIM]):
            for c in range(width):
                output[i * width + c] /= state[width + c]


@cfunc(types.void(types.CPointer(types.int64)), error_model="numpy")
def attend(args):
    """The kernel: takes tasks until none is left."""
    while True:
        task = fetch_add(args, NEXT, 1)
        if task >= args[ROWS] * args[KV_HEADS] * args[PARTS] * args[SPLITS]:
            return
        _attend(args, task)
