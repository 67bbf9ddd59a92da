# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Decode attention on the CPU over selected pages, without copying them, compiled by numba.

The reference gathers the selected keys and values of every query head and attends to the copies. Here there is one
`choose` task per row and key-value head. It updates the page index, scores the pages, and marks for each page which
query heads of the group have chosen it. `attend` tasks then attend to all pages that any of these heads has chosen,
with a running softmax per head. Keys and values are thus read once for the whole group. Sums are in float32, also for
bfloat16.

    tasks   | choose (row 0, kv 0) | choose (row 0, kv 1) | ... | attend (row, kv, split) | ... |
                                                                 waits for its `choose`; the last split of a
                                                                 (row, kv) merges the parts

All arguments are in one array of int64: addresses, sizes, and the counters from which threads take their tasks.
"""

import numpy as np
from numba import types

from .code_cache import cfunc, njit
from .numba_group import TOKENS, fits_vectors
from .numba_memory import (
    FAST_MATH,
    bend,
    bits_of,
    exp_of_negative,
    fetch_add,
    float32_at,
    float32_of,
    int32_at,
    int64_at,
    prefetch,
    store,
    uint16_at,
    uint32_at,
    widen,
)
from .numba_run import attend_run
from .numba_softmax import NOTHING, ZERO, update_softmax


(QUERY, QUERY_ROW, QUERY_HEAD, KEYS, VALUES, UPPER, LOWER, OUTPUT, FIRST, WANTED) = range(10)
(SLOTS, ROWS, KV_HEADS, GROUP, DIM, VALUE_DIM, CAPACITY, PAGE_CAPACITY, PAGE_SIZE, INDEXED) = range(10, 20)
(PER_GROUP, SPLITS, FLOATS, FLOATS_EACH, WORDS, WORDS_EACH, PARTS, PARTS_EACH, MOST_PAGES, ITEM_SIZE) = range(20, 30)
ANCHORED = 30
"""Number of last tokens whose pages are always read, with the first page; 0 if none is."""
SOFT_CAP = 31
"""The bits of a float32: scores are bent so that none is larger, see [`bend`]; 0 if they are not."""
NEXT, HEADER = 32, 33
"""After the header there are counters: per row and key-value head whether its choice is made, then the splits done."""

BLOCK = 64
"""Keys per update of the running softmax."""
BINS = 256
LINE = 64
"""Bytes in a cache line."""
EVERYTHING = np.float32(np.inf)
SIGN, ALL_BITS = np.uint32(0x80000000), np.uint32(0xFFFFFFFF)


@njit(fastmath=FAST_MATH, error_model="numpy")
def _widen(memory, begin, count, tile):
    for i in range(count):
        tile[i] = widen(memory[begin + i])


@njit(fastmath=FAST_MATH, error_model="numpy")
def _dots(query, tile, count, dim, answer):
    """Products of one query with `count` keys."""
    j = 0
    while j + 4 <= count:
        a, b, c, d = ZERO, ZERO, ZERO, ZERO
        base = j * dim
        for i in range(dim):
            x = query[i]
            a += x * tile[base + i]
            b += x * tile[base + dim + i]
            c += x * tile[base + 2 * dim + i]
            d += x * tile[base + 3 * dim + i]
        answer[j], answer[j + 1], answer[j + 2], answer[j + 3] = a, b, c, d
        j += 4
    while j < count:
        a = ZERO
        for i in range(dim):
            a += query[i] * tile[j * dim + i]
        answer[j] = a
        j += 1


@njit(fastmath=FAST_MATH, error_model="numpy")
def _accumulate(weights, tile, count, dim, total):
    """Add `count` weighted values to `total`."""
    j = 0
    while j + 4 <= count:
        a, b, c, d = weights[j], weights[j + 1], weights[j + 2], weights[j + 3]
        base = j * dim
        for i in range(dim):
            left = a * tile[base + i] + b * tile[base + dim + i]
            right = c * tile[base + 2 * dim + i] + d * tile[base + 3 * dim + i]
            total[i] += left + right
        j += 4
    while j < count:
        a = weights[j]
        for i in range(dim):
            total[i] += a * tile[j * dim + i]
        j += 1


@njit(fastmath=FAST_MATH, error_model="numpy")
def _index_pages(args, task, first, keys, upper, lower):
    """Update the maxima and minima of the pages of one key-value head."""
    dim, size, slots = args[DIM], args[PAGE_SIZE], args[SLOTS]
    page = max(args[INDEXED] - first, 0) // size
    while first + page * size < slots:
        begin, end = first + page * size, min(first + (page + 1) * size, slots)
        place = (task * args[PAGE_CAPACITY] + page) * dim
        source = (task * args[CAPACITY] + begin) * dim
        for i in range(dim):
            x = widen(keys[source + i])
            store(upper, place + i, x)
            store(lower, place + i, x)
        for _ in range(1, end - begin):
            source += dim
            for i in range(dim):
                x = widen(keys[source + i])
                store(upper, place + i, max(widen(upper[place + i]), x))
                store(lower, place + i, min(widen(lower[place + i]), x))
        page += 1


@njit(fastmath=FAST_MATH, error_model="numpy")
def _score_pages(positive, negative, choosers, pages, dim, upper, lower, base, scores, stride):
    """Upper bounds of `q . k` for every chooser and page, as in `page_scores`."""
    for page in range(pages):
        place = base + page * dim
        for chooser in range(choosers):
            a, b, q = ZERO, ZERO, chooser * dim
            for i in range(dim):
                a += positive[q + i] * widen(upper[place + i])
                b += negative[q + i] * widen(lower[place + i])
            scores[chooser * stride + page] = a + b


@njit(error_model="numpy")
def _rank(x):
    """A float32 as a uint32 with the same order; NaN is last or first, depending on its sign."""
    bits = bits_of(x)
    return bits ^ (ALL_BITS if bits & SIGN else SIGN)


@njit(error_model="numpy")
def _least_kept(scores, begin, total, wanted, bins):
    """The rank of the `wanted`-th largest score, and how many scores of that rank to keep, by radix selection."""
    prefix, known, left = np.uint32(0), np.uint32(0), wanted
    for shift in (24, 16, 8, 0):
        for i in range(BINS):
            bins[i] = 0
        for i in range(total):
            rank = _rank(scores[begin + i])
            if rank & known == prefix:
                bins[(rank >> np.uint32(shift)) & np.uint32(0xFF)] += 1
        digit = BINS - 1
        while bins[digit] < left:
            left -= bins[digit]
            digit -= 1
        prefix |= np.uint32(digit) << np.uint32(shift)
        known |= np.uint32(0xFF) << np.uint32(shift)
    return prefix, left


@njit(error_model="numpy")
def _mark(scores, begin, total, wanted, bins, marks, bit):
    """Set `bit` in the marks of the `wanted` pages of highest score; of equal ones the first."""
    least, ties = _least_kept(scores, begin, total, wanted, bins)
    for page in range(total):
        rank = _rank(scores[begin + page])
        if rank > least:
            marks[page] |= bit
        elif rank == least and ties > 0:
            marks[page] |= bit
            ties -= 1


@njit(fastmath=FAST_MATH, error_model="numpy")
def _choose(args, task, query, keys, upper, lower):
    """Write which pages the query heads of one key-value head read, as `[number, pages..., marks...]`."""
    row, head = task // args[KV_HEADS], task % args[KV_HEADS]
    group, dim, most = args[GROUP], args[DIM], args[MOST_PAGES]
    first, wanted = int64_at(args[FIRST])[row], int64_at(args[WANTED])[row]
    words = args[WORDS] + 4 * task * args[WORDS_EACH]
    number, listed, marks, bins = (
        int32_at(words),
        int32_at(words + 4),
        uint32_at(words + 4 + 4 * most),
        int32_at(words + 4 + 8 * most),
    )
    floats = args[FLOATS] + 4 * (1 + task * args[FLOATS_EACH])
    queries, positive, negative = (
        float32_at(floats),
        float32_at(floats + 4 * group * dim),
        float32_at(floats + 8 * group * dim),
    )
    scores = float32_at(floats + 12 * group * dim)
    scale = float32_at(args[FLOATS])[0]
    source = row * args[QUERY_ROW] + head * group * args[QUERY_HEAD]
    for g in range(group):
        for i in range(dim):
            queries[g * dim + i] = widen(query[source + g * args[QUERY_HEAD] + i]) * scale
    pages = (args[SLOTS] - first + args[PAGE_SIZE] - 1) // args[PAGE_SIZE]
    everyone = np.uint32((1 << group) - 1)
    if args[UPPER] != 0:  # also for a row that needs no scores: the index is marked as complete for all rows
        _index_pages(args, task, first, keys, upper, lower)
    if wanted >= pages:
        number[0] = pages
        for page in range(pages):
            listed[page], marks[page] = page, everyone
        return
    choosers = 1 if args[PER_GROUP] else group
    for i in range(choosers * dim):
        positive[i], negative[i] = ZERO, ZERO
    for g in range(group):
        target = 0 if args[PER_GROUP] else g * dim
        for i in range(dim):
            x = widen(query[source + g * args[QUERY_HEAD] + i])
            positive[target + i] += max(x, ZERO)
            negative[target + i] += min(x, ZERO)
    base = task * args[PAGE_CAPACITY] * dim
    _score_pages(positive, negative, choosers, pages, dim, upper, lower, base, scores, most)
    if args[ANCHORED]:
        recent = max(args[SLOTS] - first - args[ANCHORED], 0) // args[PAGE_SIZE]
        for chooser in range(choosers):
            for page in range(recent, pages):
                scores[chooser * most + page] = EVERYTHING
            scores[chooser * most] = EVERYTHING
    for page in range(pages):
        marks[page] = 0
    for chooser in range(choosers):
        bit = everyone if args[PER_GROUP] else np.uint32(1 << chooser)
        _mark(scores, chooser * most, pages, wanted, bins, marks, bit)
    count = 0
    for page in range(pages):
        if marks[page]:
            listed[count], marks[count] = page, marks[page]
            count += 1
    number[0] = count


@njit()
def _prefetch_page(args, memory, task, page, first, dim):
    """Prefetch the keys or values of a page. The hardware does not prefetch them, since pages are not contiguous."""
    begin = first + page * args[PAGE_SIZE]
    count = min(args[PAGE_SIZE], args[SLOTS] - begin)
    address = memory + (task * args[CAPACITY] + begin) * dim * args[ITEM_SIZE]
    for offset in range(0, count * dim * args[ITEM_SIZE], LINE):
        prefetch(address + offset)


@njit(fastmath=FAST_MATH, error_model="numpy")
def _attend(args, task, split, keys, values):
    """Attention of one key-value head's group over a part of its pages: `(maximum, sum, weighted values)` per head."""
    group, dim, value_dim = args[GROUP], args[DIM], args[VALUE_DIM]
    size, most, slots = args[PAGE_SIZE], args[MOST_PAGES], args[SLOTS]
    first = int64_at(args[FIRST])[task // args[KV_HEADS]]
    words = args[WORDS] + 4 * task * args[WORDS_EACH]
    number, listed, marks = int32_at(words)[0], int32_at(words + 4), uint32_at(words + 4 + 4 * most)
    queries = args[FLOATS] + 4 * (1 + task * args[FLOATS_EACH])
    parts = args[PARTS] + 4 * (task * args[SPLITS] + split) * args[PARTS_EACH]
    tile_address = parts + 4 * group * (2 + value_dim)
    tile = float32_at(tile_address)
    logits = tile_address + 4 * size * max(dim, value_dim)
    per_block = max(BLOCK // size, 1)
    width = per_block * size
    for g in range(group):
        state = float32_at(parts + 4 * g * (2 + value_dim))
        state[0] = NOTHING
        for i in range(1 + value_dim):
            state[1 + i] = ZERO
    place, end = number * split // args[SPLITS], number * (split + 1) // args[SPLITS]
    begin, stop = first + place * size, min(first + end * size, slots)
    is_whole = int64_at(args[WANTED])[task // args[KV_HEADS]] * size >= slots - first
    if is_whole and stop >= TOKENS and fits_vectors(dim, value_dim):
        sizes, memory = (group, dim, value_dim), (args[KEYS], args[VALUES], args[ITEM_SIZE], task * args[CAPACITY])
        attend_run(queries, sizes, keys, values, memory, begin, stop, args[SOFT_CAP], width, parts, logits)
        return
    while place < end:
        last = min(place + per_block, end)
        for n in range(place, last):
            _prefetch_page(args, args[VALUES], task, listed[n], first, value_dim)
            begin = first + listed[n] * size
            count = min(size, slots - begin)
            _widen(keys, (task * args[CAPACITY] + begin) * dim, count * dim, tile)
            for g in range(group):
                answer = float32_at(logits + 4 * (g * width + (n - place) * size))
                read = 0
                if marks[n] >> np.uint32(g) & np.uint32(1):
                    _dots(float32_at(queries + 4 * g * dim), tile, count, dim, answer)
                    if args[SOFT_CAP]:
                        bend(answer, count, float32_of(args[SOFT_CAP]))
                    read = count
                for j in range(read, size):
                    answer[j] = NOTHING
        for g in range(group):
            address = parts + 4 * g * (2 + value_dim)
            total = float32_at(address + 8)
            update_softmax(
                float32_at(logits + 4 * g * width), (last - place) * size, value_dim, float32_at(address), total
            )
        for n in range(place, last):
            if n + per_block < end:
                _prefetch_page(args, args[KEYS], task, listed[n + per_block], first, dim)
            begin = first + listed[n] * size
            count = min(size, slots - begin)
            _widen(values, (task * args[CAPACITY] + begin) * value_dim, count * value_dim, tile)
            for g in range(group):
                if marks[n] >> np.uint32(g) & np.uint32(1):
                    weights = float32_at(logits + 4 * (g * width + (n - place) * size))
                    _accumulate(weights, tile, count, value_dim, float32_at(parts + 4 * g * (2 + value_dim) + 8))
        place = last


@njit(fastmath=FAST_MATH, error_model="numpy")
def _combine(args, task, output):
    """Merge the splits of one key-value head."""
    group, dim, splits = args[GROUP], args[VALUE_DIM], args[SPLITS]
    for g in range(group):
        parts = args[PARTS] + 4 * task * splits * args[PARTS_EACH] + 4 * g * (2 + dim)
        state = float32_at(parts)
        highest, weight = NOTHING, ZERO
        for split in range(splits):
            highest = max(highest, float32_at(parts + 4 * split * args[PARTS_EACH])[0])
        for split in range(splits):
            part = float32_at(parts + 4 * split * args[PARTS_EACH])
            share = exp_of_negative(part[0] - highest) if part[0] != NOTHING else ZERO
            weight += share * part[1]
            for i in range(2, 2 + dim):
                state[i] = (state[i] if split else ZERO) + share * part[i]
        for i in range(dim):
            store(output, (task * group + g) * dim + i, state[2 + i] / weight)


@njit(fastmath=FAST_MATH, error_model="numpy")
def _work(args, query, keys, values, upper, lower, output):
    """Take tasks until none is left."""
    pairs, splits = args[ROWS] * args[KV_HEADS], args[SPLITS]
    while True:
        number = fetch_add(args, NEXT, 1)
        if number >= pairs * (1 + splits):
            return
        task = number % pairs
        if number < pairs:
            _choose(args, task, query, keys, upper, lower)
            fetch_add(args, HEADER + task, 1)
            continue
        while fetch_add(args, HEADER + task, 0) == 0:
            pass
        _attend(args, task, number // pairs - 1, keys, values)
        if fetch_add(args, HEADER + pairs + task, 1) == splits - 1:
            _combine(args, task, output)


_SIGNATURE = types.void(types.CPointer(types.int64))


@cfunc(_SIGNATURE, error_model="numpy")
def attend_float32(args):
    """The kernel for float32 memory."""
    query, keys, values = float32_at(args[QUERY]), float32_at(args[KEYS]), float32_at(args[VALUES])
    upper, lower, output = float32_at(args[UPPER]), float32_at(args[LOWER]), float32_at(args[OUTPUT])
    _work(args, query, keys, values, upper, lower, output)


@cfunc(_SIGNATURE, error_model="numpy")
def attend_bfloat16(args):
    """The kernel for keys and values in bfloat16; queries and output are float32."""
    query, keys, values = float32_at(args[QUERY]), uint16_at(args[KEYS]), uint16_at(args[VALUES])
    upper, lower, output = uint16_at(args[UPPER]), uint16_at(args[LOWER]), float32_at(args[OUTPUT])
    _work(args, query, keys, values, upper, lower, output)
