# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The attention of all layers in a program: the kernels of `attention/step`, and how their arguments are set.

Layers with a sliding window are read whole, whatever the others choose, as the modules of a base do.
"""

import operator
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch

from ...cache.paged_layer import PagedLayer
from ...cache.stored_layer import StoredLayer
from ...cache.window_layer import WindowLayer
from ...kernels.cpu.lines import Lines
from ...selection.criterion import CRITERIA
from ...selection.pages import pages_to_read
from ..attention.score_changes import ScoreChanges
from ..attention.step.numba_pages import PagedAttention
from ..attention.step.numba_tokens import TokenAttention
from ..attention.step.operation import StepAttention
from ..plan import StepPlan
from .structure import AttentionStructure


ALL, PAGES, TOKENS = "all", "pages", "tokens"
STEPS_AHEAD = 64
"""Later steps for which there is room when the attention is set up."""


def attention_kind(plan: StepPlan) -> str | None:
    """How a step attends to a text; `None` if no kernel does."""
    if plan.token_keep is None:
        return ALL
    if not all(isinstance(plan.cache.layers[index], PagedLayer) for index in plan.sparse_layers):
        return None  # pages of a base without full attention begin before its windows
    criterion = CRITERIA[plan.rule.criterion]
    if criterion.has_token_kernel(plan.rule):
        return TOKENS
    return PAGES if criterion.has_kernels else None


class GroupsOfLayers:
    """The attention of all layers, in groups whose keys begin and end at the same slots."""

    groups: Sequence[Any]

    @staticmethod
    def alike(layers: Sequence[StoredLayer], structures: Sequence[AttentionStructure]) -> list[list[int]]:
        """Which layers form a group."""
        found: dict[Hashable, list[int]] = {}
        for index, (layer, own) in enumerate(zip(layers, structures, strict=True)):
            window = layer.sliding_window if isinstance(layer, WindowLayer) else None
            keys = window, layer.first, layer.length, layer.stored_dtype
            found.setdefault((*keys, own.scaling, own.soft_cap), []).append(index)
        return list(found.values())

    @property
    def layout(self) -> tuple["Arguments", ...]:
        """For every group of layers: its compiled functions, the layers, and the numbers that their arguments take."""
        return tuple(group.layout for group in self.groups)

    def fill(self, arguments: Sequence[np.ndarray], query: Lines, output: Lines, stores: np.ndarray) -> None:
        """Write the arguments of all layers.

        Args:
            arguments (`Sequence[np.ndarray]`): Of every group, `(layers, words)`.
            query ([`Lines`]): The queries.
            output ([`Lines`]): What is attended to.
            stores (`np.ndarray` of shape `(layers, 3)`): See [`StackProgram.set_caches`].
        """
        for group, array in zip(self.groups, arguments, strict=True):
            group.fill(array, query, output, stores)


class AttentionOfLayers(GroupsOfLayers):
    """The attention of the steps of a text, over the keys of all layers.

    What does not change from step to step is set up once, and again where the cache or the rule is another.

    Args:
        plan ([`StepPlan`]): The step.
        layers (`list` of [`StoredLayer`]): Cache layers, with room for the new token, which counts in their length.
        query (`torch.Tensor` of shape `(rows, heads, 1, head_dim)`): A tensor like the queries.
        structures (`Sequence` of [`AttentionStructure`]): The attention of every layer.
    """

    def __init__(
        self,
        plan: StepPlan,
        layers: Sequence[StoredLayer],
        query: torch.Tensor,
        structures: Sequence[AttentionStructure],
    ):
        self._layers, self._rule, self._padding = list(layers), plan.rule, plan.cache.padding
        self._threads, self._rows = torch.get_num_threads(), len(query)
        self.groups = [
            LayersAlike(plan, places, [layers[place] for place in places], query, structures[places[0]])
            for places in self.alike(layers, structures)
        ]

    def set_step(self, plan: StepPlan, layers: Sequence[StoredLayer], rows: int) -> bool:
        """Go on to another step of the same kind; `False` if everything has to be set up anew."""
        same = plan.rule == self._rule and plan.cache.padding is self._padding and rows == self._rows
        same = same and torch.get_num_threads() == self._threads and len(layers) == len(self._layers)
        return same and all(map(operator.is_, layers, self._layers)) and all([x.set_step(plan) for x in self.groups])

    def note_done(self) -> None:
        """Note that the step has brought the index of all layers up to date."""
        for group in self.groups:
            group.note_done()


@dataclass(frozen=True)
class Arguments:
    """The arguments of a group of layers.

    Args:
        stages (`tuple` of `tuple[Any, int]`): Compiled functions that run one after another, and where the arguments
            of each begin.
        layers (`tuple[int, ...]`): The layers.
        words (`int`): Numbers that the arguments of a layer take.
        dtype (`torch.dtype`): Of keys and values, as they are stored.
    """

    stages: tuple[tuple[Any, int], ...]
    layers: tuple[int, ...]
    words: int
    dtype: torch.dtype


class LayersAlike:
    """The attention of a step in layers whose keys begin and end at the same slots.

    Args:
        plan ([`StepPlan`]): The step.
        places (`list[int]`): Which layers these are.
        layers (`list` of [`StoredLayer`]): The cache layers.
        query (`torch.Tensor` of shape `(rows, heads, 1, head_dim)`): A tensor like the queries.
        structure ([`AttentionStructure`]): Their attention.
    """

    def __init__(
        self,
        plan: StepPlan,
        places: list[int],
        layers: list[StoredLayer],
        query: torch.Tensor,
        structure: AttentionStructure,
    ):
        self.places, self.layers = tuple(places), layers
        self.paged = [layer for layer in layers if isinstance(layer, PagedLayer)]
        self.kernel = self._of(plan, layers[0], query, structure)
        self.reads_tokens = isinstance(self.kernel, TokenAttention)
        self._begin, self._storage = layers[0].first, [layer.stored_dtype for layer in layers]
        self._parts: list[torch.Tensor] = []
        """The storage of the indices whose addresses are known."""

    @staticmethod
    def _of(
        plan: StepPlan, layer: StoredLayer, query: torch.Tensor, structure: AttentionStructure
    ) -> PagedAttention | TokenAttention:
        token_keep, padding = plan.token_keep, plan.cache.padding
        first_key = torch.zeros(len(query), dtype=torch.long) if padding is None else padding
        if isinstance(layer, WindowLayer):  # it is read whole, from the first slot that the new token sees
            token_keep = None
            first_key = (first_key + layer.slot_of(0)).clamp(min=max(layer.first, layer.length - layer.sliding_window))
        elif isinstance(layer, PagedLayer) and attention_kind(plan) == TOKENS:
            changes = ScoreChanges(structure.soft_cap)
            call = StepAttention(plan, 0, query, layer.keys, layer.values, structure.scaling, changes=changes)
            return TokenAttention(call, layer, STEPS_AHEAD)
        wanted = pages_to_read(token_keep, layer.length - first_key, plan.rule)
        scores = structure.scaling, structure.soft_cap
        return PagedAttention(query, layer, first_key, wanted, plan.rule, *scores, STEPS_AHEAD)

    def set_step(self, plan: StepPlan) -> bool:
        """Go on to another step; `False` if that cannot be, as with a window, whose first key moves."""
        slots, kernel = self.layers[0].length, self.kernel
        if len(self.paged) < len(self.layers) or slots > kernel.room:
            return False
        if any(layer.length != slots or layer.first != self._begin for layer in self.layers):
            return False
        if any(layer.stored_dtype != dtype for layer, dtype in zip(self.layers, self._storage, strict=True)):
            return False
        if isinstance(kernel, TokenAttention):
            kernel.set_step(plan, slots)
        else:
            keep = plan.token_keep
            kernel.set_step(slots, None if keep is None else pages_to_read(keep, slots - kernel.first_key, plan.rule))
        return True

    @cached_property
    def layout(self) -> Arguments:
        """The compiled function, the layers, and the numbers that the arguments of a layer take."""
        kernel = self.kernel.kernel
        function = kernel.attend_float32 if self.kernel.dtype == torch.float32 else kernel.attend_bfloat16
        return Arguments(((function, 0),), self.places, len(self.kernel.arguments), self.kernel.dtype)

    def fill(self, arguments: np.ndarray, query: Lines, output: Lines, stores: np.ndarray) -> None:
        """Write the arguments of all layers, `(layers, words)`."""
        kernel = self.kernel.kernel
        arguments[:] = self.kernel.arguments
        dim = int(self.kernel.arguments[kernel.DIM])
        arguments[:, kernel.QUERY], arguments[:, kernel.OUTPUT] = query.address, output.address
        arguments[:, kernel.QUERY_ROW], arguments[:, kernel.QUERY_HEAD] = query.stride, dim
        arguments[:, [kernel.KEYS, kernel.VALUES, kernel.CAPACITY]] = stores[list(self.places)]
        if isinstance(self.kernel, TokenAttention):
            self._fill_index(arguments, self.kernel)
        elif self.kernel.selects:
            pages = [layer.page_store() for layer in self.paged]
            arguments[:, kernel.UPPER] = [upper.data_ptr() for upper, *_ in pages]
            arguments[:, kernel.LOWER] = [lower.data_ptr() for _, lower, *_ in pages]
            arguments[:, kernel.PAGE_CAPACITY] = [capacity for *_, capacity, _ in pages]
            arguments[:, kernel.INDEXED] = [indexed for *_, indexed in pages]

    def _fill_index(self, arguments: np.ndarray, attention: TokenAttention) -> None:
        kernel, slots = attention.kernel, self.paged[0].length
        indices = [
            index if index is not None and index.packed.shape[2] >= slots else attention.index_of(layer)
            for layer in self.paged
            for index in (layer.made_sketch,)
        ]
        parts = [part for index in indices for part in index.stores]
        if len(parts) != len(self._parts) or not all(map(operator.is_, parts, self._parts)):
            self._parts, columns = parts, [[part.data_ptr() for part in parts[place::3]] for place in range(3)]
            columns.append([index.packed.shape[2] for index in indices])
            self._addresses = np.array(columns).T
        arguments[:, [kernel.CODES, kernel.SCALES, kernel.MEAN, kernel.INDEX_CAPACITY]] = self._addresses
        arguments[:, kernel.ENCODED] = [index.tokens for index in indices]
        self.indices = indices

    def note_done(self) -> None:
        """Note that the step has brought the index of all layers up to date."""
        if self.reads_tokens:
            for layer, index in zip(self.paged, self.indices, strict=True):
                index.tokens = layer.length
        elif isinstance(self.kernel, PagedAttention) and self.kernel.selects:
            for layer in self.paged:
                layer.mark_indexed()
