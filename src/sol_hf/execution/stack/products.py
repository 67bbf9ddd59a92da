# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The product with a linear layer as an operation of a program."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import nn

from ...kernels.cpu.lines import Lines, add_product
from ...kernels.cpu.program import Program
from ...selection.nested_planes import GROUP, OUTPUTS, WIDTHS, NestedPlanes
from ..linear.step_linear import StepLinear


class Product:
    """A linear layer in the programs of a base.

    Args:
        module (`nn.Linear`): The layer.
    """

    def __init__(self, module: nn.Linear):
        self.module, self.part = module, StepLinear.of(module)

    def planes_in(self, bits: int | None) -> NestedPlanes | None:
        """Planes of the weight, for a step that reads weights in a number of bits; `None` for the original one.

        Every call looks for weights that have changed when it begins; to look again takes as long as several steps.
        """
        return None if bits is None else self.part.made_planes() or self.part.planes()

    def stride(self, bits: int | None) -> int:
        """Numbers from the output of one token to that of the next."""
        outputs = self.module.out_features
        return outputs if bits is None else -(-outputs // OUTPUTS) * OUTPUTS

    def add_to(
        self, program: Program, x: Lines, answer: Lines, bits: int | None, rounds: bool = False
    ) -> list[object]:
        """Add the product to the running stage of a program.

        Args:
            program ([`Program`]): The program.
            x ([`Lines`]): Input.
            answer ([`Lines`]): Output, with the stride of [`Product.stride`].
            bits (`int`, *optional*): Bits that are read of a weight; `None` for the original weights.
            rounds (`bool`, *optional*, defaults to `False`): See [`add_product`].

        Returns:
            What the program must keep alive.
        """
        planes = self.planes_in(bits)
        if planes is None or bits is None:
            return add_product(program, x, self.module.weight, self.module.bias, answer, rounds)
        return self._add_planes(program, x, answer, planes, max(bits, self.part.least_bits or 0))

    def widths(self) -> tuple[int, ...]:
        """For every level of a row that reads planes: the bits that it reads of this weight."""
        return tuple(max(width, self.part.least_bits or 0) for width in WIDTHS)

    def _add_planes(self, program: Program, x: Lines, answer: Lines, planes: NestedPlanes, bits: int) -> list[object]:
        from ...kernels.cpu import numba_planes as kernel

        tiles, blocks = planes.planes[0].shape[:2]
        scratch = torch.empty(x.memory.numel() // GROUP * kernel.SCRATCH_EACH)
        a = program.take(kernel.HEADER, range(kernel.NEXT, kernel.NEXT + 1))
        a[kernel.X], a[kernel.SCRATCH], a[kernel.SCALES] = x.address, scratch.data_ptr(), planes.scales.data_ptr()
        a[kernel.FIRST_PLANE : kernel.ANSWER] = [plane.data_ptr() for plane in planes.planes]
        a[kernel.ANSWER : kernel.NEXT] = answer.address, len(x.memory), blocks, tiles
        program.add(kernel.KERNELS[bits], a)
        return [planes, scratch]


Ranges = Mapping[int | None, tuple[int, int]]
"""For every level of the bits, `None` for the original weights, the first of its lines, and their number."""


class PlanesShare:
    """A product with planes of those lines that read any, each in a number of bits of its own.

    The running stage of the program makes of the lines what the product, in a later stage, needs.

    Args:
        program ([`Program`]): The program.
        product ([`Product`]): The linear layer.
        x ([`Lines`]): Input, in the order of the bits that the lines read.
        answer ([`Lines`]): Output, likewise.
        records (`torch.Tensor`, *optional*): What another product of the same stage has made of the same lines.
    """

    def __init__(
        self, program: Program, product: Product, x: Lines, answer: Lines, records: torch.Tensor | None = None
    ):
        from ...kernels.cpu import numba_plane_rows as kernel

        self._kernel, self.widths = kernel, product.widths()
        self._planes, is_made = product.part.made_planes() or product.part.planes(), records is not None
        self.records = torch.empty(x.memory.numel() // GROUP * kernel.SCRATCH_EACH) if records is None else records
        tiles, blocks = self._planes.planes[0].shape[:2]
        a = program.take(kernel.HEADER, range(kernel.PREPARED, kernel.HEADER))
        a[kernel.X], a[kernel.SCRATCH] = x.address, self.records.data_ptr()
        a[kernel.SCALES] = self._planes.scales.data_ptr()
        a[kernel.FIRST_PLANE : kernel.ANSWER] = [plane.data_ptr() for plane in self._planes.planes]
        a[kernel.ANSWER : kernel.FIRST_COUNT] = answer.address, blocks, tiles
        self.arguments = a
        if not is_made:
            program.add(kernel.prepare_rows, a)

    def add_product(self, program: Program) -> None:
        """Add the product to the running stage."""
        program.add(self._kernel.multiply_rows, self.arguments)

    def set(self, ranges: Ranges) -> None:
        """Set how many lines read each number of bits."""
        counts = dict.fromkeys(WIDTHS, 0)
        for level, width in zip(WIDTHS, self.widths, strict=True):
            counts[width] += ranges[level][1]
        self.arguments[self._kernel.FIRST_COUNT : self._kernel.PREPARED] = list(counts.values())


class DenseShare:
    """A product with the original weight of those lines that read it.

    Args:
        arguments (`np.ndarray`): Arguments of the product.
        x ([`Lines`]): Input.
        answer ([`Lines`]): Output.
    """

    def __init__(self, arguments: np.ndarray, x: Lines, answer: Lines):
        from ...kernels.cpu import numba_linear as kernel

        self._kernel, self.arguments, self.x, self.answer = kernel, arguments, x, answer
        self.outputs = int(arguments[kernel.OUTPUTS])

    def set(self, ranges: Ranges) -> None:
        """Set the lines."""
        (first, number), kernel, a = ranges[None], self._kernel, self.arguments
        a[kernel.X] = self.x.address + 4 * first * self.x.stride
        a[kernel.ANSWER] = self.answer.address + 4 * first * self.answer.stride
        a[kernel.LINES], a[kernel.OUTPUTS] = number, self.outputs if number else 0


def address_of(tensor: torch.Tensor | None) -> int:
    """Address of a tensor, 0 without one."""
    return 0 if tensor is None else tensor.data_ptr()


def set_arguments(array: np.ndarray, values: dict[int, int]) -> None:
    """Write arguments to their places."""
    for place, value in values.items():
        array[place] = value
