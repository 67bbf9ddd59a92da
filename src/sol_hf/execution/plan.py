# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The plan of a running forward of the base: of a decode step, or of a KV refresh.

The plan is in a context variable. Threads that share a model therefore cannot see each other's plans, and nothing is
stored on the base's modules. Every part of the base that carries out an axis of a plan marks it as done. If a part is
left over at the end of a forward, the forward was not computed as planned, and [`PlanNotExecutedError`] is raised.
"""

from collections.abc import Collection, Hashable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

import torch

from ..budget.axes import AXES
from ..cache.paged_layer import PagedLayer
from ..cache.sol_cache import SOLCache
from ..selection.criterion import CRITERIA
from ..selection.rule import SelectionRule
from .axis_plan import AxisPlan, Parts


BACKENDS = ("auto", "reference", "fast")
BITS_BACKENDS = ("fake", "int8", "nested")


class AttentionKernel(Protocol):
    """A compiled kernel, set up for one step and for all layers of one shape."""

    def fits(
        self, query: torch.Tensor, layer: PagedLayer, scaling: float | None, soft_cap: float | None = None
    ) -> bool:
        """Whether it was set up for layers of this shape, and for these scores."""

    def __call__(self, query: torch.Tensor, layer: PagedLayer) -> torch.Tensor:
        """Attention of one new token per row, `(rows, 1, heads, value_dim)`."""


class ChunkKernel(Protocol):
    """A compiled kernel for the tokens of a KV refresh, for all layers on a device."""

    def __call__(self, query: torch.Tensor, layer: PagedLayer, scaling: float | None) -> torch.Tensor:
        """Dense attention of several new tokens per row, `(rows, tokens, heads, value_dim)`."""


@dataclass(frozen=True)
class DeviceRows:
    """The first key and the number of keys of every row, known on the device only.

    Args:
        first_key (`torch.LongTensor` of shape `(rows,)`): Slot of the first real token.
        count (`torch.LongTensor` of shape `(rows,)`): Keys, those of the tokens to process included.
    """

    first_key: torch.Tensor
    count: torch.Tensor


@dataclass
class SharedByLayers:
    """Values that are the same in every layer of a forward, set by the first layer that needs them.

    Args:
        kernels (`dict[str, list[AttentionKernel]]`): Kernels that are set up, by the name of the fast path.
    """

    kernels: dict[str, list[AttentionKernel]] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class StepPlan(AxisPlan):
    """The plan of one decode step.

    Args:
        cache ([`SOLCache`]): Layers, page index and padding, for the attention function.
        rule ([`SelectionRule`]): How keys are selected.
        levels (`Mapping[str, torch.Tensor]`): Per axis that is not dense for all rows the levels `(rows,)`, in axis
            units, on the device.
        backend (`str`): `"reference"`, `"fast"`, or `"auto"` for the one that is expected to be the fastest.
        bits_backend (`str`): `"fake"` quantizes MLP outputs and back, `"int8"` multiplies in int8 at 8 bits and below,
            `"nested"` reads the weights of all linear layers in that many bits.
        parts (`Parts`, *optional*): The parts that have to carry out each axis; `None` for no check.
        rows_on_device ([`DeviceRows`], *optional*): In a forward that is captured in a CUDA graph.
    """

    cache: SOLCache
    rule: SelectionRule
    levels: Mapping[str, torch.Tensor] = field(default_factory=dict)
    backend: str = "auto"
    bits_backend: str = "fake"
    parts: Parts = field(default_factory=dict)
    rows_on_device: DeviceRows | None = None
    shared: SharedByLayers = field(default_factory=SharedByLayers, init=False, repr=False)
    done: dict[str, set[Hashable]] = field(default_factory=dict, init=False, repr=False)

    @classmethod
    def from_values(
        cls,
        values: torch.Tensor,
        cache: SOLCache,
        rule: SelectionRule,
        backend: str = "auto",
        bits_backend: str = "fake",
        dense_axes: Collection[str] = (),
        parts: Parts | None = None,
    ) -> "StepPlan":
        """Plan for the actions of a step.

        Axes in `dense_axes` are left out. On the CPU axes that are dense for all rows in this step are left out, too,
        and `token_keep` where all rows read all of their keys, as in a short text; on an accelerator, to read the
        values would stall the device.

        Args:
            values (`torch.Tensor` of shape `(rows, axes)`): Levels of every row in axis units; the axes are those of
                the cache's action space.
            cache ([`SOLCache`]): See [`StepPlan`].
            rule ([`SelectionRule`]): See [`StepPlan`].
            backend (`str`, *optional*, defaults to `"auto"`): See [`StepPlan`].
            bits_backend (`str`, *optional*, defaults to `"fake"`): See [`StepPlan`].
            dense_axes (`Collection[str]`, *optional*): Axes that are dense at every step.
            parts (`Parts`, *optional*): See [`StepPlan`].
        """
        if values.device.type != "cpu":
            levels = planned_levels(cache, values, dense_axes)
        else:
            columns = enumerate(zip(cache.action_space.axis_names, zip(*values.tolist(), strict=True), strict=True))
            kept = {axis: n for n, (axis, column) in columns if min(column) < AXES[axis].dense}
            levels = {axis: values[:, n] for axis, n in kept.items() if axis not in dense_axes}
            if "token_keep" in levels and reads_all_keys(cache, rule, levels["token_keep"]):
                del levels["token_keep"]
        return cls(cache, rule, levels, backend, bits_backend, parts or {})

    @property
    def token_keep(self) -> torch.Tensor | None:
        """Fraction of the cached tokens that attention reads, `(rows,)`; `None` where all are read."""
        return self.levels.get("token_keep")

    @cached_property
    def is_fanned_out(self) -> bool:
        """Whether this is a step of a rollout, see [`SOLCache.fan_out`]."""
        return self.cache.is_fanned_out

    @cached_property
    def kept_share(self) -> float:
        """Mean `token_keep` of the rows, read by the host."""
        return 1.0 if self.token_keep is None else float(self.token_keep.mean())

    @cached_property
    def sparse_layers(self) -> frozenset[int]:
        """Layers to which `token_keep` applies."""
        return self.cache.sparse_layers

    @property
    def is_dense(self) -> bool:
        """Whether the host knows that this step computes exactly what the base would."""
        return not self.levels


def planned_levels(cache: SOLCache, values: torch.Tensor, dense_axes: Collection[str]) -> dict[str, torch.Tensor]:
    """The columns `(rows,)` of action values `(rows, axes)` by axis, without axes that are dense at every step."""
    return {axis: level for axis, level in cache.action_space.by_axis(values).items() if axis not in dense_axes}


def reads_all_keys(cache: SOLCache, rule: SelectionRule, token_keep: torch.Tensor) -> bool:
    """Whether a step at these levels `(rows,)` reads all keys in every row, its own included; read by the host.

    It is not asked of rows that share a prefix, nor of layers with a sliding window, whose keys begin anywhere.
    """
    if cache.is_fanned_out or not all(isinstance(cache.layers[index], PagedLayer) for index in cache.sparse_layers):
        return False
    seen, criterion = cache.get_seq_length() + 1, CRITERIA[rule.criterion]
    padding = [0] * len(token_keep) if cache.padding is None else cache.padding.tolist()
    rows = zip(token_keep.tolist(), padding, strict=True)
    return all(criterion.reads_all(rule, level, seen - first) for level, first in rows)


@dataclass(frozen=True, eq=False)
class RefreshPlan(AxisPlan):
    """The plan of a KV refresh: a dense forward over an episode's tokens, which may round differently from the base's.

    Args:
        cache ([`SOLCache`]): Layers and padding, for the attention function.
        backend (`str`): See [`StepPlan`]; with `"reference"` the forward is the base's, but for planes.
        skips_head (`bool`): Whether its logits are not needed.
        rows_on_device ([`DeviceRows`], *optional*): In a forward that is captured in a CUDA graph.
        levels (`Mapping[str, torch.Tensor]`, *optional*): Of `bits` only, `(rows,)`: in how many bits every row reads
            the weights of linear layers, of planes up to 8. Without, all rows read the original weights.
        parts (`Parts`, *optional*): See [`StepPlan`].
    """

    cache: SOLCache
    backend: str = "auto"
    skips_head: bool = False
    rows_on_device: DeviceRows | None = None
    levels: Mapping[str, torch.Tensor] = field(default_factory=dict)
    parts: Parts = field(default_factory=dict)
    bits_backend: str = field(default="nested", init=False)
    done: dict[str, set[Hashable]] = field(default_factory=dict, init=False, repr=False)
    chunk_kernels: dict[torch.device, ChunkKernel] = field(default_factory=dict, init=False, repr=False)
    """Kernels that are set up, for the layers of every device."""


@dataclass
class ForwardContext:
    """The plan of a running forward of the base (`plan` or `refresh`), and what was seen of it.

    `hidden_states` is the LM head's input, of shape `(rows, tokens, hidden_size)`. `masks` are the attention masks
    that transformers has made, and `mask_kinds` those that layers have got, with what they do.
    """

    plan: StepPlan | None = None
    refresh: RefreshPlan | None = None
    hidden_states: torch.Tensor | None = None

    # Every module of the base reads these, so they are computed once.
    masks: list[torch.Tensor] = field(default_factory=list)
    mask_kinds: list[tuple[torch.Tensor, str]] = field(default_factory=list)
    told: StepPlan | RefreshPlan | None = field(init=False)
    """The plan of the step or of the refresh; `None` for an ordinary forward of the base."""
    may_round_differently: bool = field(init=False)
    """Whether this is a decode step or a KV refresh whose results may differ from the base's by rounding."""

    def __post_init__(self):
        self.told = self.plan or self.refresh
        self.may_round_differently = self.told is not None and self.told.backend != "reference"

    @property
    def skips_head(self) -> bool:
        """Whether the logits are not needed."""
        return self.refresh is not None and self.refresh.skips_head

    def head_inputs(self) -> torch.Tensor:
        """The LM head's input, `(rows, tokens, hidden_size)`.

        Raises:
            RuntimeError: if the LM head did not run, or the base was not instrumented.
        """
        if self.hidden_states is None:
            raise RuntimeError("The base's LM head did not run within this forward, so there is no hidden state.")
        return self.hidden_states

    def last_hidden_state(self) -> torch.Tensor:
        """The LM head's input for the last token, `(rows, hidden_size)`."""
        return self.head_inputs()[:, -1]


ACTIVE: ContextVar[ForwardContext | None] = ContextVar("sol_hf_active_forward", default=None)


@contextmanager
def active_forward(plan: StepPlan | None = None, refresh: RefreshPlan | None = None) -> Iterator[ForwardContext]:
    """Within the block, the parts of a base that run in this thread carry out this plan.

    Raises:
        PlanNotExecutedError: at the end of the block, if a part of the plan was not carried out.
    """
    context = ForwardContext(plan, refresh)
    token = ACTIVE.set(context)
    try:
        yield context
    finally:
        ACTIVE.reset(token)
    if context.told is not None:
        context.told.check_done()
