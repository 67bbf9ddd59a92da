# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Decode steps of a base on the CPU that run as one program instead of a forward of its modules.

A forward of SmolLM2's modules calls some 400 modules and 2,000 operations for one token, which takes as long as to
read all weights. A [`StackProgram`] does the same in one call. It reads the same weights where they are. A step that
it does not know, such as one of a base with hooks, runs as before.
"""

import threading
import weakref
from collections.abc import Hashable
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from ...cache.paged_layer import PagedLayer
from ...cache.sol_cache import SOLCache
from ...cache.stored_layer import StoredLayer
from ...cache.window_layer import WindowLayer
from ...kernels.cpu.compilation import loads
from ...kernels.cpu.watched import WatchedModules
from ...selection.rule import SelectionRule
from ..attention.step.operation import STEP_ATTENTION
from ..decoder_layers import decoder_layers
from ..dispatch import Operation
from ..linear.operation import LINEAR
from ..linear.planes.operation import PLANES_PRODUCT
from ..lm_head import capture_hidden_state
from ..mlp.kept_channels.input_major import MOST_READ as MOST_CHANNELS
from ..mlp.kept_channels.input_major import InputMajorMLP
from ..mlp.kept_channels.operation import KEPT_CHANNELS
from ..mlp.kept_neurons.neuron_major import MOST_READ as MOST_NEURONS
from ..mlp.kept_neurons.neuron_major import NeuronMajor
from ..mlp.kept_neurons.operation import KEPT_NEURONS
from ..mlp.step_down import StepDown
from ..mlp.step_mlp import StepMLP
from ..plan import StepPlan
from ..step_part import StepPart
from .assembly import StackProgram
from .attention import TOKENS, Arguments, AttentionOfLayers, attention_kind
from .recognition import DTYPES, TOLERANCE, Probe, StackStructure, find_stack, probe, with_factors
from .rotary import Tables
from .stages import StepKind


KERNELS = (
    "numba_program",
    "numba_step",
    "numba_linear",
    "numba_attention",
    "numba_tokens",
    "numba_mlp",
    "numba_planes",
)
KNOWN_AXES = frozenset(("token_keep", "mlp_keep", "neuron_keep", "bits"))
MOST_ROWS = {torch.float32: 32, torch.bfloat16: 8}
"""Most tokens in a step; with more, arithmetic takes most of the time."""
LEAST_WEIGHTS_OF_LAYER = 1 << 18
"""Weights of a decoder layer below which `backend="auto"` leaves the modules to run."""
TABLE_GROWTH = 1024
"""Positions by which the tables of the rotary embeddings grow."""

PACKAGE = __name__.split(".")[0] + "."
OPERATIONS: tuple[Operation[Any], ...] = (STEP_ATTENTION, LINEAR, PLANES_PRODUCT, KEPT_CHANNELS, KEPT_NEURONS)
"""What the operations of a program replace. If another implementation is registered, modules have to run."""

_STACKS: "weakref.WeakKeyDictionary[nn.Module, BaseStack]" = weakref.WeakKeyDictionary()
_LOCK = threading.Lock()


class BaseStack:
    """What is known of a base: its structure, or that it has none that is recognised."""

    def __init__(self, base: PreTrainedModel):
        self.modules = WatchedModules(base, StepPart, capture_hidden_state)
        self._tables: dict[str | None, Tables] = {}
        self.is_large = _is_large(base)
        self._lock = threading.Lock()
        self._found: tuple[StackStructure | None] | None = None
        self.steps: weakref.WeakKeyDictionary[SOLCache, CacheSteps] = weakref.WeakKeyDictionary()

    @classmethod
    def of(cls, base: PreTrainedModel, is_new: bool = True) -> "BaseStack | None":
        """The one of a base, made anew if its modules were replaced; `None` as long as a module has hooks.

        To look at all modules takes as long as a layer. Without `is_new`, only hooks are looked for.
        """
        with _LOCK:
            known = _STACKS.get(base)
            if known is not None and not is_new and known.modules.has_no_new_hooks():
                return known
            if known is None or not known.modules.are_current():
                known = cls(base)
            if not known.modules.are_plain():
                return None
            _STACKS[base] = known
            return known

    def structure_of(self, base: PreTrainedModel) -> StackStructure | None:
        """The structure of the base, found when it is first needed; `None` if it is not recognised."""
        with self._lock:
            if self._found is None:
                self._found = (self._verified(base),)
            return self._found[0]

    @staticmethod
    def is_recognised(base: PreTrainedModel) -> bool | None:
        """Whether steps of a base can run as programs; `None` if no step has needed to know so far."""
        with _LOCK:
            known = _STACKS.get(base)
        if known is None or known._found is None or not known.modules.are_current():
            return None
        return known._found[0] is not None

    def _verified(self, base: PreTrainedModel) -> StackStructure | None:
        """The structure of a base, if a step that is computed from it gives what the base gives."""
        stack = find_stack(base) if all(map(loads, KERNELS)) else None
        if stack is None:
            return None
        seen = probe(base, stack)
        stack = with_factors(stack, seen)
        if stack is None:
            return None
        hidden = _hidden_of_probe(stack, self, seen)
        difference = (hidden - seen.hidden.float()).norm() / seen.hidden.float().norm()
        return stack if bool(difference <= TOLERANCE[stack.dtype]) else None

    def tables(self, structure: StackStructure, length: int) -> list[Tables]:
        """Tables of the rotary embeddings of every layer, for at least `length` positions."""
        rotary, found = structure.rotary, []
        for index in range(len(structure.layers)):
            kind = rotary.kind_of(index)
            if kind not in self._tables or len(self._tables[kind][0]) < length:
                self._tables[kind] = rotary.tables(kind, -(-length // TABLE_GROWTH) * TABLE_GROWTH)
            found.append(self._tables[kind])
        return found


class CacheSteps:
    """The programs over one cache.

    Args:
        known ([`BaseStack`]): The base.
        structure ([`StackStructure`]): Its structure.
    """

    def __init__(self, known: BaseStack, structure: StackStructure):
        self.known, self.structure = known, structure
        self._programs: dict[tuple[StepKind, int, tuple[Arguments, ...]], StackProgram] = {}
        self._addresses: list[int] = []
        self._weights: list[torch.Tensor] = []
        """The weights at these addresses: their memory is not freed while programs refer to it."""
        self._checked: set[StackProgram] = set()
        """Programs that read the weights which the base had when the running episode began."""
        self.check_weights()
        mlps = frozenset(StepMLP.of(layer.mlp) for layer in structure.layers)
        linears = (product.part for products in structure.products for product in products.all)
        self._carried_out: dict[str, frozenset[Hashable]] = {
            "token_keep": frozenset(layer.attention.layer_idx for layer in structure.layers),
            "mlp_keep": mlps,
            "neuron_keep": frozenset(StepDown.of(layer.contraction) for layer in structure.layers),
            "bits": mlps.union(linears, (structure.head.part,)),
        }

    def check_weights(self) -> None:
        """Let later steps see weights that were moved, and copies of weights that were made again or dropped."""
        addresses = list(map(torch.Tensor.data_ptr, self.structure.weights))
        if addresses != self._addresses:
            self._programs, self._addresses = {}, addresses
            self._weights = list(map(torch.Tensor.detach, self.structure.weights))
        self._checked = set()

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
        structure = self.structure
        if kind.attention == TOKENS:  # before there is room for the new key, which the program encodes
            first_key = _first_key(plan, len(embeddings))
            for layer in (layer for layer in layers if isinstance(layer, PagedLayer)):
                layer.sketch(plan.rule.index_bits, first_key, plan.cache.padding_range)
        for layer in layers:
            layer.append_slots(1)
        first = structure.layers[0].attention
        query = torch.empty(len(embeddings), first.heads, 1, first.head_dim, dtype=structure.dtype)
        attention = AttentionOfLayers(plan, layers, query, [layer.attention.scaling for layer in structure.layers])
        program = self._program(kind, len(embeddings), attention)
        tables = self.known.tables(structure, int(places.max()) + 1)
        program.set_step(embeddings.float() * structure.embedding_factor, places, plan.levels, tables)
        program.set_caches(layers)
        if kind.is_mixed:
            program.set_widths(plan.widths)
        attention.fill(program.attention, program.query, program.attended)
        program.program.run()
        attention.note_done()
        self._mark_done(plan)
        logits = program.logits.memory[:, : program.logits.width] * structure.logits_factor
        return logits.to(structure.dtype)[:, None], program.hidden.memory.to(structure.dtype, copy=True)

    def _program(self, kind: StepKind, rows: int, attention: AttentionOfLayers) -> StackProgram:
        key = kind, rows, attention.layout
        program = self._programs.get(key)
        if program is None or not (program in self._checked or program.is_current()):
            program = self._programs[key] = StackProgram(self.structure, kind, rows, attention.layout)
        self._checked.add(program)
        return program

    def _mark_done(self, plan: StepPlan) -> None:
        """Tick off everything that a program carries out."""
        for axis in plan.levels:
            plan.done.setdefault(axis, set()).update(self._carried_out[axis])
        plan.check_done()


def _first_key(plan: StepPlan, rows: int) -> torch.Tensor:
    padding = plan.cache.padding
    return torch.zeros(rows, dtype=torch.long) if padding is None else padding


def kind_of_step(structure: StackStructure, plan: StepPlan, rows: int, length: int) -> StepKind | None:
    """The kind of a step; `None` if no program can carry it out.

    Args:
        structure ([`StackStructure`]): The base.
        plan ([`StepPlan`]): The step.
        rows (`int`): Tokens.
        length (`int`): Tokens in the cache.
    """
    attention = attention_kind(plan, length)
    if attention is None or not set(plan.levels) <= KNOWN_AXES or rows > MOST_ROWS[structure.dtype]:
        return None
    bits, is_mixed, rounds = None, False, False
    if "bits" in plan.levels:
        rounds, is_mixed = plan.bits_backend == "fake", plan.reads_planes and len(set(plan.widths)) > 1
        if not rounds and not (plan.reads_planes and structure.fills_groups):
            return None
        if is_mixed and not structure.fills_tiles:
            return None
        bits = plan.widths[0] if plan.reads_planes and not is_mixed else None
    channels = _how(plan, "mlp_keep", MOST_CHANNELS, structure, rows, bits)
    neurons = _how(plan, "neuron_keep", MOST_NEURONS, structure, rows, bits)
    return StepKind(attention, bits, is_mixed, rounds, channels, neurons)


def _how(
    plan: StepPlan,
    axis: str,
    most: dict[torch.dtype, dict[int, float]],
    structure: StackStructure,
    rows: int,
    bits: int | None,
) -> str:
    """Whether all channels of MLPs are read, or the weights of the kept ones, or others are set to zero."""
    if axis not in plan.levels:
        return "all"
    share = float(plan.levels[axis][0])
    if rows > 1 or bits is not None or share > most[structure.dtype].get(1, 0.0):
        return "zeroed"
    if axis == "mlp_keep":
        copies = [StepMLP.of(layer.mlp).copy_of(InputMajorMLP) for layer in structure.layers]
        return "zeroed" if None in copies else "kept"
    downs = [StepDown.of(layer.contraction).copy_of(NeuronMajor) for layer in structure.layers]
    return "zeroed" if None in downs else "kept"


def run_step(
    base: PreTrainedModel, plan: StepPlan, tokens: torch.Tensor, positions: torch.Tensor, is_new: bool = True
) -> tuple[torch.Tensor, torch.Tensor] | None:
    """A decode step as one program.

    Args:
        base (`PreTrainedModel`): The instrumented base.
        plan ([`StepPlan`]): The step.
        tokens (`torch.Tensor`): Ids `(rows, 1)`, or embeddings `(rows, 1, hidden_size)`.
        positions (`torch.Tensor` of shape `(rows,)`): Positions of the tokens.
        is_new (`bool`, *optional*, defaults to `True`): Whether to look for modules and weights that were replaced;
            hooks are always looked for.

    Returns:
        Logits `(rows, 1, vocab_size)` and the LM head's input `(rows, hidden_size)`; `None` if the base, the cache or
        the step is of another kind, so that the base's modules have to run.
    """
    cache = plan.cache
    if plan.backend == "reference" or plan.rows_on_device is not None or tokens.device.type != "cpu":
        return None
    if not all(_is_ours(operation) for operation in OPERATIONS):
        return None
    known = BaseStack.of(base, is_new)
    if known is None or (plan.backend == "auto" and not known.is_large):
        return None
    structure = known.structure_of(base)
    if structure is None:
        return None
    layers = [layer for layer in cache.layers if type(layer) in (PagedLayer, WindowLayer)]
    if len(layers) != len(cache.layers) or torch.is_autocast_enabled("cpu"):
        return None
    if any(not layer.is_initialized or layer.dtype != structure.dtype for layer in layers):
        return None
    if not {layer.stored_dtype for layer in layers} <= set(DTYPES):
        return None
    kind = kind_of_step(structure, plan, len(tokens), cache.get_seq_length())
    if kind is None:
        return None
    steps = known.steps.get(cache)
    if steps is None:
        steps = known.steps[cache] = CacheSteps(known, structure)
    elif is_new:
        steps.check_weights()
    embeddings = tokens if tokens.is_floating_point() else base.get_input_embeddings()(tokens)
    return steps.run(plan, kind, layers, embeddings[:, 0], positions)


def _is_large(base: PreTrainedModel) -> bool:
    """Whether the layers of a base have enough weights for `backend="auto"` to use compiled code."""
    layers = decoder_layers(base)
    return layers is not None and sum(x.numel() for x in layers[0].parameters()) >= LEAST_WEIGHTS_OF_LAYER


def _is_ours(operation: Operation[Any]) -> bool:
    """Whether all implementations of an operation are those of this package."""
    return all(type(member).__module__.startswith(PACKAGE) for _, member in operation.ordered)


def forget_programs(base: PreTrainedModel) -> None:
    """Free all programs of a base, and with them the copies of weights that they read."""
    with _LOCK:
        if base in _STACKS:
            _STACKS[base].steps.clear()


def _hidden_of_probe(stack: StackStructure, known: BaseStack, seen: Probe) -> torch.Tensor:
    """The LM head's input in the last forward of a probe, computed by a program."""
    layers = [layer for layer in seen.cache.layers if isinstance(layer, StoredLayer)]
    steps, places = CacheSteps(known, stack), torch.tensor([seen.cache.get_seq_length()])
    return steps.run(StepPlan(seen.cache, SelectionRule()), StepKind("all"), layers, seen.embedding, places)[1]
