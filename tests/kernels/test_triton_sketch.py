# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The Triton kernels of the index of single tokens against plain torch: codes, scores, choice.

Without a GPU the kernels run in Triton's interpreter, on CPU tensors; with one, compiled.
"""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sol_hf.cache.sketch_index import SketchIndex
from sol_hf.selection.sketch import INDEX_BITS, encode, unpack


pytest.importorskip("triton")

from sol_hf.kernels.cuda import select_tokens as triton_select  # noqa: E402
from sol_hf.kernels.cuda.score_tokens import score_tokens  # noqa: E402
from sol_hf.kernels.cuda.select_tokens import select_tokens, select_tokens_reference  # noqa: E402
from sol_hf.kernels.cuda.sketch_index import encode_tokens  # noqa: E402


DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = st.sampled_from([torch.float32, torch.bfloat16, torch.float16])
BITS = st.sampled_from(list(INDEX_BITS))
DIMS = st.sampled_from([7, 16, 20, 64, 80])
quick = settings(max_examples=3, deadline=None, suppress_health_check=list(HealthCheck))
long = settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))


def index_of(keys: torch.Tensor, first: torch.Tensor, slots: int, bits: int) -> SketchIndex:
    """The index of the first `slots` keys, by plain torch, with storage for all."""
    index, known = SketchIndex(bits), (int(first.min()), int(first.max()))
    index.reserve(keys, keys.shape[2])
    if slots:
        index.update(keys[:, :, :slots], keys.shape[2], first, known)
    return index


def check_codes(padding, before, tokens, dim, bits, dtype, seed) -> None:
    """Codes, scales and means of new keys equal those of all keys, to the bit, in every row."""
    torch.manual_seed(seed)
    first, begin = torch.tensor(padding, device=DEVICE), max(padding) + before
    slots = begin + tokens
    keys = (torch.randn(len(padding), 2, slots + 3, dim) + 3 * torch.randn(dim)).to(DEVICE, dtype)
    keys[:, :, slots:] = float("nan")
    mine, right = index_of(keys, first, begin, bits), index_of(keys, first, slots, bits)
    packed, scale, mean = mine.stores
    encode_tokens(keys, mean, packed, scale, first, slots - first, tokens, bits)
    assert torch.equal(mean, right.mean)
    for row, skipped in enumerate(padding):
        for found, expected in zip(mine.stores[:2], right.stores[:2], strict=True):
            assert torch.equal(found[row, :, skipped:slots], expected[row, :, skipped:slots])


CODES = given(
    padding=st.lists(st.integers(0, 9), min_size=1, max_size=3),
    before=st.one_of(st.integers(1, 90), st.sampled_from([1, 15, 31, 63, 64])),
    tokens=st.one_of(st.just(1), st.integers(1, 20)),
    dim=DIMS,
    bits=BITS,
    dtype=DTYPES,
    seed=st.integers(0, 9),
)


@quick
@CODES
def test_new_keys_get_the_codes_of_plain_torch(**case):
    check_codes(**case)


@pytest.mark.slow
@long
@CODES
def test_new_keys_get_the_codes_of_plain_torch_at_length(**case):
    check_codes(**case)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_the_first_token_of_a_row_equals_its_mean(dtype):
    """So its scale is the smallest one, which float16 has to hold, too."""
    keys = torch.randn(1, 1, 4, 8, device=DEVICE).to(dtype)
    index = index_of(keys, torch.zeros(1, dtype=torch.long, device=DEVICE), 0, 4)
    packed, scale, mean = index.stores
    ends = (torch.tensor([0], device=DEVICE), torch.tensor([1], device=DEVICE))
    encode_tokens(keys, mean, packed, scale, *ends, 1, 4)
    assert torch.equal(mean[0, 0, 0], keys[0, 0, 0].float()) and scale[0, 0, 0] > 0
    codes, expected = encode(keys[:, :, :1], mean, 4)
    assert torch.equal(unpack(packed[:, :, :1], 4, 8), codes) and torch.equal(scale[:, :, :1], expected)
    assert (codes == 0).all()


def check_scores(padding, length, group, dim, bits, dtype, shared, ends, seed) -> None:
    torch.manual_seed(seed)
    first, slots = torch.tensor(padding, device=DEVICE), max(padding) + length
    keys = torch.randn(len(padding), 2, slots + 3, dim).to(DEVICE, dtype)
    query = torch.randn(len(padding), 1, 2 * group, dim).to(DEVICE, dtype).transpose(1, 2)
    index, count = index_of(keys, first, slots, bits), slots - first
    wanted = torch.full_like(count, 5)
    found = score_tokens(
        query, index.packed, index.scale, first, count, wanted, bits, list(ends), 0.3, shared
    ).double()
    codes, scale = index.codes(dim).double(), index.scale[:, :, None, :slots].double()
    exact = (query.double().view(len(padding), 2, group, dim) @ codes.transpose(2, 3)) * scale
    for row, skipped in enumerate(padding):
        if count[row] > 5:
            mine = exact[row, :, :, skipped:]
            mine = (mine * 0.3).softmax(dim=-1).sum(dim=1) if shared else mine.flatten(0, 1)
            mine[:, : ends[0]] = mine[:, max(int(count[row]) - ends[1], 0) :] = float("inf")
            error = 1e-5 if shared else 1e-6 * float(exact.abs().max())
            torch.testing.assert_close(found[row, :, : count[row]], mine, atol=error, rtol=1e-5)


SCORES = given(
    padding=st.lists(st.integers(0, 9), min_size=1, max_size=3),
    length=st.one_of(st.integers(1, 300), st.sampled_from([128, 129])),
    group=st.integers(1, 5),
    dim=DIMS,
    bits=BITS,
    dtype=DTYPES,
    shared=st.booleans(),
    ends=st.tuples(st.integers(0, 6), st.integers(2, 6)),
    seed=st.integers(0, 9),
)


@quick
@SCORES
def test_scores_are_those_of_the_codes(**case):
    check_scores(**case)


@pytest.mark.slow
@long
@SCORES
def test_scores_are_those_of_the_codes_at_length(**case):
    check_scores(**case)


def check_choice(rows, lists, pool, length, kind, block, seed) -> None:
    """Blocks shorter than the lists, equal scores, infinite ones and NaN."""
    make = torch.Generator().manual_seed(seed)
    scores = torch.randn(rows, lists * pool, length, generator=make)
    if kind != "random":
        scores = (scores * 2).round() / 2
    if kind == "wild":
        scores[torch.rand(scores.shape, generator=make) < 0.1] = float("inf")
        scores[torch.rand(scores.shape, generator=make) < 0.1] = float("-inf")
        scores[torch.rand(scores.shape, generator=make) < 0.02] = float("nan")
        scores[..., 0] = -0.0
    count = torch.randint(1, length + 1, (rows,), generator=make).to(DEVICE)
    wanted = torch.randint(1, length + 1, (rows,), generator=make).to(DEVICE)
    scores = scores.to(DEVICE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(triton_select, "BLOCK", block)
        chosen, number = select_tokens(scores, wanted.int(), count, pool)
    mask = torch.zeros(scores.shape, dtype=torch.bool, device=DEVICE)
    for row, line in torch.cartesian_prod(torch.arange(rows), torch.arange(lists * pool)).tolist():
        places = chosen[row, line, : number[row, line]].long()
        assert (places.diff() > 0).all()
        mask[row, line, places] = True
    assert torch.equal(mask, select_tokens_reference(scores, wanted, count, pool))


CHOICES = given(
    rows=st.integers(1, 2),
    lists=st.integers(1, 2),
    pool=st.integers(1, 4),
    length=st.one_of(st.integers(1, 300), st.sampled_from([64, 128])),
    kind=st.sampled_from(["random", "equal", "wild"]),
    block=st.sampled_from([64, 2048]),
    seed=st.integers(0, 99),
)


@quick
@CHOICES
def test_lists_choose_together(**case):
    check_choice(**case)


@pytest.mark.slow
@long
@CHOICES
def test_lists_choose_together_at_length(**case):
    check_choice(**case)


@pytest.mark.slow
def test_more_scores_than_one_program_could_choose_from():
    """`select_largest` ends at 65,535."""
    scores = torch.randn(1, 2, 70_000, device=DEVICE)
    count, wanted = torch.tensor([70_000], device=DEVICE), torch.tensor([3], device=DEVICE)
    chosen, number = select_tokens(scores, wanted, count, 2)
    expected = scores.flatten().topk(6).indices.sort().values
    found = torch.cat([line * 70_000 + chosen[0, line, : number[0, line]].long() for line in range(2)])
    assert torch.equal(found, expected)
