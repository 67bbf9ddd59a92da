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

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from ...kernels.cpu.lines import Lines
from ...kernels.cpu.program import bits_of
from .attention import Arguments
from .mlp_stages import MLPStages
from .norms import Norm
from .products import set_arguments
from .recognition import StackStructure
from .rotary import Tables
from .stages import Branch, StepKind
from .structure import LayerStructure


ROOM_OF_LAYER = 1024
"""Numbers that the arguments of a layer's operations take at most, but for its attention."""


class StackProgram(MLPStages):
    """The program of a kind of step, for a number of rows.

    Args:
        structure ([`StackStructure`]): The base.
        kind ([`StepKind`]): The kind of step.
        rows (`int`): Tokens of all rows of the batch.
        layout (`Sequence` of [`Arguments`]): The attention of groups of layers; the caller sets its arguments before
            every step.

    Attributes:
        attention (`list[np.ndarray]`): Arguments of the attention of every group, `(layers, words)`.
        rotation (`np.ndarray` of shape `(layers, ROTATE_HEADER)`): Arguments of the rotary embeddings.
    """

    def __init__(self, structure: StackStructure, kind: StepKind, rows: int, layout: Sequence[Arguments]):
        layers, first = len(structure.layers), structure.layers[0].attention
        words = sum(len(group.layers) * group.words for group in layout)
        super().__init__(structure, kind, rows, (layers + 1) * ROOM_OF_LAYER + words)
        self.attended = Lines.of(rows, first.heads * first.head_dim)
        self.attention = [self.program.take_rows(len(group.layers), group.words, range(0)) for group in layout]
        self._attend = {
            layer: [(function, arguments[begin:]) for function, begin in group.stages]
            for group, array in zip(layout, self.attention, strict=True)
            for layer, arguments in zip(group.layers, array, strict=True)
        }
        self.rotation = self.program.take_rows(layers, self._step.ROTATE_HEADER, range(1))
        self._dtypes = {layer: group.dtype for group in layout for layer in group.layers}
        branch: Branch | None = None
        for index, layer in enumerate(structure.layers):
            branch = self._add_attention(index, layer, branch)
            branch = self._add_mlp(index, layer, branch)
        self._join(branch, structure.norm, self.hidden)
        self.logits = self._product("logits", structure.head, self.hidden) if kind.has_logits else None
        self.program.finish()

    def set_step(
        self,
        stream: torch.Tensor,
        places: torch.Tensor,
        levels: Mapping[str, torch.Tensor],
        tables: Sequence[Tables],
    ) -> None:
        """Set what differs from step to step.

        Args:
            stream (`torch.Tensor` of shape `(rows, hidden_size)`): Input of the first layer.
            places (`torch.LongTensor` of shape `(rows,)`): Positions.
            levels (`Mapping[str, torch.Tensor]`): Levels of the rows by axis, `(rows,)`.
            tables (`Sequence` of `Tables`): Of the rotary embeddings, for every layer.
        """
        step = self._step
        self.stream.memory.copy_(stream)
        self.places.copy_(places)
        for axis, level in levels.items():
            if axis in self.levels:
                self.levels[axis].copy_(level)
        self._tables = tables
        self.rotation[:, step.COSINES] = [cosines.data_ptr() for cosines, _ in tables]
        self.rotation[:, step.SINES] = [sines.data_ptr() for _, sines in tables]

    def set_caches(self, stores: np.ndarray, slots: Sequence[int]) -> None:
        """Set where the new keys and values go to.

        Args:
            stores (`np.ndarray` of shape `(layers, 3)`): Addresses of keys and values, and the capacity in slots.
            slots (`Sequence[int]`): The slot of the first new token in every layer.
        """
        step = self._step
        self.rotation[:, step.KEYS : step.SLOT] = stores
        self.rotation[:, step.SLOT] = slots

    def _add_attention(self, index: int, layer: LayerStructure, branch: Branch | None) -> Branch:
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
        for function, arguments in self._attend[index]:
            self.program.begin_stage()
            self.program.add(function, arguments)
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
            step.ROTATED: self.structure.rotary.rotated(index) if own.rotates else 0,
            step.PLACES: self.places.data_ptr(),
            step.TOKENS: self.kind.tokens,
            step.TURNS_NEIGHBOURS: int(own.turns_neighbours),
        }
        if own.query_norm is not None and own.key_norm is not None and own.norm_is_of_heads:
            values[step.QUERY_NORM] = own.query_norm.weight.data_ptr()
            values[step.KEY_NORM] = own.key_norm.weight.data_ptr()
            values[step.HEAD_OFFSET] = bits_of(own.query_norm.offset)
            values[step.HEAD_EPSILON] = bits_of(own.query_norm.epsilon)
        set_arguments(a, values)
        self.program.begin_stage()
        self.program.add(step.rotate_float32 if self._dtypes[index] == torch.float32 else step.rotate_bfloat16, a)
