# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Attention of a few new tokens over many keys in bfloat16, in pairs of numbers, compiled by numba.

As `numba_chunk_attention`, whose arguments and results it has, but queries and weights are rounded to bfloat16, as
other implementations do, and products are those of pairs: of two neighbouring channels of a key, which are one word of
its memory, and of the values of two neighbouring tokens, which are put side by side for a block of tokens.

    scores  (keys, columns)      = keys @ queries        a word: channels 2n and 2n + 1
    output  (channels, columns) += values.T @ weights    a word: tokens 2n and 2n + 1

`fill_pairs_bfloat16` is `fill` of `numba_chunk_lines` for such columns, and has its arguments.
"""

import numpy as np
from numba import types

from . import numba_chunk_lines as lines
from .code_cache import cfunc, njit
from .numba_chunk_attention import (
    BLOCK,
    DIM,
    KEY_HEAD,
    KEY_ROW,
    KEY_SLOT,
    KEYS,
    KV_HEADS,
    LINE,
    NEXT,
    NOTHING,
    OUTPUT,
    PARTS,
    QUERIES,
    ROWS,
    SCRATCH,
    SCRATCH_EACH,
    SCRATCH_FLOATS,
    SLOTS,
    SOFT_CAP,
    SPLITS,
    STATE,
    VALUE_DIM,
    VALUE_HEAD,
    VALUE_ROW,
    VALUE_SLOT,
    VALUES,
    WIDTH,
    ZERO,
    _hide,
)
from .numba_chunk_lines import COLUMNS_AT, FILLED, GROUP, QUERY, QUERY_STRIDE, SCALE, TOKENS
from .numba_linear import TILE_LINES
from .numba_memory import (
    FAST_MATH,
    bend,
    bits_of,
    exp_of_negative,
    fetch_add,
    float32_at,
    float32_of,
    prefetch,
    store,
    uint16_at,
    uint32_at,
)
from .numba_pairs import HAS_PAIRS, add_pairs
from .numba_tiles import add_weighted, multiply_columns


_score_many, _score_one = (multiply_columns(lines, False, add_pairs) for lines in (TILE_LINES, 1))
_add_values = add_weighted(add_pairs)
_SIGNATURE = types.void(types.CPointer(types.int64))
HALF_STEP, UPPER_HALF = np.uint32(0x8000), np.uint32(0xFFFF0000)


@cfunc(_SIGNATURE, error_model="numpy")
def fill_pairs_bfloat16(args):
    """Queries as columns of words, scaled; columns that are left over are zero."""
    width, dim, tokens, kv_heads = args[lines.WIDTH], args[lines.DIM], args[TOKENS], args[lines.KV_HEADS]
    scale, number = float32_of(args[SCALE]), args[GROUP] * tokens
    while True:
        task = fetch_add(args, FILLED, 1)
        if task >= args[lines.ROWS] * kv_heads * args[lines.PARTS]:
            return
        pair, first = task // args[lines.PARTS], task % args[lines.PARTS] * width
        row, head = pair // kv_heads, pair % kv_heads
        columns = uint16_at(args[COLUMNS_AT] + 2 * task * dim * width)
        for c in range(width):
            if first + c >= number:
                for i in range(dim):
                    columns[(i // 2 * width + c) * 2 + i % 2] = np.uint16(0)
                continue
            line = row * tokens + (first + c) % tokens
            place = line * args[QUERY_STRIDE] + (head * args[GROUP] + (first + c) // tokens) * dim
            query = float32_at(args[QUERY] + 4 * place)
            for i in range(dim):
                store(columns, (i // 2 * width + c) * 2 + i % 2, query[i] * scale)


@njit()
def _prefetch_tile(memory, stride, dim):
    """Prefetch the keys or values of a tile."""
    for n in range(TILE_LINES):
        for offset in range(0, 2 * dim, LINE):
            prefetch(memory + 2 * n * stride + offset)


@njit(error_model="numpy")
def _score(args, keys, stride, values, count, queries, scores):
    """Products of `count` keys with all columns; `stride` are the words of a key.

    Prefetches their values, which are needed next, and later keys.
    """
    words, width, key = args[DIM] // 2, args[WIDTH], 0
    while key + TILE_LINES <= count:
        _prefetch_tile(keys + 4 * (key + BLOCK) * stride, 2 * stride, args[DIM])
        _prefetch_tile(values + 2 * key * args[VALUE_SLOT], args[VALUE_SLOT], args[VALUE_DIM])
        _score_many(width, keys + 4 * key * stride, stride, 1, queries, words, scores + 4 * key * width)
        key += TILE_LINES
    while key < count:
        _score_one(width, keys + 4 * key * stride, stride, 1, queries, words, scores + 4 * key * width)
        key += 1


@njit(error_model="numpy")
def _word_of(low, high):
    """Two float32 numbers, rounded to nearest, in a word."""
    return ((bits_of(low) + HALF_STEP) >> np.uint32(16)) | ((bits_of(high) + HALF_STEP) & UPPER_HALF)


@njit(fastmath=FAST_MATH, error_model="numpy")
def _weigh(width, scores, count, state, dim, output, weights):
    """Turn scores into weights, two tokens in a word, and rescale the previous sums to the new maximum.

    `state` is that of `numba_chunk_attention`. Tokens are taken two or four at a time, since every change of the state
    waits for the one before.
    """
    sums, highest, shrink = width, 2 * width, 3 * width
    for c in range(width):
        state[highest + c] = state[c]
    for j in range(0, count - 3, 4):
        place = j * width
        for c in range(width):
            first = max(scores[place + c], scores[place + width + c])
            second = max(scores[place + 2 * width + c], scores[place + 3 * width + c])
            state[highest + c] = max(state[highest + c], max(first, second))
    for j in range(count - count % 4, count):
        for c in range(width):
            state[highest + c] = max(state[highest + c], scores[j * width + c])
    for c in range(width):
        base = state[highest + c] if state[highest + c] > NOTHING else ZERO
        state[shrink + c] = exp_of_negative(min(state[c] - base, ZERO))
        state[c], state[highest + c] = state[highest + c], base
        state[sums + c] *= state[shrink + c]
    for i in range(dim):
        for c in range(width):
            output[i * width + c] *= state[shrink + c]
    for j in range(count // 2):
        first, second, place = 2 * j * width, (2 * j + 1) * width, j * width
        for c in range(width):
            low = exp_of_negative(scores[first + c] - state[highest + c])
            high = exp_of_negative(scores[second + c] - state[highest + c])
            state[sums + c] += low + high
            weights[place + c] = _word_of(low, high)
    if count % 2:
        for c in range(width):
            low = exp_of_negative(scores[(count - 1) * width + c] - state[highest + c])
            state[sums + c] += low
            weights[count // 2 * width + c] = _word_of(low, ZERO)


@njit(error_model="numpy")
def _join_values(values, stride, count, dim, target):
    """The values of two tokens in a word."""
    for j in range(count // 2):
        first, second, place = 2 * j * stride, (2 * j + 1) * stride, j * dim
        for i in range(dim):
            target[place + i] = np.uint32(values[first + i]) | (np.uint32(values[second + i]) << np.uint32(16))
    if count % 2:
        for i in range(dim):
            target[count // 2 * dim + i] = np.uint32(values[(count - 1) * stride + i])


@njit(error_model="numpy")
def _attend(args, task):
    """Attention of some columns of one key-value head over a part of its keys, as in `numba_chunk_attention`."""
    split, columns, width = task % args[SPLITS], task // args[SPLITS], args[WIDTH]
    part, pair, dim = columns % args[PARTS], columns // args[PARTS], args[VALUE_DIM]
    row, head = pair // args[KV_HEADS], pair % args[KV_HEADS]
    queries = args[QUERIES] + 2 * columns * args[DIM] * width
    all_keys = args[KEYS] + 2 * (row * args[KEY_ROW] + head * args[KEY_HEAD])
    all_values = args[VALUES] + 2 * (row * args[VALUE_ROW] + head * args[VALUE_HEAD])
    scores = args[SCRATCH] + 4 * task * args[SCRATCH_EACH]
    answer = args[OUTPUT] + 4 * task * dim * width
    state, output = float32_at(scores + 4 * STATE * width), float32_at(answer)
    weights = scores + 4 * SCRATCH_FLOATS * width
    values = weights + 2 * BLOCK * width
    blocks = -(-args[SLOTS] // BLOCK)
    each = -(-blocks // args[SPLITS]) * BLOCK
    for c in range(width):
        state[c], state[width + c] = NOTHING, ZERO
    for i in range(dim * width):
        output[i] = ZERO
    for begin in range(split * each, min((split + 1) * each, args[SLOTS]), BLOCK):
        count = min(BLOCK, args[SLOTS] - begin)
        keys, first = all_keys + 2 * begin * args[KEY_SLOT], all_values + 2 * begin * args[VALUE_SLOT]
        _score(args, keys, args[KEY_SLOT] // 2, first, count, queries, scores)
        if args[SOFT_CAP]:
            bend(float32_at(scores), count * width, float32_of(args[SOFT_CAP]))
        _hide(args, row, part, begin, count, float32_at(scores))
        _weigh(width, float32_at(scores), count, state, dim, output, uint32_at(weights))
        _join_values(uint16_at(first), args[VALUE_SLOT], count, dim, uint32_at(values))
        _add_values(width, values, dim, (count + 1) // 2, weights, dim, answer)
    if args[SPLITS] == 1:
        for i in range(dim):
            for c in range(width):
                output[i * width + c] /= state[width + c]


@cfunc(_SIGNATURE, error_model="numpy")
def attend_pairs_bfloat16(args):
    """The kernel: takes tasks until none is left."""
    while True:
        task = fetch_add(args, NEXT, 1)
        if task >= args[ROWS] * args[KV_HEADS] * args[PARTS] * args[SPLITS]:
            return
        _attend(args, task)


def fits(dim: int) -> bool:
    """Whether the kernel is faster for heads of so many channels, and takes them."""
    return HAS_PAIRS and dim % 2 == 0
