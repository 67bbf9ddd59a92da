# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The dense attention of several new tokens of every row in a program, for KV refreshes and checks of drafts."""

from collections.abc import Sequence

import numpy as np
import torch

from ...cache.stored_layer import StoredLayer
from ...cache.window_layer import WindowLayer
from ...kernels.cpu.chunk_attention import number_of_splits
from ...kernels.cpu.lines import Lines
from ...kernels.cpu.program import bits_of
from .attention import Arguments, GroupsOfLayers
from .structure import AttentionStructure


class ChunkOfLayers(GroupsOfLayers):
    """The attention of the last tokens over the keys of all layers.

    Args:
        layers (`list` of [`StoredLayer`]): Cache layers, with room for the new tokens, which count in their length.
        attentions (`list` of [`AttentionStructure`]): The attentions of these layers.
        padding (`torch.Tensor` of shape `(rows,)`): Padded tokens at the beginning of every row.
        tokens (`int`): New tokens of a row.
    """

    def __init__(
        self,
        layers: Sequence[StoredLayer],
        attentions: Sequence[AttentionStructure],
        padding: torch.Tensor,
        tokens: int,
    ):
        self.groups = [
            ChunkOfAlike(places, [layers[place] for place in places], attentions[places[0]], padding, tokens)
            for places in self.alike(layers, attentions)
        ]


class ChunkOfAlike:
    """The attention in layers whose keys begin and end at the same slots; see [`ChunkOfLayers`]."""

    def __init__(
        self,
        places: list[int],
        layers: list[StoredLayer],
        own: AttentionStructure,
        padding: torch.Tensor,
        tokens: int,
    ):
        from ...kernels.cpu import numba_chunk_attention as attention
        from ...kernels.cpu import numba_chunk_lines as lines
        from ...kernels.cpu import numba_pair_attention as pairs
        from ...kernels.cpu.numba_tiles import COLUMNS, FEW_COLUMNS

        self._attention, self._lines, self._pairs = attention, lines, pairs
        self.places, self.layers, self.own, self.tokens = tuple(places), layers, own, tokens
        first, rows, group = layers[0].first, len(padding), own.heads // own.kv_heads
        self.slots = layers[0].length - first
        self.mask = _mask_of(layers[0], padding, tokens)
        parts = -(-group * tokens // COLUMNS)
        width = -(-group * tokens // (parts * FEW_COLUMNS)) * FEW_COLUMNS
        tasks = rows * own.kv_heads * parts
        splits = number_of_splits(tasks, -(-self.slots // attention.BLOCK))
        is_half, dim = layers[0].stored_dtype == torch.bfloat16, own.head_dim
        self._in_pairs = is_half and layers[0].dtype == torch.bfloat16 and pairs.fits(dim)
        each = attention.SCRATCH_FLOATS * width
        if self._in_pairs:
            each += attention.BLOCK // 2 * (width + dim)
        elif is_half:
            each += 2 * attention.BLOCK * dim
        sizes = (tasks * dim * width, tasks * splits * dim * width, tasks * splits * each)
        self._memory = [torch.empty(size) for size in sizes]
        columns, results, scratch = (memory.data_ptr() for memory in self._memory)
        before = np.zeros(lines.HEADER, dtype=np.int64)
        before[lines.ROWS : lines.QUERY] = (
            rows, own.kv_heads, group, tokens, dim, dim, parts, splits, width, bits_of(own.scaling)
        )  # fmt: skip
        before[lines.COLUMNS_AT : lines.OUTPUT] = columns, results, scratch, each
        a = np.zeros(attention.NEXT + 1, dtype=np.int64)
        a[attention.QUERIES], a[attention.MASK] = columns, self.mask.data_ptr()
        a[attention.OUTPUT], a[attention.SCRATCH] = results, scratch
        a[attention.ROWS : attention.KEY_ROW] = rows, own.kv_heads, parts, tokens, self.slots, dim, dim
        a[attention.MASK_ROW], a[attention.MASK_TOKEN] = self.mask.stride(0), self.mask.stride(1)
        a[attention.SPLITS : attention.NEXT] = splits, is_half, each, width, bits_of(own.soft_cap or 0.0)
        self._arguments = np.concatenate([before, a])

    @property
    def layout(self) -> Arguments:
        """The compiled functions, the layers, and the numbers that the arguments of a layer take."""
        lines, fill, attend = self._lines, self._lines.fill, self._attention.attend
        if self._in_pairs:
            fill, attend = self._pairs.fill_pairs_bfloat16, self._pairs.attend_pairs_bfloat16
        stages = ((fill, 0), (attend, lines.HEADER), (lines.merge, 0))
        return Arguments(stages, self.places, len(self._arguments), self.layers[0].stored_dtype)

    def fill(self, arguments: np.ndarray, query: Lines, output: Lines, stores: np.ndarray) -> None:
        """Write the arguments of all layers, `(layers, words)`."""
        lines, attention = self._lines, self._attention
        arguments[:] = self._arguments
        arguments[:, lines.QUERY], arguments[:, lines.QUERY_STRIDE] = query.address, query.stride
        arguments[:, lines.OUTPUT], arguments[:, lines.OUTPUT_STRIDE] = output.address, output.stride
        a, own = arguments[:, lines.HEADER :], stores[list(self.places)]
        size, dim = self.layers[0].stored_dtype.itemsize, self.own.head_dim
        a[:, [attention.KEYS, attention.VALUES]] = own[:, :2] + size * dim * self.layers[0].first
        for row, head, slot in (
            (attention.KEY_ROW, attention.KEY_HEAD, attention.KEY_SLOT),
            (attention.VALUE_ROW, attention.VALUE_HEAD, attention.VALUE_SLOT),
        ):
            a[:, slot], a[:, head], a[:, row] = dim, own[:, 2] * dim, own[:, 2] * dim * self.own.kv_heads


def _mask_of(layer: StoredLayer, padding: torch.Tensor, tokens: int) -> torch.Tensor:
    """Which keys of a layer every new token sees, `(rows, tokens, keys)`."""
    slots = torch.arange(layer.first, layer.length)
    own = torch.arange(layer.length - tokens, layer.length)[:, None]
    seen = slots <= own
    if isinstance(layer, WindowLayer):
        seen &= slots > own - layer.sliding_window
    first_key = padding + layer.slot_of(0)
    return (seen & (slots >= first_key[:, None, None])).contiguous()
