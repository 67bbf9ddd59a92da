# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Every Triton kernel has the results of its reference in plain torch, for random shapes, paddings and budgets.

Without a GPU the kernels run in Triton's interpreter, on CPU tensors; with one, compiled.
"""

import contextlib

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode

from sol_hf.selection.channels import keep_top_channels
from sol_hf.selection.pages import choose_pages, page_bounds, page_scores
from sol_hf.selection.ranking import group_queries
from sol_hf.selection.rule import SelectionRule


pytest.importorskip("triton")

from sol_hf.kernels.cuda import attention as triton_attention  # noqa: E402
from sol_hf.kernels.cuda import chunk_attention as triton_chunk
from sol_hf.kernels.cuda import sparse_mlp as triton_mlp
from sol_hf.kernels.cuda import triton_support
from sol_hf.kernels.cuda.attention import attend_pages, attend_pages_reference  # noqa: E402
from sol_hf.kernels.cuda.chunk_attention import attend_chunk, attend_chunk_reference  # noqa: E402
from sol_hf.kernels.cuda.pages import append_tokens, append_tokens_reference, score_pages, score_pages_reference  # noqa: E402
from sol_hf.kernels.cuda.select_pages import select_largest, select_largest_reference  # noqa: E402
from sol_hf.kernels.cuda.sparse_mlp import ACTIVATIONS, gate_up_reference, sparse_gate_up, sparse_projection  # noqa: E402


DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}
"""Half precision: both sides round the output, and the kernel on a GPU the attention weights."""
DTYPES = st.sampled_from(list(TOLERANCE))
FRACTIONS = st.sampled_from([0.05, 0.1, 0.3, 0.5, 0.6, 0.9, 1.0])
quick = settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.too_slow])
long = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def on_grid(generator: torch.Generator, *shape: int) -> torch.Tensor:
    """Multiples of 1/4, whose sums of products are exact whatever their order, so that ties are real ones."""
    return torch.randint(-8, 9, shape, generator=generator) / 4


@st.composite
def caches(draw):
    """Stores, page index, one token's query, padding and budgets."""
    rows, kv_heads, group = draw(st.integers(1, 3)), draw(st.integers(1, 2)), draw(st.sampled_from([1, 2, 3, 4]))
    dim, value_dim = draw(st.sampled_from([(16, 16), (24, 24), (64, 64), (80, 48), (128, 128)]))
    page_size = draw(st.sampled_from([1, 4, 5, 8, 16]))
    length = draw(st.integers(1, 90))
    first = torch.tensor([draw(st.integers(0, length - 1)) for _ in range(rows)])
    dtype, generator = draw(DTYPES), torch.Generator().manual_seed(draw(st.integers(0, 999)))
    slots = length + draw(st.integers(0, 9))
    keys = on_grid(generator, rows, kv_heads, slots, dim).to(dtype)
    values = torch.randn(rows, kv_heads, slots, value_dim, generator=generator).to(dtype)
    keys[:, :, length:], values[:, :, length:] = float("nan"), float("nan")
    for row, padding in enumerate(first.tolist()):
        keys[row, :, :padding], values[row, :, :padding] = float("nan"), float("nan")
    pages = -(-length // page_size)
    upper, lower = page_bounds(keys[:, :, :length], page_size, first, first, pages)
    case = dict(
        query=on_grid(generator, rows, 1, kv_heads * group, dim).to(dtype).transpose(1, 2),
        keys=keys,
        values=values,
        upper=upper,
        lower=lower,
        first=first,
        count=length - first,
        token_keep=torch.tensor([[draw(FRACTIONS)] * 3 for _ in range(rows)]),
    )
    case = {name: x.to(DEVICE) for name, x in case.items()}
    case["token_keep"] = case["token_keep"][:, 1]  # a column of a table of settings
    return case | dict(pages=pages, page_size=page_size, shared=draw(st.booleans()))


def as_mask(chosen: torch.Tensor, chosen_count: torch.Tensor) -> torch.Tensor:
    """The result of `select_largest` as a mask; checks that it is ascending and without repetition."""
    mask = torch.zeros(chosen.shape, dtype=torch.bool)
    for row, line in torch.cartesian_prod(*(torch.arange(n) for n in chosen.shape[:2])).tolist():
        places = chosen[row, line, : chosen_count[row, line]].long()
        assert (places.diff() > 0).all()
        mask[row, line, places] = True
    return mask


def check_attention(case) -> None:
    """Score, select and attend: each step against its reference, given the step before."""
    query, count, size, keep = case["query"], case["count"], case["page_size"], case["token_keep"]
    scores = score_pages(query, case["upper"], case["lower"], keep, count, case["pages"], size, case["shared"])
    expected = score_pages_reference(query, case["upper"], case["lower"], case["pages"], case["shared"])
    chosen, chosen_count = select_largest(scores, keep, count, size, False)
    mask = select_largest_reference(expected, keep, count, size, False)
    assert torch.equal(as_mask(chosen, chosen_count), mask.cpu())
    live = torch.arange(case["pages"], device=DEVICE) * size < count[:, None, None]
    scored = live & (chosen_count < live.sum(dim=-1))[..., None]
    assert torch.equal(scores[scored], expected[scored])
    rest = (case["first"], count, size, query.shape[-1] ** -0.5)
    output = attend_pages(query, case["keys"], case["values"], chosen, chosen_count, *rest)
    wide = (x.double() for x in (query, case["keys"], case["values"]))
    reference = attend_pages_reference(*wide, mask, *rest).to(query.dtype)
    tolerance = TOLERANCE[query.dtype]
    torch.testing.assert_close(output, reference, atol=tolerance, rtol=tolerance)


@quick
@given(caches())
def test_attention_over_the_best_pages(case):
    check_attention(case)


@pytest.mark.slow
@long
@given(caches())
def test_attention_over_the_best_pages_at_length(case):
    check_attention(case)


@quick
@given(caches())
def test_the_choice_is_that_of_the_criterion(case):
    """Without equal scores, since the order of equal scores in `topk` is not defined."""
    case["query"] = torch.randn(case["query"].shape).to(DEVICE)
    upper, lower = (case[name].float() for name in ("upper", "lower"))
    scores = page_scores(group_queries(case["query"], upper.shape[1]), upper, lower)
    rule = SelectionRule(page_size=case["page_size"], selection="group" if case["shared"] else "head")
    length = int((case["first"] + case["count"])[0])
    order, in_use = choose_pages(scores, case["token_keep"], case["first"], case["first"], length, rule)
    expected = torch.zeros(order.shape[:2] + (case["pages"],), dtype=torch.bool, device=DEVICE)
    expected.scatter_(2, order, in_use)
    expected &= torch.arange(case["pages"], device=DEVICE) * rule.page_size < case["count"][:, None, None]
    shared = scores.sum(dim=2) if case["shared"] else scores.flatten(1, 2)
    answer = select_largest(shared.contiguous(), case["token_keep"], case["count"], rule.page_size, False)
    assert torch.equal(as_mask(*answer), expected.cpu())


@quick
@given(st.integers(1, 3), st.integers(1, 70), st.booleans(), DTYPES, st.data())
def test_the_largest_of_a_line(lines, length, absolute, dtype, data):
    values = on_grid(torch.Generator().manual_seed(length), 2, lines, length)
    values[0, 0, 0], values[1, 0, length // 2], values[1, 0, length - 1] = -0.0, float("inf"), float("nan")
    values = values.to(dtype).to(DEVICE)
    fraction = torch.tensor([data.draw(FRACTIONS), data.draw(FRACTIONS)], device=DEVICE)
    count = torch.tensor([length, data.draw(st.integers(1, length))], device=DEVICE)
    answer = select_largest(values, fraction, count, 1, absolute)
    assert torch.equal(as_mask(*answer), select_largest_reference(values, fraction, count, 1, absolute).cpu())


@pytest.mark.parametrize("fraction", [0.05, 0.1, 0.2, 0.3, 0.35, 0.4, 0.6, 0.7, 0.85, 1.0])
def test_the_number_wanted_is_rounded_as_on_the_host(fraction):
    counts = torch.tensor([[1, 2, 7, 10, 20, 100, 4096, 32768, 49999]], device=DEVICE).T
    rows = torch.zeros(len(counts), 1, 1, device=DEVICE)
    keep = torch.full((len(counts),), fraction, device=DEVICE)
    for unit in (1, 8):
        _, wanted = select_largest(rows.expand(-1, 1, 50000).contiguous(), keep, counts[:, 0], unit, False)
        tokens = torch.ceil(keep * counts[:, 0] * (1.0 - 1e-6)).clamp(min=1).long()
        assert torch.equal(wanted[:, 0].long(), -(-tokens // unit))


@quick
@given(st.integers(1, 3), st.sampled_from([1, 3, 8]), DTYPES, st.integers(0, 20), st.data())
def test_tokens_are_appended_to_stores_and_page_index(rows, page_size, dtype, begin, data):
    """One by one, several at once, and in place of earlier tokens, whose keys must then not affect the bounds."""
    kv_heads, dim, value_dim, steps = 2, 20, 16, 4
    first = torch.tensor([data.draw(st.integers(0, begin)) for _ in range(rows)], device=DEVICE)
    room = begin + 4 * steps
    shape = (rows, kv_heads, room)
    stores = [torch.randn(*shape, dim), torch.randn(*shape, value_dim), *torch.randn(2, rows, kv_heads, room, dim)]
    mine = [x.to(dtype).to(DEVICE) for x in stores]
    theirs = [x.clone() for x in mine]
    length = begin
    for new in data.draw(st.lists(st.sampled_from([1, -3, 4, 9]), min_size=1, max_size=steps)):
        if new < 0:
            length = max(begin, length + new)
            continue
        length += min(new, room - length)
        x = torch.randn(rows, new, kv_heads, dim + value_dim).to(dtype).to(DEVICE).transpose(1, 2)
        x = x[:, :, : min(new, length - begin)]
        if not x.shape[2]:
            continue
        arguments = (length - first, page_size)
        append_tokens(x[..., :dim], x[..., dim:], *mine, first, *arguments)
        append_tokens_reference(x[..., :dim], x[..., dim:], *theirs, first, *arguments)
        for a, b in zip(mine, theirs, strict=True):
            assert torch.equal(a, b)


def check_chunk(case, tokens: int) -> None:
    """Attention of the last tokens, against plain torch in double precision."""
    least = int(case["count"].min())
    rows, heads, _, dim = case["query"].shape
    query = torch.randn(rows, min(tokens, least), heads, dim).to(case["query"]).transpose(1, 2)
    rest = (case["first"], case["count"], dim**-0.5)
    output = attend_chunk(query, case["keys"], case["values"], *rest)
    reference = attend_chunk_reference(*(x.double() for x in (query, case["keys"], case["values"])), *rest)
    tolerance = TOLERANCE[query.dtype]
    torch.testing.assert_close(output, reference.to(query.dtype), atol=tolerance, rtol=tolerance)


@quick
@given(caches(), st.sampled_from([1, 3, 16, 30]))
def test_attention_of_the_last_tokens(case, tokens):
    check_chunk(case, tokens)


@pytest.mark.slow
@long
@given(caches(), st.integers(1, 40))
def test_attention_of_the_last_tokens_at_length(case, tokens):
    check_chunk(case, tokens)


def test_the_keys_of_a_chunk_are_cut_into_many_parts():
    """More parts than this text has blocks: some of them are empty, and change nothing."""
    keys = torch.randn(1, 1, 300, 16, device=DEVICE)
    rest = (torch.tensor([7], device=DEVICE), torch.tensor([130], device=DEVICE), 0.25)
    assert triton_attention.number_of_splits(1, 300 // triton_chunk.LEAST_BLOCKS) > 1
    output = attend_chunk(keys[:, :, :5], keys, keys, *rest)
    torch.testing.assert_close(output, attend_chunk_reference(keys[:, :, :5], keys, keys, *rest))


def check_mlp(rows, channels, width, dtype, activation, gated, biased, fractions) -> None:
    """Over the kept channels only: the weights of dropped channels would change the result visibly."""
    make = torch.Generator().manual_seed(channels * width)
    x = torch.randn(rows, channels, generator=make).to(dtype).to(DEVICE)
    gate, up = (torch.randn(2, channels, width, generator=make) * channels**-0.5).to(dtype).to(DEVICE)
    biases = torch.randn(2, width, generator=make).to(dtype).to(DEVICE) if biased else (None, None)
    fraction = torch.tensor(fractions, device=DEVICE)[:, None].expand(-1, 3).contiguous()[:, 1]  # a column of a table
    output = sparse_gate_up(x, fraction, gate, up if gated else None, *biases, activation)
    wide = [None if t is None else t.double() for t in (keep_top_channels(x, fraction), gate, up, *biases)]
    reference = gate_up_reference(wide[0], wide[1], wide[2] if gated else None, *wide[3:], activation).to(dtype)
    torch.testing.assert_close(output, reference, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])


MLPS = given(
    st.integers(1, 4),
    st.sampled_from([16, 33, 96]),
    st.sampled_from([8, 100, 144]),
    DTYPES,
    st.sampled_from(list(ACTIVATIONS)),
    st.booleans(),
    st.booleans(),
    st.lists(FRACTIONS, min_size=4, max_size=4),
)


@quick
@MLPS
def test_mlp_over_kept_channels(rows, channels, width, dtype, activation, gated, biased, fractions):
    check_mlp(rows, channels, width, dtype, activation, gated, biased, fractions[:rows])


@pytest.mark.slow
@long
@MLPS
def test_mlp_over_kept_channels_at_length(rows, channels, width, dtype, activation, gated, biased, fractions):
    check_mlp(rows, channels, width, dtype, activation, gated, biased, fractions[:rows])


@quick
@given(
    st.integers(1, 4),
    st.sampled_from([16, 33, 96]),
    st.sampled_from([8, 100, 144]),
    DTYPES,
    st.booleans(),
    st.lists(FRACTIONS, min_size=4, max_size=4),
)
def test_projection_over_kept_neurons(rows, neurons, outputs, dtype, biased, fractions):
    make = torch.Generator().manual_seed(neurons * outputs)
    x = torch.randn(rows, neurons, generator=make).to(dtype).to(DEVICE)
    weight = (torch.randn(neurons, outputs, generator=make) * neurons**-0.5).to(dtype).to(DEVICE)
    bias = torch.randn(outputs, generator=make).to(dtype).to(DEVICE) if biased else None
    fraction = torch.tensor(fractions[:rows], device=DEVICE)
    expected = keep_top_channels(x, fraction).double() @ weight.double()
    expected = (expected if bias is None else expected + bias.double()).to(dtype)
    found = sparse_projection(x, fraction, weight, bias)
    torch.testing.assert_close(found, expected, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])


def test_an_unknown_activation_is_refused():
    with pytest.raises(ValueError, match="one of silu, gelu, gelu_tanh, relu, got 'tanh'"):
        sparse_gate_up(torch.ones(1, 4), torch.ones(1), torch.ones(4, 4), None, activation="tanh")


def test_weights_of_dropped_channels_are_not_read():
    x = torch.arange(1.0, 9)[None].to(DEVICE)
    gate = torch.ones(8, 16, device=DEVICE)
    gate[:4] = float("nan")
    output = sparse_gate_up(x, torch.tensor([0.5], device=DEVICE), gate, None, activation="relu")
    assert torch.equal(output, torch.full_like(output, 5 + 6 + 7 + 8))


def test_work_is_cut_into_powers_of_two():
    assert triton_attention.number_of_splits(8, 32768) == 32
    assert triton_attention.number_of_splits(32, 32768) == 8
    assert triton_attention.number_of_splits(256, 32768) == 1
    assert triton_attention.number_of_splits(4096, 100) == 1
    assert triton_attention.number_of_splits(1, 16) == 1
    assert triton_mlp.PROGRAMS >= 1024


def test_kernels_are_launched_on_the_device_of_their_tensors(monkeypatch):
    """The current GPU may be another than that of a base."""
    devices, x = [], torch.randn(1, 2, 1, 16, device=DEVICE)

    def note(tensor):
        devices.append(tensor.device)
        return contextlib.nullcontext()

    monkeypatch.setattr(triton_support, "on_device_of", note)
    store, first, count = x.repeat(1, 1, 4, 1), *(torch.tensor([n], device=DEVICE) for n in (0, 1))
    keep = torch.ones(1, device=DEVICE)
    append_tokens(x, x, store, store.clone(), store[:, :, :1].clone(), store[:, :, :1].clone(), first, count, 4)
    scores = score_pages(x, store, store, keep, count, 1, 4, False)
    chosen, chosen_count = select_largest(scores, keep, count, 4, False)
    attend_pages(x, store, store, chosen, chosen_count, first, count, 4, 1.0)
    attend_chunk(x, store, store, first, count, 1.0)
    sparse_gate_up(x[:, 0, 0], keep, torch.randn(16, 8, device=DEVICE), None)
    assert devices == [x.device] * 7  # the MLP chooses its channels by `select_largest`


def test_the_device_of_a_tensor():
    last = max(torch.cuda.device_count() - 1, 0) if torch.cuda.is_available() else 1
    with FakeTensorMode():
        on_last = triton_support.on_device_of(torch.empty(1, device=f"cuda:{last}"))
    assert isinstance(on_last, torch.cuda.device) and on_last.idx == last
    assert isinstance(triton_support.on_device_of(torch.empty(1)), contextlib.nullcontext)
