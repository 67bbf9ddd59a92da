# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Attention over single tokens by the Triton kernels has the results of the reference; without a GPU, interpreted."""

import dataclasses

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from execution.test_paged_attention import KEEP, OPERATIONS, PADDING, SHAPES, Steps
from sol_hf.execution.attention.step.operation import STEP_ATTENTION, StepAttention, attend_step
from sol_hf.execution.attention.step.selected_keys import select_keys
from sol_hf.execution.attention.step.triton_tokens import TritonTokens
from sol_hf.execution.plan import StepPlan
from sol_hf.kernels.cuda import triton_support
from sol_hf.selection.rule import SelectionRule
from sol_hf.selection.sketch import INDEX_BITS


pytest.importorskip("triton")
pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="these caches are on the CPU")

from sol_hf.kernels.cuda import attention as triton_attention  # noqa: E402
from support.operations import assert_same_outputs  # noqa: E402


quick = settings(max_examples=3, deadline=None, suppress_health_check=list(HealthCheck))
long = settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
RULES = st.builds(
    SelectionRule,
    criterion=st.just("sketch"),
    selection=st.sampled_from(["head", "group", "layer"]),
    sink_tokens=st.integers(0, 6),
    window_tokens=st.integers(0, 6),
    index_bits=st.sampled_from(list(INDEX_BITS)),
)


@pytest.fixture(autouse=True)
def kernels_run_here(monkeypatch):
    monkeypatch.setattr(triton_support, "DEVICES", ("cuda", "cpu"))


def steps(shape, padding, prefill, rule, dtype=torch.float32) -> Steps:
    made = Steps(shape, 8, padding, prefill, dtype=dtype)
    made.rule = rule
    return made


def check_operations(shape, padding, prefill, rule, scaling, operations, keep) -> None:
    """The index, too, is to the bit what plain torch makes of the keys."""
    fast, plain = (steps(shape, padding, prefill, rule) for _ in range(2))
    assert_same_outputs(fast, plain, [*operations, ("append", 1), ("attend", keep)], scaling)
    known = torch.tensor(plain.padding), (min(plain.padding), max(plain.padding))
    ours, theirs = (made.cache.layers[0].sketch(rule.index_bits, *known) for made in (fast, plain))
    slots = plain.cache.layers[0].length
    for row, first in enumerate(plain.padding):
        assert torch.equal(ours.packed[row, :, first:slots], theirs.packed[row, :, first:slots])
        assert torch.equal(ours.scale[row, :, first:slots], theirs.scale[row, :, first:slots])


CASES = given(
    shape=SHAPES,
    padding=PADDING,
    prefill=st.integers(1, 150),
    rule=RULES,
    scaling=st.sampled_from([None, 0.3]),
    operations=st.lists(OPERATIONS, max_size=4),
    keep=KEEP,
)


@quick
@CASES
def test_the_kernels_equal_the_reference_after_anything(**case):
    check_operations(**case)


@pytest.mark.slow
@long
@CASES
def test_the_kernels_equal_the_reference_after_anything_at_length(**case):
    check_operations(**case)


@pytest.mark.slow
@long
@given(shape=SHAPES, padding=PADDING, prefill=st.integers(1, 200), rule=RULES, keep=KEEP, half=st.booleans())
def test_the_choice_in_half_precision_is_that_of_the_criterion(shape, padding, prefill, rule, keep, half):
    made = steps(shape, padding, prefill, rule, torch.float16 if half else torch.bfloat16)
    check_choice(made, keep)


@pytest.mark.parametrize("selection", ["head", "layer"])
def test_the_choice_is_that_of_the_criterion(selection):
    rule = SelectionRule("sketch", selection=selection)
    check_choice(steps((2, 2, 8, 8), [0, 5], 100, rule, torch.bfloat16), [0.2, 0.5])


def check_choice(made: Steps, keep: list[float]) -> None:
    """The tokens that attention is given are those that the criterion selects."""
    token_keep = torch.tensor([keep[row % len(keep)] for row in range(len(made.padding))])
    query = made.random(len(made.padding), made.kv_heads * made.group, 1, made.dim)
    plan = StepPlan(made.cache, made.rule, levels={"token_keep": token_keep}, backend="fast")
    call, seen = StepAttention(plan, 0, query, made.key, made.value), []
    attend = triton_attention.attend_pages
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(triton_attention, "attend_pages", lambda *given: seen.append(given) or attend(*given))
        output = attend_step(call)
    candidates, selection = select_keys(call)
    expected = candidates.mask_of(selection)
    _, _, _, chosen, chosen_count, *_ = seen[0]
    found = torch.zeros_like(expected)
    for row, first in enumerate(made.padding):
        for head in range(chosen.shape[1]):
            found[row, head, first + chosen[row, head, : chosen_count[row, head]].long()] = True
    assert torch.equal(found, expected)
    exact = STEP_ATTENTION["gather"].prepare(dataclasses.replace(call, query=query.clone()))()
    torch.testing.assert_close(output, exact, atol=2e-2, rtol=2e-2)


@pytest.mark.parametrize(
    "changed, is_run",
    [({}, True), ({"selection": "head", "index_bits": 3}, True), ({"criterion": "quest", "selection": "head"}, False)],
)
def test_what_the_kernels_run(changed, is_run):
    rule = dataclasses.replace(SelectionRule("sketch", selection="layer"), **changed)
    made = steps((2, 2, 8, 8), [0], 50, rule)
    plan = StepPlan(made.cache, rule, levels={"token_keep": torch.tensor([0.5])}, backend="fast")
    query = made.random(1, 4, 1, 8)
    assert (TritonTokens().prepare(StepAttention(plan, 0, query, made.key, made.value)) is not None) is is_run
    assert TritonTokens().prepare(StepAttention(plan, 0, query, made.key.clone(), made.value)) is None
    dense = StepPlan(made.cache, rule, backend="fast")
    assert TritonTokens().prepare(StepAttention(dense, 0, query, made.key, made.value)) is None
