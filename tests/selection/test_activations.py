# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The two MLP axes as pure functions: exact values, ties, dtypes, rounding."""

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sol_hf.selection.channels import keep_top_channels, kept_count
from sol_hf.selection.quantizers import fake_quantize


DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


@pytest.mark.parametrize("twentieths", range(1, 21))
def test_kept_count_is_the_exact_ceiling(twentieths):
    totals = torch.arange(1, 5001)
    fraction = torch.tensor(twentieths / 20)
    expected = [math.ceil(Fraction(twentieths, 20) * total) for total in totals.tolist()]
    assert kept_count(fraction, totals).tolist() == expected


@pytest.mark.parametrize("twentieths", [1, 7, 12, 19, 20])
def test_kept_count_of_an_int_is_that_of_a_tensor(twentieths):
    fraction = torch.tensor([twentieths / 20, 1.0])
    for total in (1, 3, 20, 576, 4999):
        assert torch.equal(kept_count(fraction, total), kept_count(fraction, torch.tensor([total, total])))


def test_kept_count_is_at_least_one_and_whole():
    count = kept_count(torch.tensor([0.01, 1.0]), torch.tensor([0, 7]))
    assert count.tolist() == [1, 7]
    assert count.dtype == torch.long


def naive_top_channels(vector: list[float], fraction: Fraction) -> list[float]:
    """By magnitude; of equal magnitudes the first channels."""
    wanted = max(1, math.ceil(fraction * len(vector)))
    order = sorted(range(len(vector)), key=lambda i: (-abs(vector[i]), i))
    return [x if i in order[:wanted] else 0.0 for i, x in enumerate(vector)]


def test_keep_top_channels_exact_values():
    x = torch.tensor([[1.0, -4.0, 3.0, -2.0], [0.5, 0.25, -0.75, 0.0]])
    kept = keep_top_channels(x, torch.tensor([0.5, 0.25]))
    assert kept.tolist() == [[0, -4, 3, 0], [0, 0, -0.75, 0]]


def test_equal_magnitudes_keep_the_first_channels_and_no_more():
    x = torch.tensor([[2.0, -2.0, 2.0, -2.0, 1.0]])
    assert keep_top_channels(x, torch.tensor([0.6])).tolist() == [[2, -2, 2, 0, 0]]
    zeros = torch.zeros(1, 4)
    assert keep_top_channels(zeros, torch.tensor([0.5])).tolist() == [[0, 0, 0, 0]]


@settings(max_examples=150, deadline=None)
@given(
    channels=st.integers(1, 40),
    rows=st.integers(1, 3),
    middle=st.sampled_from([(), (1,), (3,), (2, 2)]),
    twentieths=st.lists(st.integers(1, 20), min_size=3, max_size=3),
    seed=st.integers(0, 10**6),
)
def test_keep_top_channels_is_the_naive_one(channels, rows, middle, twentieths, seed):
    # Whole numbers from a small range: ties are frequent.
    x = torch.randint(-4, 5, (rows, *middle, channels), generator=torch.Generator().manual_seed(seed)).float()
    kept = keep_top_channels(x, torch.tensor([n / 20 for n in twentieths[:rows]]))
    for row in range(rows):
        for got, vector in zip(kept[row].reshape(-1, channels), x[row].reshape(-1, channels), strict=True):
            assert got.tolist() == naive_top_channels(vector.tolist(), Fraction(twentieths[row], 20))


@pytest.mark.parametrize("dtype", DTYPES)
def test_keep_top_channels_keeps_dtype_and_values(dtype):
    x = torch.randn(2, 1, 50, dtype=dtype)
    kept = keep_top_channels(x, torch.tensor([0.6, 1.0]))
    assert kept.dtype == dtype
    assert (kept != 0).sum(-1).flatten().tolist() == [30, 50]
    assert torch.equal(kept[0][kept[0] != 0], x[0][kept[0] != 0])
    assert torch.equal(kept[1], x[1])


def test_the_input_is_not_changed():
    x = torch.randn(1, 10)
    before = x.clone()
    keep_top_channels(x, torch.tensor([0.3]))
    fake_quantize(x, torch.tensor([4.0]))
    assert torch.equal(x, before)


def naive_quantize(vector: list[float], bits: int) -> list[float]:
    if bits >= 16:
        return vector
    limit = 2 ** (bits - 1) - 1
    scale = max(max(abs(x) for x in vector), 1e-8) / limit
    return [max(-limit, min(limit, round(x / scale))) * scale for x in vector]


def test_fake_quantize_exact_values():
    x = torch.tensor([[7.0, -3.4, 0.6, 0.4], [1.0, -1.0, 0.4, 0.6]])
    assert fake_quantize(x, torch.tensor([4.0, 2.0])).tolist() == [[7, -3, 1, 0], [1, -1, 0, 1]]


def test_fake_quantize_rounds_half_to_even():
    x = torch.tensor([[7.0, 0.5, 1.5, 2.5, -0.5, -1.5]])
    assert fake_quantize(x, torch.tensor([4.0])).tolist() == [[7, 0, 2, 2, 0, -2]]


@pytest.mark.parametrize("bits", range(2, 17))
def test_fake_quantize_is_the_naive_one(bits):
    x = torch.randn(2, 3, 31, dtype=torch.float32)
    quantized = fake_quantize(x, torch.tensor([float(bits)] * 2))
    expected = torch.tensor([[naive_quantize(token, bits) for token in row] for row in x.tolist()])
    scale = x.abs().amax(-1, keepdim=True) / (2 ** (bits - 1) - 1)
    # A value on the edge between two steps may round either way in float32.
    off = ((quantized - expected).abs() > 1e-5).float().mean()
    assert ((quantized - expected).abs() <= scale * 1.001).all()
    assert off <= 0.01
    assert all(len(token.unique()) <= 2**bits - 1 for token in quantized.flatten(0, 1))


@pytest.mark.parametrize("bits", range(2, 16))
def test_the_error_is_at_most_half_a_step(bits):
    x = torch.randn(4, 200)
    scale = x.abs().amax(-1, keepdim=True) / (2 ** (bits - 1) - 1)
    error = (fake_quantize(x, torch.full((4,), float(bits))) - x).abs()
    assert (error <= scale * 0.5 + 1e-6).all()
    assert error.max() > 0


@pytest.mark.parametrize("dtype", DTYPES)
def test_sixteen_bits_are_the_identity_and_dtypes_stay(dtype):
    x = torch.randn(2, 1, 33, dtype=dtype)
    quantized = fake_quantize(x, torch.tensor([16, 5]))
    assert quantized.dtype == dtype
    assert torch.equal(quantized[0], x[0])
    assert not torch.equal(quantized[1], x[1])
    torch.testing.assert_close(quantized[1], fake_quantize(x[1:].float(), torch.tensor([5.0]))[0].to(dtype))


def test_half_precision_is_quantized_in_float32():
    x = torch.tensor([[3.0, 0.1]], dtype=torch.bfloat16)
    step = 3.0 / 127
    expected = torch.tensor([[3.0, round(float(x[0, 1]) / step) * step]]).to(torch.bfloat16)
    assert torch.equal(fake_quantize(x, torch.tensor([8.0])), expected)


def test_a_zero_token_stays_zero():
    assert fake_quantize(torch.zeros(1, 5), torch.tensor([3.0])).tolist() == [[0] * 5]


def test_tokens_are_scaled_on_their_own():
    x = torch.tensor([[[100.0, 1.0], [1.0, 0.5]]])
    quantized = fake_quantize(x, torch.tensor([3.0]))
    torch.testing.assert_close(quantized, torch.tensor([[[100.0, 0.0], [1.0, 2 / 3]]]))
