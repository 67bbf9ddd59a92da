# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The stages of a program that are the same for attention and MLP: residual sums, norms, products with weights."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ...kernels.cpu.lines import Lines
from ...kernels.cpu.program import Program, bits_of
from ...selection.nested_planes import WIDTHS
from .norms import Norm
from .products import DenseShare, PlanesShare, Product, address_of
from .recognition import StackStructure


Branch = tuple[Lines, Norm | None, float]
"""What is to be added to the residual stream: its numbers, the norm of them, and a factor."""


@dataclass(frozen=True)
class StepKind:
    """What distinguishes programs over the same cache.

    Args:
        attention (`str`): `"all"` keys, the best `"pages"`, or the best `"tokens"`.
        bits (`int`, *optional*): Bits that are read of all weights; `None` for the original weights.
        is_mixed (`bool`): Whether rows read different numbers of bits.
        rounds (`bool`): Whether outputs of MLPs are rounded.
        channels (`str`): `"all"` channels of MLPs are read; `"zeroed"`: those that are not kept are set to zero;
            `"kept"`: only the weights of those that are kept are read.
        neurons (`str`): The same of neurons.
        tokens (`int`): Tokens of a row of the batch, one after another.
        has_logits (`bool`): Whether the LM head runs.
    """

    attention: str
    bits: int | None = None
    is_mixed: bool = False
    rounds: bool = False
    channels: str = "all"
    neurons: str = "all"
    tokens: int = 1
    has_logits: bool = True


class Stages:
    """A program that is put together stage by stage.

    Args:
        structure ([`StackStructure`]): The base.
        kind ([`StepKind`]): The kind of step.
        rows (`int`): Tokens.
        room (`int`): Numbers that all arguments take together, at most.
    """

    def __init__(self, structure: StackStructure, kind: StepKind, rows: int, room: int):
        from ...kernels.cpu import numba_step

        self.structure, self.kind, self.rows, self._step = structure, kind, rows, numba_step
        self.program = Program(room)
        self.alive: list[object] = []
        self._copies: list[tuple[Callable[[], object], object]] = []
        self._memory: dict[tuple[str, int, int], Lines] = {}
        size = structure.hidden_size
        self.stream, self.hidden = Lines.of(rows, size), Lines.of(rows, size)
        self.levels = {axis: torch.zeros(rows) for axis in ("mlp_keep", "neuron_keep", "bits")}
        self.places, self.order = (torch.zeros(rows, dtype=torch.long) for _ in range(2))
        self.shares: list[PlanesShare | DenseShare] = []

    def is_current(self) -> bool:
        """Whether the copies of weights that the program reads are those of the base."""
        return all(now() is known for now, known in self._copies)

    def _new(self, header: int, lines: int, channels: int) -> np.ndarray:
        step, a = self._step, self.program.take(header, range(1))
        a[step.LINES], a[step.CHANNELS], a[step.IS_HALF] = lines, channels, self.structure.dtype == torch.bfloat16
        return a

    def _join(self, branch: Branch | None, norm: Norm | None, target: Lines | None) -> None:
        """Stage: the residual stream, to which a branch is added, and its norm, if that goes anywhere."""
        step, a = self._step, self._new(self._step.JOIN_HEADER, self.rows, self.stream.width)
        a[step.STREAM] = self.stream.address
        if target is not None:
            a[step.TARGET], a[step.TARGET_STRIDE] = target.address, target.stride
        if branch is not None:
            added, inner, factor = branch
            a[step.ADDED], a[step.ADDED_STRIDE], a[step.FACTOR] = added.address, added.stride, bits_of(factor)
            if inner is not None:
                places = step.INNER, step.INNER_OFFSET, step.INNER_EPSILON
                a[list(places)] = inner.weight.data_ptr(), bits_of(inner.offset), bits_of(inner.epsilon)
        if norm is not None:
            places = step.OUTER, step.OUTER_OFFSET, step.OUTER_EPSILON
            a[list(places)] = norm.weight.data_ptr(), bits_of(norm.offset), bits_of(norm.epsilon)
            a[step.OUTER_BIAS], a[step.IS_CENTERED] = address_of(norm.bias), norm.is_centered
        self.program.begin_stage()
        self.program.add(step.join, a)

    def _lines(self, role: str, width: int, stride: int | None = None) -> Lines:
        """Memory that is used for the same purpose in every layer."""
        key = role, width, stride or width
        if key not in self._memory:
            self._memory[key] = Lines.of(self.rows, width, stride)
        return self._memory[key]

    def _product(self, role: str, product: Product, x: Lines) -> Lines:
        return self._products(role, (product,), x)[0]

    def _products(self, role: str, products: tuple[Product, ...], x: Lines) -> list[Lines]:
        """Stage: products of the same input; and one for their biases if those are not part of them."""
        if self.kind.is_mixed:
            return self._mixed_products(role, products, x)
        answers, biased, bits = [], [], self.kind.bits
        self.program.begin_stage()
        for number, product in enumerate(products):
            answer = self._lines(f"{role} {number}", product.module.out_features, product.stride(bits))
            self.alive += product.add_to(self.program, x, answer, bits, rounds=self.kind.tokens > 1)
            answers.append(answer)
            if bits is not None:
                self._copies.append((product.part.made_planes, product.part.made_planes()))
            if bits is not None and product.module.bias is not None:
                biased.append((answer, product.module.bias))
        self._add_biases(biased)
        return answers

    def _mixed_products(self, role: str, products: tuple[Product, ...], x: Lines) -> list[Lines]:
        """Stages: the lines in the order of their bits; what planes need of them; products; and back."""
        ordered, program = self._lines("ordered", x.width), self.program
        parts = [self._lines(f"{role} {number} in order", p.module.out_features) for number, p in enumerate(products)]
        answers = [self._lines(f"{role} {number}", p.module.out_features) for number, p in enumerate(products)]
        program.begin_stage()
        self._move(x, ordered, is_back=False)
        shares: list[PlanesShare] = []
        program.begin_stage()
        for product, part in zip(products, parts, strict=True):
            alike = (share.records for share in shares if share.widths == product.widths())
            shares.append(PlanesShare(program, product, ordered, part, next(alike, None)))
        program.begin_stage()
        for product, part, share in zip(products, parts, shares, strict=True):
            share.add_product(program)
            self.alive += product.add_to(program, ordered, part, None)
            self.shares += [share, DenseShare(program.last, ordered, part)]
            self._copies.append((product.part.made_planes, product.part.made_planes()))
        program.begin_stage()
        for part, answer in zip(parts, answers, strict=True):
            self._move(part, answer, is_back=True)
        return answers

    def _move(self, source: Lines, target: Lines, is_back: bool) -> None:
        step, a = self._step, self._new(self._step.MOVE_HEADER, self.rows, source.width)
        a[step.FROM], a[step.FROM_STRIDE], a[step.IS_BACK] = source.address, source.stride, is_back
        a[step.TO], a[step.TO_STRIDE], a[step.ORDER] = target.address, target.stride, self.order.data_ptr()
        self.program.add(step.move, a)

    def _add_biases(self, biased: Sequence[tuple[Lines, torch.Tensor]]) -> None:
        """Stage, if there is any: biases that are not part of a product."""
        if biased:
            self.program.begin_stage()
        for answer, bias in biased:
            step, a = self._step, self._new(self._step.BIAS_HEADER, self.rows, answer.width)
            a[step.SUM], a[step.SUM_STRIDE], a[step.BIAS] = answer.address, answer.stride, bias.data_ptr()
            self.program.add(step.add_bias, a)

    def set_widths(self, widths: Sequence[int | None]) -> None:
        """Set the bits of a weight that every row reads, in a program for rows that differ."""
        levels = (*WIDTHS, None)
        ranked = sorted(range(self.rows), key=lambda row: levels.index(widths[row]))
        self.order.copy_(torch.tensor(ranked))
        ranges, first = {}, 0
        for level in levels:
            number = sum(width == level for width in widths)
            ranges[level] = first, number
            first += number
        for share in self.shares:
            share.set(ranges)
