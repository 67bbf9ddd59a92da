# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Nested planes: what is read in fewer bits is the middle of the cell that the rule says, for every width."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sol_hf.selection.nested_planes import (
    GROUP,
    WIDTHS,
    decode,
    encode,
    plane_bytes,
    product,
    width_read,
)


sizes = st.one_of(st.integers(1, 70), st.sampled_from([16, 32, 64, 128, 200]))
dtypes = st.sampled_from([torch.float32, torch.bfloat16, torch.float16, torch.float64])


def scales_of(planes):
    """The scale of every weight, `(outputs, channels)`."""
    flat = planes.scales.float().transpose(1, 2).flatten(0, 1)[: planes.outputs]
    return flat.repeat_interleave(GROUP, dim=1)[:, : planes.channels]


def drawn(outputs, channels, seed, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    sizes = 10.0 ** torch.randint(-6, 4, (outputs, 1), generator=generator)
    return (torch.randn(outputs, channels, generator=generator) * sizes).clamp(-6e4, 6e4).to(dtype)


@settings(max_examples=60, deadline=None)
@given(outputs=sizes, channels=sizes, seed=st.integers(0, 9), dtype=dtypes)
def test_a_weight_is_read_as_the_middle_of_its_cell(outputs, channels, seed, dtype):
    weight = drawn(outputs, channels, seed, dtype)
    planes, exact = encode(weight), weight.float().double()
    scales = scales_of(planes).double()
    for bits in WIDTHS:
        cells = scales * 2 ** (8 - bits)
        number = (exact / cells.clamp(min=1e-300)).floor().clamp(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
        expected = torch.where(scales > 0, (number + 0.5) * cells, 0.0)
        torch.testing.assert_close(decode(planes, bits).double(), expected, rtol=1e-6, atol=0)
        assert ((decode(planes, bits).double() - exact).abs() <= cells / 2 * (1 + 1e-6)).all()


@settings(max_examples=30, deadline=None)
@given(outputs=sizes, channels=sizes)
def test_bytes_are_those_that_are_announced(outputs, channels):
    planes = encode(torch.randn(outputs, channels))
    assert planes.nbytes == plane_bytes(outputs, channels)
    assert plane_bytes(outputs, channels, 4) < plane_bytes(outputs, channels, 5) < plane_bytes(outputs, channels)


def test_a_large_weight_is_cut_for_encoding_and_reads_as_its_parts():
    weight = torch.randn(48, 1 << 17)
    whole, part = decode(encode(weight), 6), decode(encode(weight[32:]), 6)
    assert torch.equal(whole[32:], part)


def test_zeros_stay_zeros():
    weight = torch.zeros(3, 100)
    weight[1, 70:] = 1.0
    for bits in WIDTHS:
        assert decode(encode(weight), bits)[0].eq(0).all() and decode(encode(weight), bits)[1, :64].eq(0).all()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_weight_that_is_not_finite_is_refused(bad):
    weight = torch.randn(20, 70)
    weight[7, 3] = bad
    with pytest.raises(ValueError, match="not finite"):
        encode(weight)


def test_levels_are_rounded_up_to_a_width():
    levels = [2, 3, 4, 4.5, 5, 6, 7, 8, 8.5, 9, 16]
    assert [width_read(level) for level in levels] == [4, 4, 4, 5, 5, 6, 8, 8, None, None, None]


def test_a_width_that_no_plane_has_is_refused():
    with pytest.raises(ValueError, match="in 4, 5, 6, 8 bits, not in 7"):
        decode(encode(torch.randn(4, 4)), 7)


def test_rows_read_their_own_numbers_of_bits():
    planes, x, bias = encode(torch.randn(10, 40)), torch.randn(4, 2, 40), torch.randn(10)
    found = product(x, planes, WIDTHS, bias)
    for row, bits in enumerate(WIDTHS):
        torch.testing.assert_close(found[row], x[row] @ decode(planes, bits).t() + bias)
