# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The three criteria against a reference that loops over rows and heads and follows the published text."""

from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sol_hf.selection.candidates import Candidates
from sol_hf.selection.criterion import CRITERIA
from sol_hf.selection.pages import page_bounds
from sol_hf.selection.ranking import group_queries
from sol_hf.selection.rule import Selection, SelectionRule
from support.naive_criteria import budget, naive_quest, naive_recency, naive_relevancy


SLACK = 1e-9


def ranks_read(selection: Selection, row: int, counts: list[int]) -> list[set[int]]:
    """What a selection reads in one row, as sets of valid ranks; fails if a rank is read twice."""
    read = []
    for ranks, in_use in zip(selection.ranks[row].tolist(), selection.in_use[row].tolist(), strict=True):
        chosen = [rank for rank, used in zip(ranks, in_use, strict=True) if used and 0 <= rank < counts[row]]
        assert len(chosen) == len(set(chosen))
        read.append(set(chosen))
    return read


@st.composite
def problems(draw, criterion: str, dims: tuple[int, ...] = (1, 2, 8)):
    """A batch of left-padded rows with their own budgets."""
    rows, kv_heads, group = draw(st.integers(1, 3)), draw(st.integers(1, 3)), draw(st.integers(1, 4))
    counts = draw(st.lists(st.integers(1, 45), min_size=rows, max_size=rows))
    slots = max(counts) + draw(st.integers(0, 5))
    keep = [Fraction(n, 20) for n in draw(st.lists(st.integers(1, 20), min_size=rows, max_size=rows))]
    rule = SelectionRule(
        criterion=criterion,
        page_size=draw(st.integers(1, 17)),
        selection=draw(st.sampled_from(CRITERIA[criterion].selections)),
        sink_tokens=draw(st.integers(0, 5)),
        window_tokens=draw(st.integers(0, 5)),
        anchor_pages=draw(st.booleans()) and CRITERIA[criterion].chooses_pages,
    )
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))
    dim = draw(st.sampled_from(dims))
    query = torch.randn(rows, kv_heads * group, 1, dim, generator=generator, dtype=torch.float64)
    keys = torch.randn(rows, kv_heads, slots, dim, generator=generator, dtype=torch.float64)
    return query, keys, counts, keep, rule


def padding_of(keys, counts) -> torch.Tensor:
    return torch.tensor([keys.shape[2] - count for count in counts])


def select(query, keys, page_origin, first_key, keep, rule) -> Selection:
    candidates = Candidates(group_queries(query, keys.shape[1]), keys, page_origin, first_key, rule.page_size)
    return CRITERIA[rule.criterion].select(candidates, torch.tensor([float(k) for k in keep]), rule)


@settings(max_examples=150, deadline=None)
@given(problem=problems("quest"))
def test_quest_is_the_naive_one(problem):
    query, keys, counts, keep, rule = problem
    padding = padding_of(keys, counts)
    selection = select(query, keys, padding, padding, keep, rule)
    for row, count in enumerate(counts):
        alone = keys[row, :, keys.shape[2] - count :]
        assert ranks_read(selection, row, counts) == naive_quest(query[row, :, 0], alone, keep[row], rule)


@settings(max_examples=150, deadline=None)
@given(problem=problems("relevancy"))
def test_relevancy_is_the_naive_one(problem):
    query, keys, counts, keep, rule = problem
    padding = padding_of(keys, counts)
    selection = select(query, keys, padding, padding, keep, rule)
    for row, count in enumerate(counts):
        alone = keys[row, :, keys.shape[2] - count :]
        assert ranks_read(selection, row, counts) == naive_relevancy(query[row, :, 0], alone, keep[row], rule)


@settings(max_examples=150, deadline=None)
@given(problem=problems("recency"))
def test_recency_is_the_naive_one(problem):
    query, keys, counts, keep, rule = problem
    padding = padding_of(keys, counts)
    selection = select(query, keys, padding, padding, keep, rule)
    for row, count in enumerate(counts):
        assert ranks_read(selection, row, counts) == [naive_recency(count, keep[row], rule)]


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), count=st.integers(1, 60), group=st.integers(1, 3), twentieths=st.integers(1, 20))
def test_quest_with_pages_of_one_key_is_exact_top_k(seed, count, group, twentieths):
    generator = torch.Generator().manual_seed(seed)
    query = torch.randn(1, 2 * group, 1, 4, generator=generator, dtype=torch.float64)
    keys = torch.randn(1, 2, count, 4, generator=generator, dtype=torch.float64)
    zero, keep = torch.zeros(1, dtype=torch.long), Fraction(twentieths, 20)
    selection = select(query, keys, zero, zero, [keep], SelectionRule(page_size=1))
    logits = (query @ keys.repeat_interleave(group, dim=1).transpose(2, 3))[0, :, 0]
    top = logits.topk(budget(keep, count), dim=-1).indices
    assert ranks_read(selection, 0, [count]) == [set(indices) for indices in top.tolist()]


@settings(max_examples=60, deadline=None)
@given(problem=problems("quest"))
def test_the_bound_of_a_page_bounds_the_logits_of_its_keys(problem):
    query, keys, counts, _, rule = problem
    padding = padding_of(keys, counts)
    pages = -(-max(counts) // rule.page_size)
    upper, lower = page_bounds(keys, rule.page_size, padding, padding, pages)
    group = query.shape[1] // keys.shape[1]
    for row, count in enumerate(counts):
        for head in range(query.shape[1]):
            q = query[row, head, 0]
            for rank in range(count):
                page, kv_head = rank // rule.page_size, head // group
                key = keys[row, kv_head, keys.shape[2] - count + rank]
                bound = torch.maximum(q * upper[row, kv_head, page], q * lower[row, kv_head, page]).sum()
                assert bound >= q @ key - SLACK


def test_page_bounds_of_short_empty_and_misaligned_pages():
    keys = torch.tensor([5.0, -1.0, 2.0, 7.0, -3.0])[None, None, :, None]
    upper, lower = page_bounds(keys, 2, torch.tensor([0]), torch.tensor([0]), 4)
    assert upper.flatten().tolist() == [5, 7, -3, 0]
    assert lower.flatten().tolist() == [-1, 2, -3, 0]
    upper, lower = page_bounds(keys, 2, torch.tensor([1]), torch.tensor([1]), 2)
    assert (upper.flatten().tolist(), lower.flatten().tolist()) == ([2, 7], [-1, -3])
    upper, lower = page_bounds(keys, 2, torch.tensor([-1]), torch.tensor([0]), 3)
    assert (upper.flatten().tolist(), lower.flatten().tolist()) == ([5, 2, 7], [5, -1, -3])


@pytest.mark.parametrize(
    ("criterion", "selection"), [(name, selection) for name in CRITERIA for selection in CRITERIA[name].selections]
)
def test_keeping_all_reads_every_key(criterion, selection):
    rule = SelectionRule(criterion, page_size=4, selection=selection)
    query, keys = torch.randn(2, 4, 1, 8), torch.randn(2, 2, 30, 8)
    padding, counts, keep = torch.tensor([0, 7]), [30, 23], [Fraction(1), Fraction(1)]
    selection = select(query, keys, padding, padding, keep, rule)
    for row, count in enumerate(counts):
        assert all(read == set(range(count)) for read in ranks_read(selection, row, counts))


def test_keeping_all_reads_every_key_of_a_window_that_begins_within_a_page():
    # Keys 3..26 of a sequence in pages of 8: four pages hold the 24 keys, the first and the last of them not full.
    query, keys = torch.randn(1, 2, 1, 8), torch.randn(1, 2, 24, 8)
    selection = select(query, keys, torch.tensor([-3]), torch.tensor([0]), [Fraction(1)], SelectionRule(page_size=8))
    assert all(read >= set(range(3, 27)) for read in ranks_read(selection, 0, [27]))


def test_group_selection_reads_once_per_key_value_head():
    rule = SelectionRule(page_size=4, selection="group")
    zero = torch.zeros(2, dtype=torch.long)
    query, keys = torch.randn(2, 6, 1, 8), torch.randn(2, 2, 40, 8)
    keep = [Fraction(3, 10), Fraction(1, 2)]
    selection = select(query, keys, zero, zero, keep, rule)
    assert selection.ranks.shape[:2] == (2, 2)
    assert selection.in_use.sum(-1).tolist() == [[12, 12], [20, 20]]
    rule = SelectionRule("relevancy", selection="group")
    assert select(query, keys, zero, zero, keep, rule).ranks.shape[:2] == (2, 2)


@pytest.mark.parametrize(("sink", "window", "first_controllable"), [(4, 2, 8), (0, 0, 2), (1, 5, 8)])
def test_the_first_controllable_step(sink, window, first_controllable):
    rule = SelectionRule(sink_tokens=sink, window_tokens=window)
    count = torch.arange(1, 20)
    assert torch.equal(rule.is_controllable(count), count >= first_controllable)


def test_the_fill_of_a_page():
    fill = SelectionRule(page_size=4).page_fill(torch.arange(1, 10))
    assert fill.tolist() == [0.25, 0.5, 0.75, 1.0] * 2 + [0.25]


def test_a_uniform_choice_of_recency_serves_all_heads():
    query, keys, zero = torch.randn(1, 4, 1, 8), torch.randn(1, 2, 27, 8), torch.tensor([0])
    selection = select(query, keys, zero, zero, [Fraction(1, 2)], SelectionRule("recency"))
    # 4 first, and 2 + 1 + ceil(.5 * 20) last ones
    assert ranks_read(selection, 0, [27]) == [{0, 1, 2, 3, *range(14, 27)}]
