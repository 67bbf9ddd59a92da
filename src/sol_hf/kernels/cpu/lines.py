# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Memory that the operations of a program share, and the product of it with a weight."""

from dataclasses import dataclass

import torch

from .program import Program


@dataclass(frozen=True)
class Lines:
    """Numbers of all tokens of a step in memory, float32.

    Args:
        memory (`torch.Tensor` of shape `(lines, stride)`): Where they are.
        width (`int`): Numbers of a token.
        begin (`int`): Place of the first one in every line.
    """

    memory: torch.Tensor
    width: int
    begin: int = 0

    @classmethod
    def of(cls, lines: int, width: int, stride: int | None = None) -> "Lines":
        """New memory, zero."""
        return cls(torch.zeros(lines, stride or width), width)

    @property
    def address(self) -> int:
        """Address of the first number."""
        return self.memory.data_ptr() + 4 * self.begin

    @property
    def stride(self) -> int:
        """Numbers from one token to the next."""
        return self.memory.shape[1]

    def part(self, begin: int, width: int) -> "Lines":
        """Some of the numbers of every token."""
        return Lines(self.memory, width, self.begin + begin)


def add_product(
    program: Program,
    x: Lines,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    answer: Lines,
    rounds: bool = False,
) -> list[object]:
    """Add a product with a weight that is read where it is to the running stage of a program.

    Args:
        program ([`Program`]): The program.
        x ([`Lines`]): Input, without numbers between the tokens.
        weight (`torch.Tensor` of shape `(outputs, channels)`): In float32 or bfloat16, contiguous.
        bias (`torch.Tensor` of shape `(outputs,)`, *optional*): Added to the product.
        answer ([`Lines`]): Output, without numbers between the tokens.
        rounds (`bool`, *optional*, defaults to `False`): Whether the input may be rounded to the dtype of the weight,
            which is faster where the processor multiplies pairs of bfloat16 numbers.

    Returns:
        What the program must keep alive.
    """
    from . import numba_linear as kernel
    from . import numba_pair_linear as pairs

    wide = None if bias is None else bias.detach().float().contiguous()
    a = program.take(kernel.NEXT + 1, range(kernel.NEXT, kernel.NEXT + 1))
    a[kernel.X], a[kernel.WEIGHT], a[kernel.ANSWER] = x.address, weight.data_ptr(), answer.address
    a[kernel.BIAS] = 0 if wide is None else wide.data_ptr()
    a[kernel.LINES : kernel.NEXT] = len(x.memory), weight.shape[1], weight.shape[0]
    if weight.dtype == torch.float32:
        program.add(kernel.multiply_float32, a)
    else:
        in_pairs = rounds and pairs.fits(len(x.memory), weight.shape[1])
        program.add(pairs.multiply_pairs_bfloat16 if in_pairs else kernel.multiply_bfloat16, a)
    return [wide, weight]
