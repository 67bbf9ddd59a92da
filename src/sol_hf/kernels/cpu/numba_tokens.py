# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Decode attention on the CPU over the best single tokens, ranked by their keys in 4 bits, compiled by numba.

One `rank` task per row and key-value head multiplies the queries of its group with all codes and adds up their
probabilities. The tokens are then listed: by the task itself, or, if the heads of a layer choose together, by the last
one of the row. `attend` tasks read the keys and values of the listed tokens, each for the whole group.

    tasks   | rank (row 0, kv 0) | rank (row 0, kv 1) | ... | attend (row, kv, split) | ... |
                                                              waits until the row is listed; the last split of a
                                                              (row, kv) merges the parts

The arguments are an array of int64 as in `numba_attention`, with other entries where pages do not apply.
"""

import numpy as np
from numba import types

from ...selection.sketch import MOST_IN_MEAN
from .code_cache import cfunc, njit
from .numba_attention import (
    ANCHORED,
    BLOCK,
    CAPACITY,
    DIM,
    EVERYTHING,
    FIRST,
    FLOATS,
    FLOATS_EACH,
    GROUP,
    HEADER,
    INDEXED,
    ITEM_SIZE,
    KEYS,
    KV_HEADS,
    LINE,
    LOWER,
    MOST_PAGES,
    NEXT,
    OUTPUT,
    PAGE_CAPACITY,
    PAGE_SIZE,
    PARTS,
    PARTS_EACH,
    PER_GROUP,
    QUERY,
    QUERY_HEAD,
    QUERY_ROW,
    ROWS,
    SLOTS,
    SOFT_CAP,
    SPLITS,
    UPPER,
    VALUE_DIM,
    VALUES,
    WANTED,
    WORDS,
    WORDS_EACH,
    _accumulate,
    _combine,
    _dots,
)
from .numba_group import TOKENS, add_listed, fits_vectors, score_listed
from .numba_memory import (
    FAST_MATH,
    bend,
    exp_of_negative,
    fetch_add,
    float32_at,
    float32_of,
    int32_at,
    int64_at,
    prefetch,
    store,
    uint8_at,
    uint16_at,
    uint32_at,
    widen,
)
from .numba_softmax import NOTHING, ZERO, largest_of, update_softmax
from .numba_token_choice import least_chosen, list_chosen
from .numba_token_scores import can_score, score_tokens, write_records


CODES, SCALES, INDEX_CAPACITY, SINK, RECENT, PER_LAYER, MOST, ENCODED = (
    UPPER,
    LOWER,
    PAGE_CAPACITY,
    PAGE_SIZE,
    INDEXED,
    PER_GROUP,
    MOST_PAGES,
    ANCHORED,
)
"""Entries for packed codes, their scales, slots of the index, the tokens at both ends that are always read, whether
the heads of a layer choose together, the most tokens of a list, and the tokens that have codes already."""
MEAN, COUNTERS = HEADER, HEADER + 1
"""The means of the keys, in float32; after it come the counters."""
TOP = np.float32(7.0)
"""Codes are -7 to 7; this number is added to them when they are packed."""
STEP, SMALLEST = np.float32(1 / 7), np.float32(1e-8)
LAST_CODE = np.int32(14)


@njit(error_model="numpy")
def _encode_key(keys, begin, mean, mean_begin, half, codes, code_begin, scales, place):
    """Codes and scale of one key, as in `encode` and `pack`, to the bit: so without fast math."""
    highest = ZERO
    for i in range(2 * half):
        highest = max(highest, abs(widen(keys[begin + i]) - mean[mean_begin + i]))
    store(scales, place, max(highest * STEP, SMALLEST))
    scale = widen(scales[place])
    for i in range(half):
        low = np.rint((widen(keys[begin + i]) - mean[mean_begin + i]) / scale)
        high = np.rint((widen(keys[begin + half + i]) - mean[mean_begin + half + i]) / scale)
        low_code = min(max(np.int32(low + TOP), np.int32(0)), LAST_CODE)
        high_code = min(max(np.int32(high + TOP), np.int32(0)), LAST_CODE)
        codes[code_begin + i] = np.uint8(low_code | (high_code << 4))


@njit(error_model="numpy")
def _tokens_in_mean(count):
    """As `tokens_in_mean`: the largest power of two up to `count`, and at most `MOST_IN_MEAN`."""
    number = 1
    while 2 * number <= min(count, MOST_IN_MEAN):
        number *= 2
    return number


@njit(error_model="numpy")
def _set_mean(keys, begin, number, dim, mean, mean_begin):
    """The mean of `number` keys, as in `channel_means`."""
    for i in range(dim):
        total = np.float64(0)
        for n in range(number):
            total += np.float64(widen(keys[begin + n * dim + i]))
        mean[mean_begin + i] = np.float32(total / number)


@njit(error_model="numpy")
def _encode_keys(args, task, keys, codes, scales):
    """Encode the keys of one key-value head that have no codes yet; all keys if the new ones change their mean."""
    dim, mean = args[DIM], float32_at(args[MEAN])
    first = int64_at(args[FIRST])[task // args[KV_HEADS]]
    encoded, number = args[ENCODED], _tokens_in_mean(args[SLOTS] - first)
    if encoded <= first or _tokens_in_mean(encoded - first) != number:
        _set_mean(keys, (task * args[CAPACITY] + first) * dim, number, dim, mean, task * dim)
        encoded = 0
    for slot in range(encoded, args[SLOTS]):
        place = task * args[INDEX_CAPACITY] + slot
        begin = (task * args[CAPACITY] + slot) * dim
        _encode_key(keys, begin, mean, task * dim, dim // 2, codes, place * (dim // 2), scales, place)


@njit(fastmath=FAST_MATH, error_model="numpy")
def _unpack(codes, begin, count, half, tile):
    """Codes of `count` tokens as numbers: channel `i` is in the low half of byte `i`, `half + i` in the high one."""
    for j in range(count):
        source, target = begin + j * half, j * 2 * half
        for i in range(half):
            tile[target + i] = np.float32(np.int32(codes[source + i] & 15)) - TOP
        for i in range(half):
            tile[target + half + i] = np.float32(np.int32(codes[source + i] >> 4)) - TOP


@njit(fastmath=FAST_MATH, error_model="numpy")
def _rank_tokens(args, task, query, codes, scales):
    """Write the probabilities of all tokens, added up over the query heads of a key-value head."""
    row, head = task // args[KV_HEADS], task % args[KV_HEADS]
    group, dim, slots = args[GROUP], args[DIM], args[SLOTS]
    first = int64_at(args[FIRST])[row]
    count, half = slots - first, dim // 2
    floats = args[FLOATS] + 4 * (1 + task * args[FLOATS_EACH])
    queries, logits = float32_at(floats), floats + 4 * group * dim
    tile = float32_at(logits + 4 * group * slots)
    scale = float32_at(args[FLOATS])[0]
    source = row * args[QUERY_ROW] + head * group * args[QUERY_HEAD]
    for g in range(group):
        for i in range(dim):
            queries[g * dim + i] = widen(query[source + g * args[QUERY_HEAD] + i]) * scale
    if int64_at(args[WANTED])[row] >= count:
        return
    place = task * args[INDEX_CAPACITY] + first
    if can_score(group, dim, count):
        record = logits + 4 * group * slots
        write_records(floats, group, dim, record)
        score_tokens(args[CODES] + place * half, dim, count, record, group, logits, slots)
    else:
        for begin in range(0, count, BLOCK):
            number = min(BLOCK, count - begin)
            _unpack(codes, (place + begin) * half, number, half, tile)
            for g in range(group):
                answer = float32_at(logits + 4 * (g * slots + begin))
                _dots(float32_at(floats + 4 * g * dim), tile, number, dim, answer)
    for g in range(group):
        answer = float32_at(logits + 4 * g * slots)
        for j in range(count):
            answer[j] *= widen(scales[place + j])
    scores = float32_at(_scores_at(args, row, head, count))
    for j in range(count):
        scores[j] = ZERO
    for g in range(group):
        answer = float32_at(logits + 4 * g * slots)
        highest, total = largest_of(answer, count), ZERO
        for j in range(count):
            answer[j] = exp_of_negative(answer[j] - highest)
            total += answer[j]
        for j in range(count):
            scores[j] += answer[j] / total
    for j in range(min(args[SINK], count)):
        scores[j] = EVERYTHING
    for j in range(max(count - args[RECENT], 0), count):
        scores[j] = EVERYTHING


@njit(error_model="numpy")
def _scores_at(args, row, head, count):
    """Address of the probabilities of a key-value head; those of a row follow each other."""
    pairs = args[ROWS] * args[KV_HEADS]
    begin = 1 + pairs * args[FLOATS_EACH] + row * args[KV_HEADS] * args[SLOTS] + head * count
    return args[FLOATS] + 4 * begin


@njit(error_model="numpy")
def _list_tokens(args, row, head, heads):
    """List the tokens that `heads` key-value heads from `head` on read together: `[number, slots...]` for each."""
    first, wanted = int64_at(args[FIRST])[row], int64_at(args[WANTED])[row]
    count = args[SLOTS] - first
    is_dense = wanted >= count
    scores, task = _scores_at(args, row, head, count), row * args[KV_HEADS] + head
    least, ties = np.uint32(0), np.int64(0)
    if not is_dense:
        least, ties = least_chosen(uint32_at(scores), heads * count, heads * wanted)
    for other in range(heads):
        words = args[WORDS] + 4 * (task + other) * args[WORDS_EACH]
        number, listed = int32_at(words), int32_at(words + 4)
        if is_dense:
            number[0] = count
            for j in range(count):
                listed[j] = first + j
        else:
            number[0], ties = list_chosen(scores + 4 * other * count, count, least, ties, first, words + 4)


@njit(fastmath=FAST_MATH, error_model="numpy")
def _gather(memory, base, listed, begin, count, dim, tile):
    for n in range(count):
        source = (base + listed[begin + n]) * dim
        for i in range(dim):
            tile[n * dim + i] = widen(memory[source + i])


@njit()
def _prefetch_tokens(memory, begin, end):
    """Prefetch the keys or values of listed tokens, which the hardware does not foresee."""
    address, base, listed, last, size = memory
    for n in range(begin, min(end, last)):
        source = address + (base + listed[n]) * size
        for offset in range(0, size, LINE):
            prefetch(source + offset)


@njit(error_model="numpy")
def _score_listed(queries, sizes, keys, base, tokens, count, logits, ahead, place):
    """Products of all queries with the keys of a block of listed tokens, whose values are prefetched meanwhile."""
    group, dim, _ = sizes
    for begin in range(0, count, TOKENS):
        _prefetch_tokens(ahead, place + begin, place + begin + TOKENS)
        first = min(begin, count - TOKENS)  # the last tokens may be among those before
        score_listed(queries, group, dim, keys, base * dim, tokens + 4 * first, logits + 4 * first, BLOCK)


@njit(error_model="numpy")
def _add_listed(sizes, values, base, tokens, count, logits, parts, ahead, place):
    """Add the weighted values of a block of listed tokens, while the keys of the next are prefetched."""
    group, _, dim = sizes
    for begin in range(0, count, TOKENS):
        _prefetch_tokens(ahead, place + begin, place + begin + TOKENS)
        weights, number = logits + 4 * begin, min(TOKENS, count - begin)
        add_listed(weights, BLOCK, group, values, base * dim, tokens + 4 * begin, number, dim, parts + 8)


@njit(fastmath=FAST_MATH, error_model="numpy")
def _attend_tokens(args, task, split, keys, values):
    """Attention of one key-value head's group over a part of its tokens, as in `numba_attention`."""
    group, dim, value_dim, item = args[GROUP], args[DIM], args[VALUE_DIM], args[ITEM_SIZE]
    words = args[WORDS] + 4 * task * args[WORDS_EACH]
    number, listed = int32_at(words)[0], int32_at(words + 4)
    queries = args[FLOATS] + 4 * (1 + task * args[FLOATS_EACH])
    parts = args[PARTS] + 4 * (task * args[SPLITS] + split) * args[PARTS_EACH]
    tile_at = parts + 4 * group * (2 + value_dim)
    tile, logits = float32_at(tile_at), tile_at + 4 * BLOCK * max(dim, value_dim)
    base = task * args[CAPACITY]
    for g in range(group):
        state = float32_at(parts + 4 * g * (2 + value_dim))
        state[0] = NOTHING
        for i in range(1 + value_dim):
            state[1 + i] = ZERO
    place, end = number * split // args[SPLITS], number * (split + 1) // args[SPLITS]
    _prefetch_tokens((args[KEYS], base, listed, end, dim * item), place, place + BLOCK)
    fits, sizes, size = fits_vectors(dim, value_dim), (group, dim, value_dim), value_dim * item
    while place < end:
        last = min(place + BLOCK, end)
        count, is_wide, tokens = last - place, fits and last - place >= TOKENS, words + 4 + 4 * place
        keys_ahead, values_ahead = (
            (args[KEYS], base, listed, end, dim * item),
            (args[VALUES], base, listed, last, size),
        )
        if is_wide:
            _score_listed(queries, sizes, keys, base, tokens, count, logits, values_ahead, place)
        else:
            _prefetch_tokens(values_ahead, place, last)
            _gather(keys, base, listed, place, count, dim, tile)
        for g in range(group):
            if not is_wide:
                _dots(float32_at(queries + 4 * g * dim), tile, count, dim, float32_at(logits + 4 * g * BLOCK))
            state = parts + 4 * g * (2 + value_dim)
            if args[SOFT_CAP]:
                bend(float32_at(logits + 4 * g * BLOCK), count, float32_of(args[SOFT_CAP]))
            update_softmax(
                float32_at(logits + 4 * g * BLOCK), count, value_dim, float32_at(state), float32_at(state + 8)
            )
        if is_wide:
            _add_listed(sizes, values, base, tokens, count, logits, parts, keys_ahead, last)
        else:
            _prefetch_tokens(keys_ahead, last, last + BLOCK)
            _gather(values, base, listed, place, count, value_dim, tile)
            for g in range(group):
                total = float32_at(parts + 4 * g * (2 + value_dim) + 8)
                _accumulate(float32_at(logits + 4 * g * BLOCK), tile, count, value_dim, total)
        place = last


@njit(fastmath=FAST_MATH, error_model="numpy")
def _work(args, query, keys, values, scales, output):
    """Take tasks until none is left. Counters: per row the heads ranked, and if it is listed; then splits done."""
    heads, rows, splits = args[KV_HEADS], args[ROWS], args[SPLITS]
    pairs, codes = rows * heads, uint8_at(args[CODES])
    while True:
        number = fetch_add(args, NEXT, 1)
        if number >= pairs * (1 + splits):
            return
        task = number % pairs
        row = task // heads
        if number < pairs:
            _encode_keys(args, task, keys, codes, scales)
            _rank_tokens(args, task, query, codes, scales)
            if not args[PER_LAYER]:
                _list_tokens(args, row, task % heads, 1)
            if fetch_add(args, COUNTERS + row, 1) == heads - 1:
                if args[PER_LAYER]:
                    _list_tokens(args, row, 0, heads)
                fetch_add(args, COUNTERS + rows + row, 1)
            continue
        while fetch_add(args, COUNTERS + rows + row, 0) == 0:
            pass
        _attend_tokens(args, task, number // pairs - 1, keys, values)
        if fetch_add(args, COUNTERS + 2 * rows + task, 1) == splits - 1:
            _combine(args, task, output)


_SIGNATURE = types.void(types.CPointer(types.int64))


@cfunc(_SIGNATURE, error_model="numpy")
def attend_float32(args):
    """The kernel for float32 memory."""
    query, keys, values = float32_at(args[QUERY]), float32_at(args[KEYS]), float32_at(args[VALUES])
    _work(args, query, keys, values, float32_at(args[SCALES]), float32_at(args[OUTPUT]))


@cfunc(_SIGNATURE, error_model="numpy")
def attend_bfloat16(args):
    """The kernel for keys and values in bfloat16; queries and output are float32."""
    query, keys, values = float32_at(args[QUERY]), uint16_at(args[KEYS]), uint16_at(args[VALUES])
    _work(args, query, keys, values, uint16_at(args[SCALES]), float32_at(args[OUTPUT]))
