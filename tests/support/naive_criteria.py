# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The criteria written as loops."""

import math
from fractions import Fraction

from sol_hf.selection.rule import SelectionRule


def budget(keep: Fraction, count: int) -> int:
    return max(1, math.ceil(keep * count))


def naive_quest(query, keys, keep: Fraction, rule: SelectionRule, gone: int = 0) -> list[set[int]]:
    """Ranks read by every head of one row; `query` is `(heads, dim)`, `keys` `(kv_heads, count, dim)`, no padding.

    `gone` keys came before the first of `keys` and are no longer cached; rank 0 is still the first of `keys`.
    """
    heads, kv_heads, count = len(query), len(keys), keys.shape[1]
    group = heads // kv_heads
    pages: dict[int, list[int]] = {}
    for rank in range(count):
        pages.setdefault((rank + gone) // rule.page_size, []).append(rank)
    pages = list(pages.values())
    bounds = []
    for head in range(heads):
        of_head = []
        for page in pages:
            of_page = [keys[head // group, rank].tolist() for rank in page]
            bound = 0.0
            for channel, q in enumerate(query[head].tolist()):
                values = [key[channel] for key in of_page]
                bound += max(q * max(values), q * min(values))
            of_head.append(bound)
        bounds.append(of_head)
    if rule.selection == "group":
        bounds = [
            [sum(column) for column in zip(*bounds[h * group : (h + 1) * group], strict=True)] for h in range(kv_heads)
        ]
    wanted = len(pages) if budget(keep, count) >= count else math.ceil(Fraction(budget(keep, count), rule.page_size))
    if rule.anchor_pages:
        recent = range(max(count - rule.window_tokens - 2, 0), count)
        anchors = {0} | {i for i, page in enumerate(pages) if set(page) & set(recent)}
        wanted = max(wanted, len(anchors))
        bounds = [[math.inf if i in anchors else b for i, b in enumerate(of_head)] for of_head in bounds]
    read = []
    for of_head in bounds:
        best = sorted(range(len(pages)), key=lambda page: -of_head[page])[:wanted]
        read.append({rank for page in best for rank in pages[page]})
    return read


def naive_relevancy(query, keys, keep: Fraction, rule: SelectionRule) -> list[set[int]]:
    heads, kv_heads, count = len(query), len(keys), keys.shape[1]
    group = heads // kv_heads
    forced = {rank for rank in range(count) if rank < rule.sink_tokens}
    forced |= {rank for rank in range(count) if rank + 1 >= count - (rule.window_tokens + 1)}
    others = [rank for rank in range(count) if rank not in forced]
    logits = [[float(query[head] @ keys[head // group, rank]) for rank in range(count)] for head in range(heads)]
    if rule.selection == "group":
        logits = [
            [sum(column) for column in zip(*logits[h * group : (h + 1) * group], strict=True)] for h in range(kv_heads)
        ]
    wanted = budget(keep, len(others)) if others else 0
    return [forced | set(sorted(others, key=lambda rank: -of_head[rank])[:wanted]) for of_head in logits]


def naive_recency(count: int, keep: Fraction, rule: SelectionRule) -> set[int]:
    always = rule.sink_tokens + rule.window_tokens + 1
    extra = math.ceil(keep * (count - always)) if count > always else 0
    last = rule.window_tokens + 1 + extra
    return {rank for rank in range(count) if rank < rule.sink_tokens or rank >= count - last}


def naive_sketch(query, keys, keep: Fraction, rule: SelectionRule) -> list[set[int]]:
    """Ranks read by every head, key-value head with `group` and `layer`."""
    heads, kv_heads, count = len(query), len(keys), keys.shape[1]
    group, top = heads // kv_heads, 2 ** (rule.index_bits - 1) - 1
    settled = max(power for power in (1, 2, 4, 8, 16, 32, 64) if power <= count)
    logits = []
    for head in range(heads):
        cached = keys[head // group].float()
        mean = cached[:settled].double().mean(dim=0).float()
        of_head = []
        for key in cached:
            scale = max(float((key - mean).abs().max()) / top, 1e-8)
            code = [min(max(round(float(x) / scale), -top), top) for x in key - mean]
            of_head.append(sum(float(q) * c * scale for q, c in zip(query[head], code, strict=True)))
        logits.append(of_head)
    forced = {rank for rank in range(count) if rank < rule.sink_tokens or rank >= count - rule.window_tokens - 2}
    wanted = max(budget(keep, count), len(forced))

    def best(scores: dict, number: int) -> set:
        return set(sorted(scores, key=lambda place: -scores[place])[:number])

    if rule.selection == "head":
        return [
            best({rank: math.inf if rank in forced else x for rank, x in enumerate(of_head)}, wanted)
            for of_head in logits
        ]
    shared = {}
    for head, of_head in enumerate(logits):
        weights = [math.exp(x / query.shape[-1] ** 0.5) for x in of_head]
        for rank, weight in enumerate(weights):
            place = head // group, rank
            shared[place] = shared.get(place, 0) + (math.inf if rank in forced else weight / sum(weights))
    if rule.selection == "layer":
        chosen = best(shared, wanted * kv_heads)
        return [{rank for head, rank in chosen if head == kv_head} for kv_head in range(kv_heads)]
    by_head = [{rank: shared[kv_head, rank] for rank in range(count)} for kv_head in range(kv_heads)]
    return [best(scores, wanted) for scores in by_head]
