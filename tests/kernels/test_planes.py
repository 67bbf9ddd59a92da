# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The compiled product with nested planes against the reference, which decodes the weight first."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sol_hf.kernels.cpu import compilation
from sol_hf.kernels.cpu import planes as kernel
from sol_hf.selection.nested_planes import WIDTHS, NestedPlanes, decode, encode, product


pytestmark = pytest.mark.skipif(not compilation.loads("numba_planes"), reason="numba is not installed")
sizes = st.one_of(st.integers(1, 70), st.sampled_from([16, 32, 64, 96, 200, 576]))


@settings(max_examples=50, deadline=None)
@given(
    lines=st.one_of(st.integers(1, 9).map(lambda n: (n,)), st.sampled_from([(3, 1), (2, 5), (33,)])),
    channels=sizes,
    outputs=sizes,
    bits=st.sampled_from(WIDTHS),
    bias=st.booleans(),
    is_strided=st.booleans(),
    threads=st.integers(1, 2),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    seed=st.integers(0, 9),
)
def test_products_equal_those_of_the_decoded_weight(
    lines, channels, outputs, bits, bias, is_strided, threads, dtype, seed
):
    torch.manual_seed(seed)
    planes, offset = encode(torch.randn(outputs, channels)), torch.randn(outputs).to(dtype) if bias else None
    x = torch.randn(*lines, 2 * channels)[..., ::2] if is_strided else torch.randn(*lines, channels)
    x = (x + seed % 3).to(dtype)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert kernel.supports(x, planes)
        found, reference = kernel.multiply(x, planes, bits, offset), product(x, planes, bits, offset)
    finally:
        torch.set_num_threads(before)
    assert found.dtype == reference.dtype == dtype and found.shape == reference.shape
    exact = x.double() @ decode(planes, bits).double().t() + (0 if offset is None else offset.double())
    rounding = {torch.float32: 1e-6, torch.bfloat16: 2**-8}[dtype]
    summed = float((x.double().abs() @ decode(planes, bits).double().abs().t()).max())
    torch.testing.assert_close(found.double(), exact, atol=1e-6 * summed, rtol=rounding)


@pytest.mark.parametrize("bits", [4, 8])
def test_a_processor_without_dot_products_of_bytes_multiplies_in_float32(bits, monkeypatch):
    """The same on every processor: also where the other kernels run."""
    from sol_hf.kernels.cpu import numba_plane_rows, numba_planes

    monkeypatch.setitem(numba_planes.KERNELS, bits, numba_planes.kernel_of(bits, has_dot_products=False))
    for name, made in zip(("prepare_rows", "multiply_rows"), numba_plane_rows.kernels_of(False), strict=True):
        monkeypatch.setattr(numba_plane_rows, name, made)
    for lines, outputs, channels in ((1, 40, 70), (9, 17, 96), (6, 64, 200)):
        planes, x = encode(torch.randn(outputs, channels)), torch.randn(lines, channels)
        found, expected = kernel.multiply(x, planes, bits, None), product(x.double(), planes, bits)
        torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=1e-5)
        alone = torch.cat([kernel.multiply(line[None], planes, bits, None) for line in x])
        assert torch.equal(found, alone)
        mixed = kernel.multiply(x, planes, [(bits, 5)[line % 2] for line in range(lines)], None)
        assert torch.equal(mixed[::2], found[::2])
        torch.testing.assert_close(mixed[1::2].double(), product(x[1::2].double(), planes, 5), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("size", [0.0, 1e-42, 1e-30, 1e-3, 1e30])
def test_inputs_of_any_size(size):
    """One channel is much larger than the others, which share its group or do not."""
    planes, x = encode(torch.randn(20, 200)), torch.randn(3, 200) * size
    x[:, 7] *= 1e3
    found, exact = kernel.multiply(x, planes, 8, None).double(), product(x.double(), planes, 8)
    summed = float((x.double().abs() @ decode(planes, 8).double().abs().t()).max())
    torch.testing.assert_close(found, exact, atol=1e-6 * summed + 1e-36, rtol=1e-6)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_an_input_that_is_not_finite_is_seen_in_its_line_only(value):
    planes, x = encode(torch.randn(20, 200)), torch.randn(3, 200)
    x[1, 70] = value
    found = kernel.multiply(x, planes, 8, None)
    assert not found[1].isfinite().any() and found[[0, 2]].isfinite().all()


@pytest.mark.parametrize("bits", WIDTHS)
def test_weights_are_decoded_exactly(bits):
    """Each input has one channel, so that a product is a weight."""
    planes = encode(torch.randn(40, 70))
    found = kernel.multiply(torch.eye(70), planes, bits, None)
    torch.testing.assert_close(found.t(), decode(planes, bits), rtol=2e-7, atol=0)


@settings(max_examples=30, deadline=None)
@given(
    lines=st.integers(2, 20), channels=st.integers(1, 200), outputs=st.integers(1, 60), bits=st.sampled_from(WIDTHS)
)
def test_a_line_is_multiplied_alone_as_among_others(lines, channels, outputs, bits):
    x, planes = torch.randn(lines, channels), encode(torch.randn(outputs, channels))
    together = kernel.multiply(x, planes, bits, None)
    alone = torch.cat([kernel.multiply(x[n : n + 1], planes, bits, None) for n in range(lines)])
    assert torch.equal(together, alone)


@settings(max_examples=40, deadline=None)
@given(
    widths=st.lists(st.sampled_from(WIDTHS), min_size=1, max_size=150),
    tokens=st.integers(1, 2),
    channels=st.one_of(st.integers(1, 200), st.sampled_from([1056, 1100])),
    outputs=st.integers(1, 60),
    bias=st.booleans(),
    threads=st.integers(1, 2),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_rows_that_read_different_numbers_of_bits_get_what_each_gets_alone(
    widths, tokens, channels, outputs, bias, threads, dtype
):
    planes, offset = encode(torch.randn(outputs, channels)), torch.randn(outputs).to(dtype) if bias else None
    x = torch.randn(len(widths), tokens, channels).to(dtype)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        found = kernel.multiply(x, planes, widths, offset)
    finally:
        torch.set_num_threads(before)
    alone = [kernel.multiply(row[None], planes, width, offset) for row, width in zip(x, widths, strict=True)]
    assert torch.equal(found, torch.cat(alone))


@pytest.mark.parametrize("bits, read", [(4, 1), (5, 2), (6, 3), (8, 4)])
def test_planes_that_are_not_needed_are_not_read(bits, read):
    planes, x = encode(torch.randn(40, 70)), torch.randn(3, 70)
    others = [torch.full_like(plane, -1) if n >= read else plane for n, plane in enumerate(planes.planes)]
    changed = NestedPlanes(tuple(others), planes.scales, 40, 70)
    assert torch.equal(kernel.multiply(x, planes, bits, None), kernel.multiply(x, changed, bits, None))
    mixed = (bits, 4, bits)
    assert torch.equal(kernel.multiply(x, planes, mixed, None), kernel.multiply(x, changed, mixed, None))
    others[read - 1] = torch.full_like(others[read - 1], -1)
    changed = NestedPlanes(tuple(others), planes.scales, 40, 70)
    assert not torch.equal(kernel.multiply(x, planes, bits, None), kernel.multiply(x, changed, bits, None))


def test_what_the_kernel_leaves_to_the_reference():
    planes = encode(torch.randn(4, 4))
    assert not kernel.supports(torch.ones(1, 4, dtype=torch.float64), planes)
    assert not kernel.supports(torch.ones(1, 4, requires_grad=True), planes)
    assert not kernel.supports(torch.ones(0, 4), planes)
