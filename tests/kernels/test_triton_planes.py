# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The Triton product with nested planes against the reference, which decodes the weight first.

Without a GPU the kernel runs in Triton's interpreter, on CPU tensors; with one, compiled.
"""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sol_hf.selection.nested_planes import WIDTHS, NestedPlanes, decode, encode, width_read


pytest.importorskip("triton")

from sol_hf.kernels.cuda import planes as triton_planes  # noqa: E402
from sol_hf.kernels.cuda.planes import multiply_planes  # noqa: E402


DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
ROUNDING = {torch.float32: 1e-6, torch.bfloat16: 2**-7, torch.float16: 2**-11}
"""The interpreter truncates to bfloat16, where a GPU rounds."""
LEVELS = [2, 4, 4.5, 5, 6, 7, 8, 8.5, 12, 16]
SIZES = st.one_of(st.integers(1, 80), st.sampled_from([16, 32, 64, 96, 130]))
quick = settings(max_examples=4, deadline=None, suppress_health_check=[HealthCheck.too_slow])
long = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
CASES = given(
    levels=st.lists(st.sampled_from(LEVELS), min_size=1, max_size=18),
    channels=SIZES,
    outputs=SIZES,
    least=st.sampled_from([4, 6]),
    biased=st.booleans(),
    is_transposed=st.booleans(),
    dtype=st.sampled_from(list(ROUNDING)),
    programs=st.sampled_from([1, 1024]),
    most=st.sampled_from([16, 32]),
    seed=st.integers(0, 9),
)


def multiply(x, levels, planes, weight, bias=None, least=4):
    bits = torch.tensor(levels, dtype=torch.float32, device=DEVICE)
    return multiply_planes(x, bits, list(planes.planes), planes.scales, weight, bias, least)


def assert_every_token(levels, channels, outputs, least, biased, is_transposed, dtype, programs, most, seed) -> None:
    """Every token against the weight that it reads, in float64."""
    torch.manual_seed(seed)
    weight = torch.randn(channels, outputs).t() if is_transposed else torch.randn(outputs, channels)
    weight, bias = weight.to(DEVICE, dtype), torch.randn(outputs).to(DEVICE, dtype) if biased else None
    x, planes = (torch.randn(len(levels), channels) + seed % 3).to(DEVICE, dtype), encode(weight)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(triton_planes, "PROGRAMS", programs)
        patch.setattr(triton_planes, "MOST_TOKENS", most)
        found = multiply(x, levels, planes, weight, bias, least)
    assert found.dtype == dtype and found.shape == (len(levels), outputs)
    for token, level in enumerate(levels):
        width = width_read(level)
        read = weight.double() if width is None else decode(planes, max(width, least)).double()
        exact = x[token].double() @ read.t() + (0 if bias is None else bias.double())
        summed = float((x[token].double().abs() @ read.abs().t()).max())
        torch.testing.assert_close(found[token].double(), exact, atol=1e-6 * summed, rtol=ROUNDING[dtype])


@quick
@CASES
def test_every_token_is_multiplied_with_the_weight_that_it_reads(**case):
    assert_every_token(**case)


@pytest.mark.slow
@long
@CASES
def test_every_token_is_multiplied_with_the_weight_that_it_reads_at_length(**case):
    assert_every_token(**case)


@pytest.mark.parametrize("bits", WIDTHS)
def test_weights_are_decoded_exactly(bits):
    """Each input has one channel, so that a product is a weight."""
    weight = torch.randn(20, 70, device=DEVICE)
    planes = encode(weight)
    found = multiply(torch.eye(70, device=DEVICE)[60:], [bits] * 10, planes, weight)
    torch.testing.assert_close(found.t(), decode(planes, bits)[:, 60:], rtol=2e-7, atol=0)


@pytest.mark.parametrize("levels, read", [([4], 1), ([5, 3], 2), ([6, 4], 3), ([4, 8], 4), ([5, 16], 2), ([12], 0)])
def test_only_what_a_token_needs_is_read(levels, read):
    """Values of other planes, and the original weight where no token is above 8 bits, change nothing."""
    weight, x = torch.randn(20, 70, device=DEVICE), torch.randn(len(levels), 70, device=DEVICE)
    planes = encode(weight)
    others = [torch.full_like(plane, -1) if n >= read else plane for n, plane in enumerate(planes.planes)]
    changed = NestedPlanes(tuple(others), planes.scales, 20, 70)
    own = weight if max(levels) > 8 else torch.full_like(weight, float("nan"))
    expected = multiply(x, levels, planes, weight)
    assert torch.equal(multiply(x, levels, changed, own), expected)
    if read:
        others[read - 1] = torch.full_like(others[read - 1], -1)
        changed = NestedPlanes(tuple(others), planes.scales, 20, 70)
        assert not torch.equal(multiply(x, levels, changed, own), expected)


def test_a_token_is_multiplied_alone_as_among_others():
    weight, x, levels = torch.randn(33, 130, device=DEVICE), torch.randn(5, 130, device=DEVICE), [5, 16, 8, 4, 6]
    x[1, 3] = float("nan")
    planes = encode(weight)
    together = multiply(x, levels, planes, weight)
    alone = torch.cat([multiply(x[n : n + 1], levels[n : n + 1], planes, weight) for n in range(5)])
    torch.testing.assert_close(together, alone, rtol=0, atol=0, equal_nan=True)
    assert together[[0, 2, 3, 4]].isfinite().all() and together[1].isnan().all()
