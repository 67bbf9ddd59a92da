# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Every implementation of the attention of a decode step has the results of the reference."""

import threading
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import scaled_dot_product_attention
from transformers import LlamaConfig
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from sol_hf import ActionSpace, SOLCache
from sol_hf.execution.attention import score_changes
from sol_hf.execution.attention.grouped_queries import attend_grouped
from sol_hf.execution.attention.interface import register_attention
from sol_hf.execution.attention.refresh.operation import RefreshAttention, attend_refresh
from sol_hf.execution.attention.step import masked as masked_attention
from sol_hf.execution.attention.step import numba_pages, operation
from sol_hf.execution.attention.step.gather import attend_selected
from sol_hf.execution.attention.step.operation import StepAttention, attend_step
from sol_hf.execution.plan import RefreshPlan, StepPlan, active_forward
from sol_hf.kernels.cpu import chunk_attention, compilation, sparse_mlp
from sol_hf.kernels.cpu import torch_threads as native_threads
from sol_hf.selection.criterion import CRITERIA
from sol_hf.selection.rule import SelectionRule
from support.operations import assert_same_outputs


SPACE = ActionSpace([0.2, 1.0], [1.0], [16])
needs_numba = pytest.mark.skipif(not numba_pages.has_numba(), reason="numba is not installed")


class Steps:
    """A layer's cache with padded rows that take steps; two of them from the same seed see the same numbers."""

    def __init__(self, shape, page_size, padding, prefill, selection="head", anchors=False, dtype=torch.float32):
        self.kv_heads, self.group, self.dim, self.value_dim = shape
        heads = self.kv_heads * self.group
        sizes = dict(hidden_size=heads * self.dim, num_attention_heads=heads, num_key_value_heads=self.kv_heads)
        self.cache = SOLCache(LlamaConfig(num_hidden_layers=1, **sizes), SPACE, page_size)
        self.rule = SelectionRule(page_size=page_size, selection=selection, anchor_pages=anchors)
        self.dtype, self.padding = dtype, list(padding)
        self.generator = torch.Generator().manual_seed(0)
        self.append(max(padding) + prefill)

    def random(self, *shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=self.generator).to(self.dtype)

    def append(self, tokens: int) -> None:
        rows = len(self.padding)
        key = self.random(rows, self.kv_heads, tokens, self.dim)
        value = self.random(rows, self.kv_heads, tokens, self.value_dim)
        self.cache.update(key, value, 0)
        self.look()

    def look(self) -> None:
        self.cache.set_padding(torch.tensor(self.padding))
        self.key, self.value = self.cache.layers[0].keys, self.cache.layers[0].values

    def crop(self, tokens: int) -> None:
        tokens = min(tokens, self.key.shape[2] - max(self.padding) - 1)
        self.cache.layers[0].crop(-tokens)
        self.look()

    def rows(self, method: str, argument, chosen: list[int]) -> None:
        getattr(self.cache.layers[0], method)(argument)
        self.padding = [self.padding[row] for row in chosen]
        self.look()

    def reorder(self, seed: int) -> None:
        chosen = torch.randint(len(self.padding), (len(self.padding),), generator=torch.Generator().manual_seed(seed))
        self.rows("reorder_cache", chosen, chosen.tolist())

    def repeat(self, times: int) -> None:
        if len(self.padding) * times <= 6:
            chosen = [row for row in range(len(self.padding)) for _ in range(times)]
            self.rows("batch_repeat_interleave", times, chosen)

    def attend(self, backend: str, keep: list[float], scaling: float | None = None) -> torch.Tensor:
        rows = len(self.padding)
        token_keep = torch.tensor([keep[row % len(keep)] for row in range(rows)])
        query = self.random(rows, self.kv_heads * self.group, 1, self.dim)
        plan = StepPlan(self.cache, self.rule, levels={"token_keep": token_keep}, backend=backend)
        return attend_step(StepAttention(plan, 0, query, self.key, self.value, scaling))


SHAPES = st.tuples(st.integers(1, 3), st.integers(1, 4), st.sampled_from([4, 8, 20]), st.sampled_from([4, 16, 7]))
KEEP = st.lists(st.floats(0.01, 1.0), min_size=1, max_size=4)
PADDING = st.lists(st.integers(0, 30), min_size=1, max_size=4)
OPERATIONS = st.one_of(
    st.tuples(st.just("append"), st.integers(1, 20)),
    st.tuples(st.just("append"), st.just(1)),
    st.tuples(st.just("crop"), st.integers(0, 20)),
    st.tuples(st.just("reorder"), st.integers(0, 1000)),
    st.tuples(st.just("repeat"), st.integers(1, 2)),
    st.tuples(st.just("attend"), KEEP),
    st.tuples(st.just("attend"), KEEP),
)


@needs_numba
@settings(max_examples=50, deadline=None)
@given(
    shape=SHAPES,
    page_size=st.integers(1, 9),
    padding=PADDING,
    prefill=st.integers(1, 200),
    selection=st.sampled_from(["head", "group"]),
    anchors=st.booleans(),
    scaling=st.sampled_from([None, 0.3]),
    operations=st.lists(OPERATIONS, max_size=12),
    keep=KEEP,
)
def test_the_kernel_equals_the_reference_after_anything(
    shape, page_size, padding, prefill, selection, anchors, scaling, operations, keep
):
    fast, plain = (Steps(shape, page_size, padding, prefill, selection, anchors) for _ in range(2))
    assert_same_outputs(fast, plain, [*operations, ("append", 1), ("attend", keep)], scaling)
    first = torch.tensor(plain.padding)
    known = (min(plain.padding), max(plain.padding))
    indices = [steps.cache.layers[0].page_index(first, known) for steps in (fast, plain)]
    for ours, theirs in zip(*indices, strict=True):
        for row, padded in enumerate(plain.padding):
            pages = -(-(plain.cache.layers[0].length - padded) // page_size)
            assert torch.equal(ours[row, :, :pages], theirs[row, :, :pages])


@needs_numba
@settings(max_examples=25, deadline=None)
@given(shape=SHAPES, page_size=st.integers(1, 9), padding=PADDING, prefill=st.integers(1, 200), keep=KEEP)
def test_the_kernel_in_bfloat16(shape, page_size, padding, prefill, keep):
    """Against the reference in float32 on the same numbers: scores that are rounded to bfloat16 have ties."""
    steps = Steps(shape, page_size, padding, prefill, dtype=torch.bfloat16)
    wide = Steps(shape, page_size, padding, prefill)
    wide.random = lambda *size: torch.randn(*size, generator=wide.generator).bfloat16().float()
    wide.cache.layers[0].crop(-wide.key.shape[2])
    wide.generator.manual_seed(0)
    wide.append(max(padding) + prefill)
    output = steps.attend("fast", keep)
    assert output.dtype == torch.bfloat16
    torch.testing.assert_close(output.float(), wide.attend("reference", keep), atol=2e-2, rtol=0)


@settings(max_examples=30, deadline=None)
@given(
    shape=SHAPES,
    page_size=st.integers(1, 9),
    padding=PADDING,
    prefill=st.integers(8, 60),
    selection=st.sampled_from(["head", "group"]),
    criterion=st.sampled_from(list(CRITERIA)),
    keep=KEEP,
)
def test_attention_under_a_mask_equals_the_reference(shape, page_size, padding, prefill, selection, criterion, keep):
    masked, plain = (Steps(shape, page_size, padding, prefill) for _ in range(2))
    for steps in (masked, plain):
        steps.rule = SelectionRule(criterion, page_size, selection)
    expected = plain.attend("reference", keep)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(operation, "LEAST_KEYS", 0)
        patch.setattr(numba_pages, "has_numba", lambda: False)
        patch.setattr(masked_attention, "LEAST_SHARE", 0)
        output = masked.attend("auto", keep)
    torch.testing.assert_close(output, expected, atol=1e-5, rtol=0)


@needs_numba
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("padding", [[0, 0], [0, 70]])
def test_dense_steps_through_the_kernel(padding, threads):
    torch.set_num_threads(threads)
    steps = Steps((2, 3, 16, 16), 8, padding, 300)
    function = ALL_ATTENTION_FUNCTIONS[register_attention("sdpa")]
    query = steps.random(2, 6, 1, 16)
    module = SimpleNamespace(layer_idx=0, num_key_value_groups=3, is_causal=True)
    slots = torch.arange(steps.key.shape[2])
    mask = (slots >= torch.tensor(padding)[:, None])[:, None, None]
    outputs = []
    for backend in ("fast", "reference"):
        with active_forward(StepPlan(steps.cache, steps.rule, backend=backend)):
            outputs.append(function(module, query, steps.key, steps.value, mask)[0])
    torch.testing.assert_close(*outputs, atol=1e-5, rtol=0)
    expected = ALL_ATTENTION_FUNCTIONS["sdpa"](module, query, steps.key, steps.value, mask)[0]
    assert torch.equal(outputs[1], expected)


WIDE_SHAPES = st.sampled_from([(1, 1, 16, 16), (3, 3, 64, 64), (2, 7, 32, 16), (1, 9, 80, 48), (2, 4, 128, 112)])


@needs_numba
@settings(max_examples=40, deadline=None)
@given(
    shape=WIDE_SHAPES,
    page_size=st.sampled_from([1, 3, 8, 16, 40, 100]),
    padding=st.lists(st.integers(0, 30), min_size=1, max_size=2),
    prefill=st.one_of(st.integers(1, 40), st.integers(60, 300)),
    threads=st.integers(1, 2),
    soft_cap=st.sampled_from([None, 2.0]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_heads_that_fill_vectors_attend_to_all_keys(shape, page_size, padding, prefill, threads, soft_cap, dtype):
    """Their keys are multiplied 16 at a time, by other instructions."""
    torch.set_num_threads(threads)
    steps = Steps(shape, page_size, padding, prefill, dtype=dtype)
    layer, first_key = steps.cache.layers[0], torch.tensor(padding)
    query = steps.random(len(padding), steps.kv_heads * steps.group, 1, steps.dim)
    pages = -((first_key - layer.length) // page_size)
    kernel = numba_pages.PagedAttention(query, layer, first_key, pages, steps.rule, None, soft_cap)
    output = kernel(query, layer)
    key, value = (x.float().repeat_interleave(steps.group, dim=1) for x in (steps.key, steps.value))
    scores = query.float() @ key.mT * steps.dim**-0.5
    scores = scores if soft_cap is None else soft_cap * (scores / soft_cap).tanh()
    hidden = torch.arange(layer.length) < first_key[:, None]
    expected = scores.masked_fill(hidden[:, None, None], -torch.inf).softmax(dim=-1) @ value
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 2e-2}[dtype]
    torch.testing.assert_close(output.float(), expected.transpose(1, 2), atol=tolerance, rtol=0)


@pytest.mark.parametrize(
    ("length", "keep", "taken"),
    [(31, 0.4, "gather"), (64, 0.4, "masked"), (65, 0.4, "gather"), (65, 0.5, "masked"), (400, 0.5, "masked")],
)
def test_what_auto_takes_without_numba(length, keep, taken, monkeypatch):
    monkeypatch.setattr(numba_pages, "has_numba", lambda: False)
    steps = Steps((2, 3, 8, 8), 8, [0], length)
    plan = StepPlan(steps.cache, steps.rule, levels={"token_keep": torch.tensor([keep])})
    call = StepAttention(plan, 0, steps.random(1, 6, 1, 8), steps.key, steps.value)
    usable, ran = operation.STEP_ATTENTION.usable(call), []
    for name in ("gather", "masked"):
        way = operation.STEP_ATTENTION[name]
        monkeypatch.setattr(way, "prepare", lambda call, name=name: lambda: ran.append(name) or usable[name]())
    attend_step(call)
    assert ran == [taken]


@needs_numba
def test_layers_of_two_dtypes_have_a_kernel_each():
    both = {dtype: Steps((2, 2, 8, 8), 4, [0], 150, dtype=dtype) for dtype in (torch.float32, torch.bfloat16)}
    both[torch.float32].cache.layers += both[torch.bfloat16].cache.layers
    keep = torch.tensor([0.3])
    plan = StepPlan(both[torch.float32].cache, both[torch.float32].rule, levels={"token_keep": keep}, backend="fast")
    for layer, (dtype, steps) in enumerate(both.items()):
        query = steps.random(1, 4, 1, 8)
        output = attend_step(StepAttention(plan, layer, query, steps.key, steps.value))
        plain = Steps((2, 2, 8, 8), 4, [0], 150)
        plain.cache.layers[0].crop(-150)
        plain.cache.update(steps.key.float(), steps.value.float(), 0)
        plain.look()
        alone = StepPlan(plain.cache, plain.rule, levels={"token_keep": keep})
        expected = attend_selected(StepAttention(alone, 0, query.float(), plain.key, plain.value))
        assert output.dtype == dtype
        torch.testing.assert_close(output.float(), expected, atol=2e-2 if layer else 1e-5, rtol=0)


@needs_numba
def test_of_equal_pages_the_first_are_read():
    steps = Steps((1, 2, 4, 4), 4, [0], 40)
    steps.cache.layers[0]._key_store.zero_()
    expected = steps.value[0, 0, :12].mean(dim=0)  # three pages of ten
    torch.testing.assert_close(steps.attend("fast", [0.3])[0, 0], expected.expand(2, 4))


@needs_numba
@pytest.mark.parametrize("keys", [7, slice(None)])
def test_nan_comes_out_and_ends(keys):
    steps = Steps((1, 2, 4, 4), 4, [0], 40)
    steps.cache.layers[0]._key_store[0, 0, keys] = float("nan")
    assert steps.attend("fast", [1.0]).isnan().all()
    steps.attend("fast", [0.3])


@needs_numba
def test_python_threads_do_not_disturb_each_other():
    torch.set_num_threads(2)
    cases = [Steps((2, 2, 8, 8), 4, [0], 150 + 10 * n) for n in range(4)]
    states = [steps.generator.get_state() for steps in cases]
    expected = [steps.attend("reference", [0.3]) for steps in cases]
    worst = [0.0] * len(cases)

    def work(number: int) -> None:
        torch.set_num_threads(2)
        for _ in range(10):
            cases[number].generator.set_state(states[number])
            difference = cases[number].attend("fast", [0.3]) - expected[number]
            worst[number] = max(worst[number], difference.abs().max().item())

    workers = [threading.Thread(target=work, args=(number,)) for number in range(len(cases))]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert max(worst) < 1e-5


@needs_numba
def test_without_an_openmp_library_one_thread_does_all(monkeypatch):
    torch.set_num_threads(2)
    monkeypatch.setattr(native_threads, "_parallel_region", lambda: None)
    fast, plain = (Steps((2, 2, 8, 8), 4, [0, 3], 150) for _ in range(2))
    torch.testing.assert_close(fast.attend("fast", [0.3]), plain.attend("reference", [0.3]), atol=1e-5, rtol=0)


@pytest.mark.parametrize("backend", ["auto", "reference", "fast"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_backends_agree_on_long_texts(backend, dtype):
    steps, plain = (Steps((2, 3, 8, 8), 8, [0, 17], 400, dtype=dtype) for _ in range(2))
    torch.testing.assert_close(
        steps.attend(backend, [0.4, 0.1]), plain.attend("reference", [0.4, 0.1]), atol=1e-5, rtol=0
    )


def test_short_texts_and_missing_numba_take_the_reference(monkeypatch):
    for length, backend in ((operation.LEAST_KEYS - 1, "auto"), (400, "fast")):
        monkeypatch.setattr(numba_pages, "has_numba", lambda: False)
        steps, plain = (Steps((2, 3, 8, 8), 8, [0], length) for _ in range(2))
        query = plain.random(1, 6, 1, 8)
        keep = torch.tensor([0.4])
        plan = StepPlan(plain.cache, plain.rule, levels={"token_keep": keep})
        expected = attend_selected(StepAttention(plan, 0, query, plain.key, plain.value))
        assert torch.equal(steps.attend(backend, [0.4]), expected)


@needs_numba
@pytest.mark.parametrize(
    "error", [ImportError("Numba needs NumPy 2.3 or less."), RuntimeError("cannot cache function: no locator")]
)
def test_a_numba_that_fails_is_done_without(monkeypatch, error):
    def fail(*args):
        raise error

    monkeypatch.setattr(compilation.importlib, "import_module", fail)
    compilation.loads.cache_clear()
    try:
        with pytest.warns(RuntimeWarning, match=f"without compiled code.*{error}") as warned:
            outputs = [Steps((2, 3, 8, 8), 8, [0], 400).attend(backend, [0.4]) for backend in ("auto", "fast")]
            assert not numba_pages.has_numba() and not sparse_mlp.has_numba()
    finally:
        compilation.loads.cache_clear()
    assert len(warned) == 1
    expected = Steps((2, 3, 8, 8), 8, [0], 400).attend("reference", [0.4])
    for output in outputs:
        torch.testing.assert_close(output, expected, atol=1e-5, rtol=0)


@needs_numba
def test_short_texts_compile_nothing(monkeypatch):
    monkeypatch.setattr(numba_pages, "has_numba", None)
    output = Steps((2, 3, 8, 8), 8, [0], operation.LEAST_KEYS - 1).attend("auto", [0.4])  # calls no `has_numba`
    assert output.shape == (1, 1, 6, 8)


@pytest.mark.parametrize("heads", [1, 6])
def test_chunk_attention_is_that_over_repeated_keys(heads):
    query, key, value = torch.randn(2, 6, 5, 8), torch.randn(2, 2, 30, 8), torch.randn(2, 2, 30, 8)
    mask = torch.rand(2, heads, 5, 30) < 0.7
    expected = scaled_dot_product_attention(
        query, key.repeat_interleave(3, dim=1), value.repeat_interleave(3, dim=1), attn_mask=mask
    )
    torch.testing.assert_close(attend_grouped(query, key, value, mask, None), expected.transpose(1, 2))


@needs_numba
@settings(max_examples=60, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(1, 20), st.integers(1, 20)),
    padding=PADDING,
    tokens=st.integers(1, 20),
    before=st.one_of(st.integers(0, 200), st.sampled_from([64, 128, 600])),
    window=st.sampled_from([5, 1000]),
    shares_mask=st.booleans(),
    scaling=st.sampled_from([None, 0.3, 5.0]),
    threads=st.integers(1, 3),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    seed=st.integers(0, 9),
)
def test_the_packed_kernel_equals_torch(
    shape, padding, tokens, before, window, shares_mask, scaling, threads, dtype, seed
):
    torch.manual_seed(seed)
    torch.set_num_threads(threads)
    (kv_heads, group, dim, value_dim), rows, slots = shape, len(padding), max(padding) + before + tokens
    query = torch.randn(rows, tokens, kv_heads * group, dim).transpose(1, 2)
    key = torch.randn(rows, kv_heads, slots + 9, dim)[:, :, :slots]
    value = torch.randn(rows, kv_heads, slots + 5, value_dim)[:, :, :slots]
    query, key, value = (x.to(dtype) for x in (query, key, value))
    slot, place = torch.arange(slots), torch.arange(slots - tokens, slots)[:, None]
    mask = (slot <= place) & (slot > place - window) & (slot >= torch.tensor(padding)[:, None, None])
    mask = mask[:1, None] if shares_mask else mask[:, None]
    assert chunk_attention.supports(query, key, value, mask)
    found = chunk_attention.attend_chunk(query, key, value, mask, scaling)
    expected = attend_grouped(query.float(), key.float(), value.float(), mask, scaling)
    rounding = 1e-5 if dtype == torch.float32 else 2**-8
    assert found.dtype == dtype
    torch.testing.assert_close(found.float(), expected, atol=1e-5, rtol=rounding)


@pytest.mark.parametrize(
    "tasks, blocks, parts", [(2, 99, 1), (3, 99, 6), (3, 9, 2), (1, 1, 1), (17, 99, 1), (5, 0, 1)]
)
def test_keys_are_cut_into_parts_where_tasks_are_few(tasks, blocks, parts):
    torch.set_num_threads(2)
    assert chunk_attention.number_of_splits(tasks, blocks) == parts


@pytest.mark.parametrize("other", ["float16", "mask of heads", "gradient", "strided"])
def test_what_the_packed_kernel_leaves_to_torch(other, monkeypatch):
    monkeypatch.setattr(chunk_attention, "attend_chunk", None)
    query, key, value = torch.randn(2, 6, 5, 8), torch.randn(2, 2, 30, 8), torch.randn(2, 2, 30, 8)
    mask = torch.ones(2, 1, 5, 30, dtype=torch.bool)
    if other == "float16":
        query, key, value = (x.half() for x in (query, key, value))
    elif other == "mask of heads":
        mask = mask.expand(2, 6, 5, 30)
    elif other == "gradient":
        query.requires_grad_()
    else:
        key = torch.randn(2, 2, 30, 16)[..., ::2]
    expected = attend_grouped(query, key, value, mask, None)
    plan = RefreshPlan(SimpleNamespace(layers=[None]), backend="fast")
    call = RefreshAttention(plan, 0, query, key, value, mask, None)
    assert torch.equal(attend_refresh(call), expected)


def test_chunk_attention_takes_any_layout_of_the_output(monkeypatch):
    """Memory-efficient attention on CUDA returns heads and tokens swapped in memory."""

    def swapped(*args, **kwargs):
        return scaled_dot_product_attention(*args, **kwargs).transpose(1, 2).contiguous().transpose(1, 2)

    arguments = torch.randn(2, 6, 5, 8), torch.randn(2, 2, 30, 8), torch.randn(2, 2, 30, 8)
    mask = torch.rand(2, 1, 5, 30) < 0.7
    expected = attend_grouped(*arguments, mask, None)
    monkeypatch.setattr(score_changes, "scaled_dot_product_attention", swapped)
    assert torch.equal(attend_grouped(*arguments, mask, None), expected)
