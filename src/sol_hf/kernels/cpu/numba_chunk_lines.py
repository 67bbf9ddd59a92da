# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""What is before and after the attention of several new tokens in a program on the CPU, compiled by numba.

`numba_chunk_attention` takes the queries of a key-value head as columns, and leaves a result for every part of the
keys. In a program, queries and outputs are lines, one for every token:

    queries (lines, heads * dim)  ->  fill  ->  (row, head, columns)  ->  attend  ->  merge  ->  (lines, heads * dim)

The column of a query of a group is its head times the number of tokens, plus its token.
"""

import numpy as np
from numba import types

from .code_cache import cfunc
from .numba_chunk_attention import STATE
from .numba_memory import FAST_MATH, exp_of_negative, fetch_add, float32_at, float32_of


(FILLED, MERGED, ROWS, KV_HEADS, GROUP, TOKENS, DIM, VALUE_DIM, PARTS, SPLITS, WIDTH, SCALE) = range(12)
(QUERY, QUERY_STRIDE, COLUMNS_AT, RESULTS, SCRATCH, SCRATCH_EACH, OUTPUT, OUTPUT_STRIDE, HEADER) = range(12, 21)
"""Counters of both operations; shapes; the scale of the scores, a float32; addresses of queries, columns, results and
their scratch memory, and outputs. Strides are from one line to the next."""
_SIGNATURE = types.void(types.CPointer(types.int64))


@cfunc(_SIGNATURE, error_model="numpy")
def fill(args):
    """Queries as columns, scaled; columns that are left over are zero."""
    width, dim, tokens, kv_heads = args[WIDTH], args[DIM], args[TOKENS], args[KV_HEADS]
    scale, number = float32_of(args[SCALE]), args[GROUP] * tokens
    while True:
        task = fetch_add(args, FILLED, 1)
        if task >= args[ROWS] * kv_heads * args[PARTS]:
            return
        pair, first = task // args[PARTS], task % args[PARTS] * width
        row, head = pair // kv_heads, pair % kv_heads
        columns = float32_at(args[COLUMNS_AT] + 4 * task * dim * width)
        for c in range(width):
            if first + c >= number:
                for i in range(dim):
                    columns[i * width + c] = np.float32(0.0)
                continue
            line = row * tokens + (first + c) % tokens
            place = line * args[QUERY_STRIDE] + (head * args[GROUP] + (first + c) // tokens) * dim
            query = float32_at(args[QUERY] + 4 * place)
            for i in range(dim):
                columns[i * width + c] = query[i] * scale


@cfunc(_SIGNATURE, fastmath=FAST_MATH, error_model="numpy")
def merge(args):
    """The results of all parts of the keys, added up by their shares of the probability, as lines."""
    width, dim, tokens, kv_heads = args[WIDTH], args[VALUE_DIM], args[TOKENS], args[KV_HEADS]
    splits, number = args[SPLITS], args[GROUP] * tokens
    while True:
        task = fetch_add(args, MERGED, 1)
        if task >= args[ROWS] * kv_heads * args[PARTS]:
            return
        pair, first = task // args[PARTS], task % args[PARTS] * width
        row, head = pair // kv_heads, pair % kv_heads
        results = args[RESULTS] + 4 * task * splits * dim * width
        states = args[SCRATCH] + 4 * (task * splits * args[SCRATCH_EACH] + STATE * width)
        for c in range(min(width, number - first)):
            line = row * tokens + (first + c) % tokens
            place = line * args[OUTPUT_STRIDE] + (head * args[GROUP] + (first + c) // tokens) * dim
            output = float32_at(args[OUTPUT] + 4 * place)
            peak, mass = float32_at(states)[c], np.float32(0.0)
            for split in range(1, splits):
                peak = max(peak, float32_at(states + 4 * split * args[SCRATCH_EACH])[c])
            for i in range(dim):
                output[i] = np.float32(0.0)
            for split in range(splits):
                state = float32_at(states + 4 * split * args[SCRATCH_EACH])
                share = exp_of_negative(min(state[c] - peak, np.float32(0.0)))
                mass += share * (state[width + c] if splits > 1 else np.float32(1.0))
                result = float32_at(results + 4 * split * dim * width)
                for i in range(dim):
                    output[i] += share * result[i * width + c]
            for i in range(dim):
                output[i] /= mass
