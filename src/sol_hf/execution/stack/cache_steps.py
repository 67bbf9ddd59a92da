# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Runs programs over one cache: those of decode steps, and those of several tokens at once."""

from collections.abc import Callable, Hashable, Mapping, Sequence

import numpy as np
import torch

from ...cache.paged_layer import PagedLayer
from ...cache.stored_layer import StoredLayer
from ..axis_plan import AxisPlan
from ..mlp.step_down import StepDown
from ..mlp.step_mlp import StepMLP
from ..plan import RefreshPlan, StepPlan
from .assembly import StackProgram
from .attention import TOKENS, AttentionOfLayers
from .chunk import ChunkOfLayers
from .programs import Programs
from .recognition import StackStructure, capped
from .rotary import Tables
from .stages import StepKind


class CacheSteps:
    """Runs programs over one cache.

    Args:
        structure ([`StackStructure`]): The base.
        tables (`Callable`): Returns the tables of its rotary embeddings, of every layer, for a number of positions.
        programs ([`Programs`]): The programs of the base.
    """

    def __init__(self, structure: StackStructure, tables: Callable[[int], list[Tables]], programs: Programs):
        self.structure, self._tables, self.programs = structure, tables, programs
        self._stores: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._store_numbers = np.zeros((0, 3), dtype=np.int64)
        self._attentions: dict[str, AttentionOfLayers] = {}
        """The attention of the last step of every kind."""
        mlps = frozenset(StepMLP.of(layer.mlp) for layer in structure.layers)
        linears = (product.part for products in structure.products for product in products.all)
        self._carried_out: dict[str, frozenset[Hashable]] = {
            "token_keep": frozenset(layer.attention.layer_idx for layer in structure.layers),
            "mlp_keep": mlps,
            "neuron_keep": frozenset(StepDown.of(layer.contraction) for layer in structure.layers),
            "bits": mlps.union(linears, (structure.head.part,)),
        }

    def run(
        self, plan: StepPlan, kind: StepKind, layers: list[StoredLayer], embeddings: torch.Tensor, places: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """A step.

        Args:
            plan ([`StepPlan`]): The step.
            kind ([`StepKind`]): Its kind.
            layers (`list` of [`StoredLayer`]): The layers of its cache.
            embeddings (`torch.Tensor` of shape `(rows, hidden_size)`): The token of every row.
            places (`torch.Tensor` of shape `(rows,)`): Their positions.

        Returns:
            Logits `(rows, 1, vocab_size)`, and the LM head's input `(rows, hidden_size)`.
        """
        if kind.attention == TOKENS:  # before there is room for the new key; the program encodes what has no codes
            first_key, padding = _padding_of(plan, len(embeddings)), plan.cache.padding_range
            bits = plan.rule.index_bits
            for layer in (layer for layer in layers if isinstance(layer, PagedLayer)):
                layer.sketch(bits, first_key, padding, most=layer.length, keeps_means=True)
        for layer in layers:
            layer.append_slots(1)
        attention = self._attention(plan, kind, layers, len(embeddings))
        widths = plan.widths if kind.is_mixed else None
        logits, hidden = self._run(kind, layers, attention, embeddings, places, plan.levels, widths)
        attention.note_done()
        self._mark_done(plan)
        assert logits is not None, "steps have logits"
        return logits[:, None], hidden

    def _attention(
        self, plan: StepPlan, kind: StepKind, layers: Sequence[StoredLayer], rows: int
    ) -> AttentionOfLayers:
        """The attention of a step: that of the last step of its kind, where it can go on."""
        known = self._attentions.pop(kind.attention, None)
        if known is None or not known.set_step(plan, layers, rows):
            own = [layer.attention for layer in self.structure.layers]
            query = torch.empty(rows, own[0].heads, 1, own[0].head_dim, dtype=self.structure.dtype)
            known = AttentionOfLayers(plan, layers, query, own)
        self._attentions[kind.attention] = known
        return known

    def run_chunk(
        self,
        plan: RefreshPlan,
        kind: StepKind,
        layers: list[StoredLayer],
        embeddings: torch.Tensor,
        places: torch.Tensor,
    ) -> tuple[torch.Tensor | None, torch.Tensor]:
        """Several tokens of every row, densely.

        Args:
            plan ([`RefreshPlan`]): The forward.
            kind ([`StepKind`]): Its kind.
            layers (`list` of [`StoredLayer`]): The layers of its cache.
            embeddings (`torch.Tensor` of shape `(rows, tokens, hidden_size)`): The tokens of every row.
            places (`torch.Tensor` of shape `(rows, tokens)`): Their positions.

        Returns:
            Logits `(rows, tokens, vocab_size)`, if the LM head runs, and its input `(rows, tokens, hidden_size)`.
        """
        structure, (rows, tokens) = self.structure, embeddings.shape[:2]
        for layer in layers:
            layer.append_slots(tokens)
        attentions = [layer.attention for layer in structure.layers]
        attention = ChunkOfLayers(layers, attentions, _padding_of(plan, rows), tokens)
        lines = embeddings.flatten(0, 1)
        logits, hidden = self._run(kind, layers, attention, lines, places.flatten(), {}, None)
        self._mark_done(plan)
        shape = rows, tokens
        return None if logits is None else logits.unflatten(0, shape), hidden.unflatten(0, shape)

    def _run(
        self,
        kind: StepKind,
        layers: Sequence[StoredLayer],
        attention: AttentionOfLayers | ChunkOfLayers,
        embeddings: torch.Tensor,
        places: torch.Tensor,
        levels: Mapping[str, torch.Tensor],
        widths: Sequence[int | None] | None,
    ) -> tuple[torch.Tensor | None, torch.Tensor]:
        """Run the program of a kind, for lines `(lines, hidden_size)` at their positions `(lines,)`.

        Returns:
            Logits `(lines, vocab_size)`, `None` without the LM head, and its input `(lines, hidden_size)`, in memory
            of their own.
        """
        structure, tables, stores = self.structure, self._tables(int(places.max()) + 1), self._stores_of(layers)
        with self.programs.borrowed(kind, len(embeddings), attention.layout) as program:
            program.set_step(embeddings.float() * structure.embedding_factor, places, levels, tables)
            program.set_caches(stores, [layer.length - kind.tokens for layer in layers])
            if widths is not None:
                program.set_widths(widths)
            attention.fill(program.attention, program.query, program.attended, stores)
            program.program.run()
            return self._logits_of(program), program.hidden.memory.to(structure.dtype, copy=True)

    def _stores_of(self, layers: Sequence[StoredLayer]) -> np.ndarray:
        """Addresses of keys and values of every layer, and their capacity in slots, `(layers, 3)`."""
        stores = [layer.stores() for layer in layers]
        if not self._stores or any(now[0] is not then[0] for now, then in zip(stores, self._stores, strict=True)):
            numbers = [(keys.data_ptr(), values.data_ptr(), keys.shape[2]) for keys, values in stores]
            self._stores, self._store_numbers = stores, np.array(numbers, dtype=np.int64)
        return self._store_numbers

    def _logits_of(self, program: StackProgram) -> torch.Tensor | None:
        """The logits of all lines, `(lines, vocab_size)`, in memory of their own; `None` without the LM head."""
        if program.logits is None:
            return None
        logits = program.logits.memory[:, : program.logits.width] * self.structure.logits_factor
        return capped(logits, self.structure.logits_cap).to(self.structure.dtype)

    def _mark_done(self, plan: AxisPlan) -> None:
        """Tick off everything that a program carries out."""
        for axis in plan.levels:
            plan.done.setdefault(axis, set()).update(self._carried_out[axis])
        plan.check_done()


def _padding_of(plan: StepPlan | RefreshPlan, rows: int) -> torch.Tensor:
    """Padded tokens at the beginning of every row, `(rows,)`."""
    padding = plan.cache.padding
    return torch.zeros(rows, dtype=torch.long) if padding is None else padding
