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
        """Planes of the weight, for a step that reads weights in a number of bits; `None` for the original one."""
        return None if bits is None else self.part.planes()

    def stride(self, bits: int | None) -> int:
        """Numbers from the output of one token to that of the next."""
        outputs = self.module.out_features
        return outputs if bits is None else -(-outputs // OUTPUTS) * OUTPUTS

    def add_to(self, program: Program, x: Lines, answer: Lines, bits: int | None) -> list[object]:
        """Add the product to the running stage of a program.

        Args:
            program ([`Program`]): The program.
            x ([`Lines`]): Input.
            answer ([`Lines`]): Output, with the stride of [`Product.stride`].
            bits (`int`, *optional*): Bits that are read of a weight; `None` for the original weights.

        Returns:
            What the program must keep alive.
        """
        planes = self.planes_in(bits)
        if planes is None or bits is None:
            return add_product(program, x, self.module.weight, self.module.bias, answer)
        return self._add_planes(program, x, answer, planes, max(bits, self.part.least_bits or 0))

    def widths(self) -> dict[int | None, tuple[int | None, ...]]:
        """For rows that read different numbers of bits: those that are read, and the levels that are read so."""
        read: dict[int | None, tuple[int | None, ...]] = {None: (None,)}
        for width in WIDTHS:
            bits = max(width, self.part.least_bits or 0)
            read[bits] = (*read.get(bits, ()), width)
        return read

    def add_mixed(self, program: Program, x: Lines, answer: Lines) -> tuple[list["Share"], list[object]]:
        """Add one product for every number of bits, each of which computes a share of the lines.

        Returns:
            The shares, which are set before every step, and what the program must keep alive.
        """
        shares, alive = [], []
        for bits, levels in self.widths().items():
            alive += self.add_to(program, x, answer, bits)
            shares.append(Share(program.last, bits is not None, levels, x, answer))
        return shares, alive

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


class Share:
    """A product with some of the lines: those of rows that read a number of bits.

    Args:
        arguments (`np.ndarray`): Arguments of the product.
        reads_planes (`bool`): Whether it is one with planes.
        levels (`tuple`): Levels of the rows that it computes.
        x ([`Lines`]): Input.
        answer ([`Lines`]): Output.
    """

    def __init__(
        self, arguments: np.ndarray, reads_planes: bool, levels: tuple[int | None, ...], x: Lines, answer: Lines
    ):
        from ...kernels.cpu import numba_linear, numba_planes

        kernel = numba_planes if reads_planes else numba_linear
        self.places = kernel.X, kernel.ANSWER, kernel.LINES, kernel.TILES if reads_planes else numba_linear.OUTPUTS
        self.arguments, self.levels, self.x, self.answer = arguments, levels, x, answer
        self.tasks = int(arguments[self.places[3]])

    def set(self, ranges: Mapping[int | None, tuple[int, int]]) -> None:
        """Set the lines; `ranges` has the first one of every level, and their number. Levels follow each other."""
        found = [ranges[level] for level in self.levels if ranges[level][1]]
        first, number = (found[0][0], sum(count for _, count in found)) if found else (0, 0)
        x, answer, lines, tasks = self.places
        self.arguments[x] = self.x.address + 4 * first * self.x.stride
        self.arguments[answer] = self.answer.address + 4 * first * self.answer.stride
        self.arguments[lines], self.arguments[tasks] = number, self.tasks if number else 0


def address_of(tensor: torch.Tensor | None) -> int:
    """Address of a tensor, 0 without one."""
    return 0 if tensor is None else tensor.data_ptr()


def set_arguments(array: np.ndarray, values: dict[int, int]) -> None:
    """Write arguments to their places."""
    for place, value in values.items():
        array[place] = value
