# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The compiled attention over single tokens has the results of the reference."""

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from execution.test_paged_attention import KEEP, OPERATIONS, PADDING, SHAPES, Steps, needs_numba
from sol_hf.execution.attention.grouped_queries import attend_grouped
from sol_hf.execution.attention.score_changes import ScoreChanges
from sol_hf.execution.attention.step.numba_tokens import NumbaTokens
from sol_hf.execution.attention.step.operation import StepAttention
from sol_hf.execution.attention.step.selected_keys import select_keys
from sol_hf.execution.plan import StepPlan
from sol_hf.selection.rule import SelectionRule
from support.operations import assert_same_outputs


RULES = st.builds(
    SelectionRule,
    criterion=st.just("sketch"),
    selection=st.sampled_from(["group", "layer"]),
    sink_tokens=st.integers(0, 6),
    window_tokens=st.integers(0, 6),
)


def steps(shape, padding, prefill, rule, dtype=torch.float32) -> Steps:
    made = Steps(shape, 8, padding, prefill, dtype=dtype)
    made.rule = rule
    return made


@needs_numba
@settings(max_examples=80, deadline=None)
@given(
    shape=SHAPES,
    padding=PADDING,
    prefill=st.integers(1, 200),
    rule=RULES,
    scaling=st.sampled_from([None, 0.3]),
    operations=st.lists(OPERATIONS, max_size=12),
    keep=KEEP,
    threads=st.integers(1, 2),
)
def test_the_kernel_equals_the_reference_after_anything(
    shape, padding, prefill, rule, scaling, operations, keep, threads
):
    torch.set_num_threads(threads)
    fast, plain = (steps(shape, padding, prefill, rule) for _ in range(2))
    assert_same_outputs(fast, plain, [*operations, ("append", 1), ("attend", keep)], scaling)
    known = torch.tensor(plain.padding), (min(plain.padding), max(plain.padding))
    ours, theirs = (made.cache.layers[0].sketch(4, *known) for made in (fast, plain))
    slots = plain.cache.layers[0].length
    assert torch.equal(ours.packed[:, :, :slots], theirs.packed[:, :, :slots])
    assert torch.equal(ours.scale[:, :, :slots], theirs.scale[:, :, :slots])
    assert torch.equal(ours.mean, theirs.mean)


@needs_numba
@settings(max_examples=25, deadline=None)
@given(shape=SHAPES, padding=PADDING, prefill=st.integers(1, 200), rule=RULES, keep=KEEP)
def test_the_kernel_in_bfloat16(shape, padding, prefill, rule, keep):
    made = steps(shape, padding, prefill, rule, torch.bfloat16)
    token_keep = torch.tensor([keep[row % len(keep)] for row in range(len(padding))])
    query = made.random(len(padding), made.kv_heads * made.group, 1, made.dim)
    plan = StepPlan(made.cache, rule, levels={"token_keep": token_keep}, backend="fast")
    call = StepAttention(plan, 0, query, made.key, made.value)
    run = NumbaTokens().prepare(call)
    assert run is not None
    candidates, selection = select_keys(call)
    mask = candidates.mask_of(selection).repeat_interleave(made.group, dim=1)
    expected = attend_grouped(query.float(), made.key.float(), made.value.float(), mask[:, :, None], None)
    output = run()
    assert output.dtype == torch.bfloat16
    torch.testing.assert_close(output.float(), expected, atol=2e-2, rtol=0)


@needs_numba
@pytest.mark.parametrize(
    ("changed", "is_run"),
    [({}, True), ({"selection": "head"}, False), ({"index_bits": 8}, False), ({"criterion": "quest"}, False)],
)
def test_what_the_kernel_runs(changed, is_run):
    rule = dataclasses.replace(SelectionRule("sketch", selection="layer"), **changed)
    made = steps((2, 2, 8, 8), [0], 50, rule)
    plan = StepPlan(made.cache, rule, levels={"token_keep": torch.tensor([0.5])}, backend="fast")
    query = made.random(1, 4, 1, 8)
    assert (NumbaTokens().prepare(StepAttention(plan, 0, query, made.key, made.value)) is not None) is is_run


WIDE_SHAPES = st.sampled_from([(1, 1, 32, 16), (3, 3, 64, 64), (2, 7, 32, 7), (1, 9, 96, 16), (2, 4, 128, 8)])


@needs_numba
@settings(max_examples=40, deadline=None)
@given(
    shape=WIDE_SHAPES,
    padding=st.lists(st.integers(0, 30), min_size=1, max_size=2),
    prefill=st.one_of(st.integers(1, 40), st.integers(200, 400)),
    rule=RULES,
    keep=KEEP,
    threads=st.integers(1, 2),
    soft_cap=st.sampled_from([None, 0.5]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_tokens_are_those_of_the_reference_where_the_processor_multiplies_bytes(
    shape, padding, prefill, rule, keep, threads, soft_cap, dtype
):
    """Query heads of 32 channels and more are multiplied with codes by other instructions."""
    torch.set_num_threads(threads)
    made = steps(shape, padding, prefill, rule, dtype)
    made.append(1)
    token_keep = torch.tensor([keep[row % len(keep)] for row in range(len(padding))])
    query = made.random(len(padding), made.kv_heads * made.group, 1, made.dim)
    plan = StepPlan(made.cache, rule, levels={"token_keep": token_keep}, backend="fast")
    changes = ScoreChanges(soft_cap)
    call = StepAttention(plan, 0, query, made.key, made.value, changes=changes)
    output = NumbaTokens().prepare(call)()
    candidates, selection = select_keys(call)
    mask = candidates.mask_of(selection).repeat_interleave(made.group, dim=1)
    keys, values = made.key.float(), made.value.float()
    expected = attend_grouped(query.float(), keys, values, mask[:, :, None], None, changes)
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 2e-2}[dtype]
    torch.testing.assert_close(output.float(), expected, atol=tolerance, rtol=0)
