# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Decode steps of a base on the CPU that run as one program instead of a forward of its modules.

A forward of SmolLM2's modules calls some 400 modules and 2,000 operations for one token, which takes as long as to
read all weights. A [`StackProgram`] does the same in one call. It reads the same weights where they are. A step that
it does not know, such as one of a base with hooks, runs as before.
"""

import copy
import functools
import threading
import weakref
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
from ...selection.nested_planes import WIDTHS
from ...selection.rule import SelectionRule
from ..attention.refresh.operation import REFRESH_ATTENTION
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
from ..plan import RefreshPlan, StepPlan
from ..step_part import StepPart
from .attention import ALL, attention_kind
from .cache_steps import CacheSteps
from .programs import Programs
from .recognition import DTYPES, TOLERANCE, Probe, StackStructure, find_stack, probe, rotations_of, with_factors
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
    "numba_plane_rows",
)
REFRESH_KERNELS = ("numba_chunk_attention", "numba_chunk_lines")
KNOWN_AXES = frozenset(("token_keep", "mlp_keep", "neuron_keep", "bits"))
MOST_ROWS = {torch.float32: 32, torch.bfloat16: 8}
"""Most tokens in a step; with more, arithmetic takes most of the time."""
MOST_LINES = 32
"""Most tokens of all rows in a refresh; with more, libraries for large products are faster."""
LEAST_WEIGHTS_OF_LAYER = 1 << 18
"""Weights of a decoder layer below which `backend="auto"` leaves the modules to run."""
TABLE_GROWTH = 1024
"""Positions by which the tables of the rotary embeddings grow."""

PACKAGE = __name__.split(".")[0] + "."
OPERATIONS: tuple[Operation[Any], ...] = (
    STEP_ATTENTION,
    REFRESH_ATTENTION,
    LINEAR,
    PLANES_PRODUCT,
    KEPT_CHANNELS,
    KEPT_NEURONS,
)
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
        self._programs: Programs | None = None
        self._steps: weakref.WeakKeyDictionary[SOLCache, CacheSteps] = weakref.WeakKeyDictionary()

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
        scaled = with_factors(base, stack, seen)
        if scaled is None:
            return None
        expected, possible = seen.hidden.float(), rotations_of(base, scaled)
        errors = [float((self.hidden_of_probe(x, seen) - expected).norm() / expected.norm()) for x in possible]
        least = min(errors)
        return possible[errors.index(least)] if least <= TOLERANCE[scaled.dtype] else None

    def steps_over(self, structure: StackStructure, cache: SOLCache, is_new: bool) -> CacheSteps:
        """What runs programs over a cache; with `is_new` it looks for weights that were moved."""
        with self._lock:
            if self._programs is None:
                self._programs = Programs(structure)
            steps, programs = self._steps.get(cache), self._programs
            if is_new or steps is None:
                programs.check_weights()
            if steps is None:
                steps = self._steps[cache] = self._made_steps(structure, programs)
            return steps

    def _made_steps(self, structure: StackStructure, programs: Programs) -> CacheSteps:
        return CacheSteps(structure, functools.partial(self.tables, structure), programs)

    def hidden_of_probe(self, structure: StackStructure, seen: Probe) -> torch.Tensor:
        """The LM head's input in the last forward of a probe, computed by a program that is not kept."""
        cache = copy.deepcopy(seen.cache)  # which the step extends
        layers = [layer for layer in cache.layers if isinstance(layer, StoredLayer)]
        places, steps = torch.tensor([cache.get_seq_length()]), self._made_steps(structure, Programs(structure))
        return steps.run(StepPlan(cache, SelectionRule()), StepKind(ALL), layers, seen.embedding, places)[1]

    def forget_programs(self) -> None:
        """Free all programs, and with them the copies of weights that they read."""
        with self._lock:
            if self._programs is not None:
                self._programs.clear()

    def tables(self, structure: StackStructure, length: int) -> list[Tables]:
        """Tables of the rotary embeddings of every layer, for at least `length` positions."""
        rotary, found = structure.rotary, []
        for index in range(len(structure.layers)):
            kind = rotary.kind_of(index)
            if kind not in self._tables or len(self._tables[kind][0]) < length:
                self._tables[kind] = rotary.tables(kind, -(-length // TABLE_GROWTH) * TABLE_GROWTH)
            found.append(self._tables[kind])
        return found


def kind_of_step(structure: StackStructure, plan: StepPlan, rows: int) -> StepKind | None:
    """The kind of a step; `None` if no program can carry it out.

    Args:
        structure ([`StackStructure`]): The base.
        plan ([`StepPlan`]): The step.
        rows (`int`): Tokens.
    """
    attention = attention_kind(plan)
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


def kind_of_refresh(structure: StackStructure, plan: RefreshPlan, lines: int, tokens: int) -> StepKind | None:
    """The kind of a dense forward of several tokens of every row; `None` if no program can carry it out.

    Args:
        structure ([`StackStructure`]): The base.
        plan ([`RefreshPlan`]): The forward.
        lines (`int`): Tokens of all rows.
        tokens (`int`): Tokens of a row.
    """
    if lines > MOST_LINES or not set(plan.levels) <= {"bits"}:
        return None
    if not all(map(loads, REFRESH_KERNELS)):
        return None
    bits = None
    if plan.reads_planes:
        if None in plan.widths or not structure.fills_groups:  # rows that read other weights
            return None
        bits = max(WIDTHS)
    return StepKind(ALL, bits, tokens=tokens, has_logits=not plan.skips_head)


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
    found = _steps_over(base, plan, is_new)
    if found is None:
        return None
    steps, layers = found
    kind = kind_of_step(steps.structure, plan, len(tokens))
    if kind is None:
        return None
    return steps.run(plan, kind, layers, _embedded(base, tokens)[:, 0], positions)


def run_refresh(
    base: PreTrainedModel, plan: RefreshPlan, tokens: torch.Tensor, positions: torch.Tensor
) -> tuple[torch.Tensor | None, torch.Tensor] | None:
    """A dense forward of several tokens of every row as one program.

    Args:
        base (`PreTrainedModel`): The instrumented base.
        plan ([`RefreshPlan`]): The forward.
        tokens (`torch.Tensor`): Ids `(rows, tokens)`, or embeddings `(rows, tokens, hidden_size)`.
        positions (`torch.Tensor` of shape `(rows, tokens)`): Positions of the tokens.

    Returns:
        Logits `(rows, tokens, vocab_size)`, `None` if the plan skips the head, and the LM head's input
        `(rows, tokens, hidden_size)`; `None` if the base's modules have to run.
    """
    found = _steps_over(base, plan, is_new=True)
    if found is None:
        return None
    steps, layers = found
    kind = kind_of_refresh(steps.structure, plan, tokens.shape[:2].numel(), tokens.shape[1])
    if kind is None:
        return None
    return steps.run_chunk(plan, kind, layers, _embedded(base, tokens), positions)


def _steps_over(
    base: PreTrainedModel, plan: StepPlan | RefreshPlan, is_new: bool
) -> tuple[CacheSteps, list[StoredLayer]] | None:
    """The programs over the cache of a plan, and its layers; `None` if there can be none."""
    cache = plan.cache
    if plan.backend == "reference" or plan.rows_on_device is not None or torch.is_autocast_enabled("cpu"):
        return None
    if not all(_is_ours(operation) for operation in OPERATIONS):
        return None
    known = BaseStack.of(base, is_new)
    if known is None or (plan.backend == "auto" and not known.is_large):
        return None
    structure = known.structure_of(base)
    if structure is None:
        return None
    layers: list[StoredLayer] = [layer for layer in cache.layers if type(layer) in (PagedLayer, WindowLayer)]
    if len(layers) != len(cache.layers):
        return None
    if any(not layer.is_initialized or layer.dtype != structure.dtype for layer in layers):
        return None
    if not {layer.stored_dtype for layer in layers} <= set(DTYPES):
        return None
    return known.steps_over(structure, cache, is_new), layers


def _embedded(base: PreTrainedModel, tokens: torch.Tensor) -> torch.Tensor:
    return tokens if tokens.is_floating_point() else base.get_input_embeddings()(tokens)


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
            _STACKS[base].forget_programs()
