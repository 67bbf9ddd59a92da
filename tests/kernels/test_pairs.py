# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Products of bfloat16 numbers in pairs are those of the rounded numbers."""

import pytest
import torch

from sol_hf.kernels.cpu import compilation
from sol_hf.kernels.cpu.lines import Lines, add_product
from sol_hf.kernels.cpu.program import Program


pytestmark = pytest.mark.skipif(
    not compilation.multiplies_pairs(), reason="the processor has no products of pairs, or numba is not installed"
)


def product(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, rounds: bool) -> torch.Tensor:
    answer, program = Lines.of(len(x), len(weight)), Program(64)
    program.begin_stage()
    alive = add_product(program, Lines(x, x.shape[1]), weight, bias, answer, rounds)
    program.finish()
    program.run()
    assert alive
    return answer.memory


@pytest.mark.parametrize("channels", [64, 576, 3200])
@pytest.mark.parametrize("lines", [1, 2, 3, 4, 5, 6, 7, 8, 9, 15, 32])
def test_of_lines_and_weights(lines, channels):
    drawn = torch.Generator().manual_seed(lines)
    x, weight = torch.randn(lines, channels, generator=drawn), torch.randn(101, channels, generator=drawn).bfloat16()
    bias = torch.randn(101, generator=drawn).bfloat16() if lines % 2 else None
    expected = x.bfloat16().double() @ weight.double().T + (0 if bias is None else bias.double())
    found = product(x, weight, bias, rounds=True)
    torch.testing.assert_close(found.double(), expected, atol=1e-3, rtol=1e-5)
    alone = torch.cat([product(line[None].contiguous(), weight, bias, rounds=True) for line in x])
    assert torch.equal(found, alone)  # whatever lines are beside it


def test_other_numbers_of_channels_are_not_rounded():
    x, weight = torch.randn(3, 48), torch.randn(10, 48).bfloat16()
    expected = x.double() @ weight.double().T
    torch.testing.assert_close(product(x, weight, None, rounds=True).double(), expected, atol=1e-4, rtol=1e-5)
