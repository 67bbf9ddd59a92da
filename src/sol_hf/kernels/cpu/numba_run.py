# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Attention of a group of query heads over tokens that lie one after another, compiled by numba."""

from .code_cache import njit
from .numba_group import TOKENS, add_run, score_run
from .numba_memory import FAST_MATH, bend, float32_at, float32_of, prefetch
from .numba_softmax import update_softmax


LINE = 64
"""Bytes in a cache line."""


@njit(error_model="numpy")
def _ask_for(address, begin, end, size):
    """Prefetch the keys or values of `size` bytes of the slots from `begin` to `end`."""
    for byte in range(begin * size, end * size, LINE):
        prefetch(address + byte)


@njit(fastmath=FAST_MATH, error_model="numpy")
def attend_run(queries, sizes, keys, values, memory, begin, end, soft_cap, block, parts, logits):
    """Attention over the slots from `begin` to `end`, which is at least `TOKENS`.

    What is prefetched lies one product ahead: values while keys are multiplied, and the keys of the next block after.

    Args:
        queries: Address of the queries, `(group, dim)`.
        sizes: Query heads, channels of a key, channels of a value.
        keys: The memory of all keys.
        values: The memory of all values.
        memory: Both addresses, the bytes of a number, and the slot with which the key-value head begins.
        begin: The first slot of the head.
        end: The slot after the last.
        soft_cap: The bits of a float32, or 0.
        block: Slots per update of the softmax, at least `TOKENS`.
        parts: Address of `(maximum, sum, weighted values)` of every query.
        logits: Address of memory for scores, `(group, block)`, with room for `TOKENS` before it.
    """
    (group, dim, value_dim), (keys_at, values_at, item, head) = sizes, memory
    key_base, value_base = head * dim, head * value_dim
    keys_at, values_at = keys_at + item * key_base, values_at + item * value_base
    place = begin
    while place < end:
        last = min(place + block, end)
        count = last - place
        for n in range(0, count, TOKENS):
            _ask_for(values_at, place + n, min(place + n + TOKENS, last), item * value_dim)
            first = min(place + n, last - TOKENS)
            answer = logits + 4 * (first - place)
            score_run(queries, group, dim, keys, key_base, first, answer, block)
        for g in range(group):
            numbers, state = float32_at(logits + 4 * g * block), parts + 4 * g * (2 + value_dim)
            if soft_cap:
                bend(numbers, count, float32_of(soft_cap))
            update_softmax(numbers, count, value_dim, float32_at(state), float32_at(state + 8))
        for n in range(0, count, TOKENS):
            _ask_for(keys_at, min(last + n, end), min(last + n + TOKENS, end), item * dim)
            number = min(TOKENS, count - n)
            add_run(logits + 4 * n, block, group, values, value_base, place + n, number, value_dim, parts + 8)
        place = last
