# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Puts a decode step of a whole stack of decoder layers together, as one program of compiled operations.

    join       the branch before is added to the stream; norm                    \\
    products   queries, keys, values                                              |
    rotate     norms of heads, rotary embeddings, keys and values to the cache    |  every layer
    attend     attention over the keys that the step reads                        |
    product    the last projection of the attention                               |
    join       as above                                                           |
    products   gate, up                                                           |
    gate       activation                                                         |
    product    the last projection of the MLP                                    /
    join, product                                                                    final norm, LM head

Where a step keeps channels or neurons, or rounds outputs, there are stages for that between them.
"""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ...cache.paged_layer import PagedLayer
from ...kernels.cpu.program import Program, bits_of
from ..mlp.kept_channels.input_major import InputMajorMLP
from ..mlp.kept_neurons.neuron_major import NeuronMajor
from ..mlp.step_down import StepDown
from ..mlp.step_mlp import StepMLP
from .norms import Norm
from .products import Lines, Product, address_of, set_arguments
from .recognition import StackStructure
from .structure import LayerStructure


GATE_PART = 512
"""Neurons in a task of the activation."""
ROOM_OF_LAYER = 640
"""Numbers that the arguments of a layer's operations take at most, but for its attention."""


@dataclass(frozen=True)
class StepKind:
    """What distinguishes programs over the same cache.

    Args:
        attention (`str`): `"all"` keys, the best `"pages"`, or the best `"tokens"`.
        bits (`int`, *optional*): Bits that are read of all weights; `None` for the original weights.
        rounds (`bool`): Whether outputs of MLPs are rounded.
        channels (`str`): `"all"` channels of MLPs are read; `"zeroed"`: those that are not kept are set to zero;
            `"kept"`: only the weights of those that are kept are read.
        neurons (`str`): The same of neurons.
    """

    attention: str
    bits: int | None = None
    rounds: bool = False
    channels: str = "all"
    neurons: str = "all"


class StackProgram:
    """The program of a kind of step, for a number of rows.

    Args:
        structure ([`StackStructure`]): The base.
        kind ([`StepKind`]): The kind of step.
        rows (`int`): Tokens.
        words (`int`): Numbers that the arguments of an attention take; the caller sets them before every step.
        attend (`Any`): The compiled function of the attention.

    Attributes:
        attention (`np.ndarray` of shape `(layers, words)`): Arguments of the attention of every layer.
        rotation (`np.ndarray` of shape `(layers, ROTATE_HEADER)`): Arguments of the rotary embeddings.
    """

    def __init__(self, structure: StackStructure, kind: StepKind, rows: int, words: int, attend: Any):
        from ...kernels.cpu import numba_step

        self.structure, self.kind, self.rows, self._step, self._attend = structure, kind, rows, numba_step, attend
        layers = len(structure.layers)
        self.program = Program(layers * (ROOM_OF_LAYER + words) + ROOM_OF_LAYER)
        size, first = structure.hidden_size, structure.layers[0].attention
        self.alive: list[object] = []
        self._copies: list[tuple[Callable[[], object], object]] = []
        self._memory: dict[tuple[str, int, int], Lines] = {}
        self.stream, self.hidden = Lines.of(rows, size), Lines.of(rows, size)
        self.levels = {axis: torch.zeros(rows) for axis in ("mlp_keep", "neuron_keep", "bits")}
        self.places = torch.zeros(rows, dtype=torch.long)
        self.attended = Lines.of(rows, first.heads * first.head_dim)
        self.attention = self.program.take_rows(layers, words, range(0))
        self.rotation = self.program.take_rows(layers, numba_step.ROTATE_HEADER, range(1))
        branch: tuple[Lines, Norm | None, float] | None = None
        for index, layer in enumerate(structure.layers):
            branch = self._add_attention(index, layer, branch)
            branch = self._add_mlp(index, layer, branch)
        self._join(branch, structure.norm, self.hidden)
        self.logits = self._product("logits", structure.head, self.hidden)
        self.program.finish()

    def set_step(
        self,
        stream: torch.Tensor,
        places: torch.Tensor,
        levels: Mapping[str, torch.Tensor],
        cosines: torch.Tensor,
        sines: torch.Tensor,
    ) -> None:
        """Set what differs from step to step.

        Args:
            stream (`torch.Tensor` of shape `(rows, hidden_size)`): Input of the first layer.
            places (`torch.LongTensor` of shape `(rows,)`): Positions.
            levels (`Mapping[str, torch.Tensor]`): Levels of the rows by axis, `(rows,)`.
            cosines (`torch.Tensor` of shape `(positions, rotated)`): Table of the rotary embeddings.
            sines (`torch.Tensor` of shape `(positions, rotated)`): The other one.
        """
        step = self._step
        self.stream.memory.copy_(stream)
        self.places.copy_(places)
        for axis, level in levels.items():
            if axis in self.levels:
                self.levels[axis].copy_(level)
        self._tables = cosines, sines
        self.rotation[:, step.COSINES], self.rotation[:, step.SINES] = cosines.data_ptr(), sines.data_ptr()

    def set_caches(self, layers: list[PagedLayer], slot: int) -> None:
        """Set where the new keys and values go to."""
        step, stores = self._step, [layer.stores() for layer in layers]
        self.rotation[:, step.KEYS] = [keys.data_ptr() for keys, _ in stores]
        self.rotation[:, step.VALUES] = [values.data_ptr() for _, values in stores]
        self.rotation[:, step.CAPACITY], self.rotation[:, step.SLOT] = [keys.shape[2] for keys, _ in stores], slot

    def is_current(self) -> bool:
        """Whether the copies of weights that the program reads are those of the base."""
        return all(now() is known for now, known in self._copies)

    def _new(self, header: int, lines: int, channels: int) -> np.ndarray:
        step, a = self._step, self.program.take(header, range(1))
        a[step.LINES], a[step.CHANNELS], a[step.IS_HALF] = lines, channels, self.structure.dtype == torch.bfloat16
        return a

    def _join(self, branch: tuple[Lines, Norm | None, float] | None, norm: Norm | None, target: Lines) -> None:
        """Stage: the residual stream, to which a branch is added, and its norm."""
        step, a = self._step, self._new(self._step.JOIN_HEADER, self.rows, self.stream.width)
        a[step.STREAM], a[step.TARGET], a[step.TARGET_STRIDE] = self.stream.address, target.address, target.stride
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
        answers, biased, bits = [], [], self.kind.bits
        self.program.begin_stage()
        for number, product in enumerate(products):
            answer = self._lines(f"{role} {number}", product.module.out_features, product.stride(bits))
            self.alive += product.add_to(self.program, x, answer, bits)
            answers.append(answer)
            if bits is not None:
                self._copies.append((product.part.made_planes, product.part.made_planes()))
            if bits is not None and product.module.bias is not None:
                biased.append((answer, product.module.bias))
        if biased:
            self.program.begin_stage()
        for answer, bias in biased:
            step, a = self._step, self._new(self._step.BIAS_HEADER, self.rows, answer.width)
            a[step.SUM], a[step.SUM_STRIDE], a[step.BIAS] = answer.address, answer.stride, bias.data_ptr()
            self.program.add(step.add_bias, a)
        return answers

    def _add_attention(
        self, index: int, layer: LayerStructure, branch: tuple[Lines, Norm | None, float] | None
    ) -> tuple[Lines, Norm | None, float]:
        own, products = layer.attention, self.structure.products[index]
        normed = self._lines("normed", self.stream.width)
        self._join(branch, layer.before[0], normed)
        answers = self._products("attention", products.attention_inputs, normed)
        widths = [own.heads * own.head_dim, own.kv_heads * own.head_dim, own.kv_heads * own.head_dim]
        if len(answers) == 1:
            begins = [0, widths[0], widths[0] + widths[1]]
            answers = [answers[0].part(begin, width) for begin, width in zip(begins, widths, strict=True)]
        query, key, value = answers
        if own.query_norm is not None and own.key_norm is not None and not own.norm_is_of_heads:
            self._norm_all(query, own.query_norm, key, own.key_norm)
        self._rotate(index, layer, query, key, value)
        self.program.begin_stage()
        self.program.add(self._attend, self.attention[index])
        self.query = query
        return self._product("attended", products.attention_output, self.attended), layer.after[0], layer.factor

    def _norm_all(self, query: Lines, query_norm: Norm, key: Lines, key_norm: Norm) -> None:
        """Stage: norms over all heads together, in place."""
        step = self._step
        self.program.begin_stage()
        for x, norm in ((query, query_norm), (key, key_norm)):
            a = self._new(step.JOIN_HEADER, self.rows, x.width)
            a[step.STREAM], a[step.TARGET], a[step.TARGET_STRIDE] = x.address, x.address, x.stride
            places = step.OUTER, step.OUTER_OFFSET, step.OUTER_EPSILON
            a[list(places)] = norm.weight.data_ptr(), bits_of(norm.offset), bits_of(norm.epsilon)
            self.program.add(step.join, a)

    def _rotate(self, index: int, layer: LayerStructure, query: Lines, key: Lines, value: Lines) -> None:
        """Stage: rotary embeddings, and the new keys and values."""
        step, own, a = self._step, layer.attention, self.rotation[index]
        values = {
            step.LINES: self.rows,
            step.CHANNELS: own.head_dim,
            step.IS_HALF: int(self.structure.dtype == torch.bfloat16),
            step.QUERY: query.address,
            step.QUERY_STRIDE: query.stride,
            step.KEY: key.address,
            step.KEY_STRIDE: key.stride,
            step.VALUE: value.address,
            step.VALUE_STRIDE: value.stride,
            step.HEADS: own.heads,
            step.KV_HEADS: own.kv_heads,
            step.DIM: own.head_dim,
            step.VALUE_DIM: own.head_dim,
            step.ROTATED: self.structure.rotated if own.rotates else 0,
            step.PLACES: self.places.data_ptr(),
        }
        if own.query_norm is not None and own.key_norm is not None and own.norm_is_of_heads:
            values[step.QUERY_NORM] = own.query_norm.weight.data_ptr()
            values[step.KEY_NORM] = own.key_norm.weight.data_ptr()
            values[step.HEAD_OFFSET] = bits_of(own.query_norm.offset)
            values[step.HEAD_EPSILON] = bits_of(own.query_norm.epsilon)
        set_arguments(a, values)
        self.program.begin_stage()
        self.program.add(step.rotate_float32 if self.structure.dtype == torch.float32 else step.rotate_bfloat16, a)

    def _add_mlp(
        self, index: int, layer: LayerStructure, branch: tuple[Lines, Norm | None, float]
    ) -> tuple[Lines, Norm | None, float]:
        kind = self.kind
        products, normed = self.structure.products[index], self._lines("normed", self.stream.width)
        self._join(branch, layer.before[1], normed)
        hidden = self._lines("neurons", layer.contraction.in_features)
        if kind.channels == "kept":
            self._expand_kept(layer, normed, hidden)
        else:
            x = normed if kind.channels == "all" else self._keep(normed, "mlp_keep")[0]
            self._gate(layer, self._products("expanded", products.expansions, x), hidden)
        if kind.neurons == "kept":
            output = self._contract_kept(layer, hidden)
        else:
            x = hidden if kind.neurons == "all" else self._keep(hidden, "neuron_keep")[0]
            output = self._product("contracted", products.contraction, x)
        if kind.rounds:
            step, a = self._step, self._new(self._step.QUANTIZE_HEADER, self.rows, output.width)
            a[step.QUANTIZED], a[step.QUANTIZED_STRIDE] = output.address, output.stride
            a[step.LEVELS] = self.levels["bits"].data_ptr()
            self.program.begin_stage()
            self.program.add(step.quantize, a)
        return output, layer.after[1], layer.factor

    def _gate(self, layer: LayerStructure, answers: list[Lines], hidden: Lines) -> None:
        """Stage: the activation, and the product with the other projection."""
        from ...kernels.cpu.numba_mlp import ACTIVATIONS

        step, a = self._step, self._new(self._step.GATE_HEADER, self.rows, hidden.width)
        gate, up = answers[0], answers[1] if len(answers) > 1 else None
        if up is None and layer.parts.up is not None:
            gate, up = gate.part(0, hidden.width), gate.part(hidden.width, hidden.width)
        a[step.GATE], a[step.GATE_STRIDE], a[step.PART] = gate.address, gate.stride, GATE_PART
        if up is not None:
            a[step.UP], a[step.UP_STRIDE] = up.address, up.stride
        a[step.HIDDEN], a[step.HIDDEN_STRIDE] = hidden.address, hidden.stride
        a[step.KIND] = ACTIVATIONS.index(layer.parts.activation)
        self.program.begin_stage()
        self.program.add(step.gate, a)

    def _keep(self, x: Lines, axis: str) -> tuple[Lines, np.ndarray]:
        """Stage: the largest numbers of every line, the others zero. Returns them and the operation's arguments."""
        step, a, kept = self._step, self._new(self._step.KEEP_HEADER, self.rows, x.width), self._lines(axis, x.width)
        scratch = torch.zeros(x.width, dtype=torch.uint8), torch.zeros(x.width + 1, dtype=torch.int32)
        number = np.zeros(1, dtype=np.int64)
        a[step.SOURCE], a[step.KEPT], a[step.FRACTIONS] = x.address, kept.address, self.levels[axis].data_ptr()
        a[step.IN_USE], a[step.LISTED], a[step.NUMBER_AT] = *(s.data_ptr() for s in scratch), number.ctypes.data
        self.alive.append((scratch, number))
        self.program.begin_stage()
        self.program.add(step.keep, a)
        return kept, a

    def _expand_kept(self, layer: LayerStructure, x: Lines, hidden: Lines) -> None:
        """Stages: the neurons, from the weights of the kept channels alone."""
        from ...kernels.cpu import numba_mlp as kernel

        copy = StepMLP.of(layer.mlp).copy_of(InputMajorMLP)
        assert copy is not None, "the kind of the step was chosen by it"
        self._copies.append((functools.partial(StepMLP.of(layer.mlp).made_copy, InputMajorMLP), copy))
        kept, chosen = self._keep(x, "mlp_keep")
        a = self.program.take(kernel.HEADER, range(kernel.NEXT, kernel.NEXT + 1))
        sums = self._lines("sums", hidden.width)
        a[kernel.INPUT : kernel.LISTED] = kept.address, self.rows, x.width, hidden.width
        a[kernel.LISTED], a[kernel.GATE], a[kernel.UP] = (
            chosen[self._step.LISTED],
            *map(address_of, (copy.gate, copy.up)),
        )
        a[kernel.GATE_BIAS], a[kernel.UP_BIAS] = map(address_of, copy.biases[:2])
        a[kernel.HIDDEN], a[kernel.UP_SUMS], a[kernel.BLOCK] = hidden.address, sums.address, copy.block
        a[kernel.ACTIVATION] = kernel.ACTIVATIONS.index(layer.parts.activation)
        chosen[self._step.NUMBER_AT] = a[kernel.NUMBER :].ctypes.data
        self.program.begin_stage()
        self.program.add(kernel.expand_float32 if copy.gate.dtype == torch.float32 else kernel.expand_bfloat16, a)

    def _contract_kept(self, layer: LayerStructure, hidden: Lines) -> Lines:
        """Stages: the last projection, from the weights of the kept neurons alone."""
        from ...kernels.cpu import numba_mlp as kernel

        copy = StepDown.of(layer.contraction).copy_of(NeuronMajor)
        assert copy is not None, "the kind of the step was chosen by it"
        self._copies.append((functools.partial(StepDown.of(layer.contraction).made_copy, NeuronMajor), copy))
        kept, chosen = self._keep(hidden, "neuron_keep")
        outputs, bias = layer.contraction.out_features, layer.contraction.bias
        a = self.program.take(kernel.HEADER, range(kernel.NEXT, kernel.NEXT + 1))
        answer = self._lines("contracted", outputs)
        wide = None if bias is None else bias.detach().float()
        a[kernel.INPUT : kernel.LISTED] = kept.address, self.rows, hidden.width, outputs
        a[kernel.LISTED], a[kernel.GATE], a[kernel.BLOCK] = (
            chosen[self._step.LISTED],
            copy.weight.data_ptr(),
            copy.block,
        )
        a[kernel.GATE_BIAS], a[kernel.HIDDEN], a[kernel.OUTPUT] = address_of(wide), answer.address, answer.address
        chosen[self._step.NUMBER_AT] = a[kernel.NUMBER :].ctypes.data
        self.alive.append((copy, wide))
        self.program.begin_stage()
        self.program.add(kernel.project_float32 if copy.weight.dtype == torch.float32 else kernel.project_bfloat16, a)
        return answer
