# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""What a running forward of the base is told: the plan of a decode step, or that of a KV refresh.

It lives in a context variable, so that threads that share a model cannot see each other's plans and nothing is stored
on the base's modules. Every part of the base that carries out an axis of a plan marks it as done. A forward that ends
with a part left over was computed in another way than it was planned, and raises [`PlanNotExecutedError`].
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
from ..errors import PlanNotExecutedError
from ..selection.rule import SelectionRule


BACKENDS = ("auto", "reference", "fast")
BITS_BACKENDS = ("fake", "int8")

Parts = Mapping[str, Mapping[Hashable, str]]
"""Per axis the parts of a base that carry it out, by what they mark themselves with, and their names for messages."""


class AttentionKernel(Protocol):
    """A compiled kernel that is set up for one step, and for all layers of one shape."""

    def fits(self, query: torch.Tensor, layer: PagedLayer, scaling: float | None) -> bool:
        """Whether it was set up for layers of this shape."""

    def __call__(self, query: torch.Tensor, layer: PagedLayer) -> torch.Tensor:
        """Attention of one new token per row, `(rows, 1, heads, value_dim)`."""


class ChunkKernel(Protocol):
    """A compiled kernel for the tokens of a KV refresh, for all layers on a device."""

    def __call__(self, query: torch.Tensor, layer: PagedLayer, scaling: float | None) -> torch.Tensor:
        """Dense attention of several new tokens per row, `(rows, tokens, heads, value_dim)`."""


@dataclass(frozen=True)
class DeviceRows:
    """Where the keys of every row begin and how many there are, known on the device only.

    Args:
        first_key (`torch.LongTensor` of shape `(rows,)`): Slot of the first real token.
        count (`torch.LongTensor` of shape `(rows,)`): Keys, those of the tokens to process included.
    """

    first_key: torch.Tensor
    count: torch.Tensor


@dataclass
class SharedByLayers:
    """What is the same in every layer of a forward, kept by the layer that needs it first.

    Args:
        kernels (`dict[str, list[AttentionKernel]]`): Kernels that are set up, by the name of the fast path.
        hiding_masks (`list[torch.Tensor]`): Attention masks that were found to hide keys and do nothing else.
        kept_share (`int` or `str`, *optional*): Mean `token_keep` in eighths, `"all"` where it is not planned.
    """

    kernels: dict[str, list[AttentionKernel]] = field(default_factory=dict)
    hiding_masks: list[torch.Tensor] = field(default_factory=list)
    kept_share: int | str | None = None


@dataclass(frozen=True, eq=False)
class StepPlan:
    """What one decode step computes.

    Args:
        cache ([`SOLCache`]): Where the attention function finds layers, page index and padding.
        rule ([`SelectionRule`]): How keys are selected.
        levels (`Mapping[str, torch.Tensor]`): Per axis that is not dense for all rows the levels `(rows,)`, in axis
            units, on the device.
        backend (`str`): `"reference"`, `"fast"`, or `"auto"` for whichever is measured to be faster.
        bits_backend (`str`): `"fake"` quantizes MLP outputs and back, `"int8"` multiplies in int8 at 8 bits and below.
        parts (`Parts`, *optional*): The parts that have to carry out each axis; not checked without it.
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

        An axis in `dense_axes`, which are dense whatever the action, is left out. On the CPU an axis that is dense for
        all rows is recognised, too; on an accelerator looking at the values would stall the device.

        Args:
            values (`torch.Tensor` of shape `(rows, axes)`): Levels of every row in axis units; the axes are those of
                the cache's action space.
            cache ([`SOLCache`]): As of the plan.
            rule ([`SelectionRule`]): As of the plan.
            backend (`str`, *optional*, defaults to `"auto"`): As of the plan.
            bits_backend (`str`, *optional*, defaults to `"fake"`): As of the plan.
            dense_axes (`Collection[str]`, *optional*): Axes that are dense at every step.
            parts (`Parts`, *optional*): As of the plan.
        """
        levels = planned_levels(cache, values, dense_axes)
        if values.device.type == "cpu":
            levels = {axis: level for axis, level in levels.items() if bool((level < AXES[axis].dense).any())}
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
    def is_timed(self) -> bool:
        """Whether each part may choose by the clock among its ways to compute the same.

        Rollouts are compared and resumed to the bit, which a choice by the clock would spoil.
        """
        return self.backend == "auto" and not self.is_fanned_out

    @cached_property
    def sparse_layers(self) -> frozenset[int]:
        """Layers to which `token_keep` applies."""
        return self.cache.sparse_layers

    @property
    def is_dense(self) -> bool:
        """Whether the host knows that this step computes exactly what the base would."""
        return not self.levels

    def mark_done(self, axis: str, part: Hashable) -> None:
        """Take note that a part carries out its share of an axis."""
        self.done.setdefault(axis, set()).add(part)

    def check_done(self) -> None:
        """Raise [`PlanNotExecutedError`] if a part of a planned axis did not carry it out; the message names them."""
        left = {
            axis: [name for part, name in self.parts[axis].items() if part not in self.done.get(axis, ())]
            for axis in self.levels
            if axis in self.parts
        }
        if any(left.values()):
            raise PlanNotExecutedError({axis: names for axis, names in left.items() if names})


def planned_levels(cache: SOLCache, values: torch.Tensor, dense_axes: Collection[str]) -> dict[str, torch.Tensor]:
    """The columns `(rows,)` of action values `(rows, axes)` by axis, without axes that are dense at every step."""
    return {axis: level for axis, level in cache.action_space.by_axis(values).items() if axis not in dense_axes}


@dataclass(frozen=True, eq=False)
class RefreshPlan:
    """A KV refresh: a dense forward over the tokens of an episode, which may round differently from the base's own.

    Args:
        cache ([`SOLCache`]): Where the attention function finds layers and padding.
        backend (`str`): As of a [`StepPlan`]; with `"reference"` the forward is the base's.
        skips_head (`bool`): Whether nobody needs its logits.
        rows_on_device ([`DeviceRows`], *optional*): In a forward that is captured in a CUDA graph.
    """

    cache: SOLCache
    backend: str = "auto"
    skips_head: bool = False
    rows_on_device: DeviceRows | None = None
    chunk_kernels: dict[torch.device, ChunkKernel] = field(default_factory=dict, init=False, repr=False)
    """Kernels that are set up, for the layers of every device."""

    @property
    def is_timed(self) -> bool:
        """Whether each part may choose by the clock among its ways to compute the same."""
        return self.backend == "auto"


@dataclass
class ForwardContext:
    """What a running forward of the base is told (`plan` or `refresh`), and what it reports (`hidden_states`).

    `hidden_states` is what the LM head received, of shape `(rows, tokens, hidden_size)`.
    """

    plan: StepPlan | None = None
    refresh: RefreshPlan | None = None
    hidden_states: torch.Tensor | None = None

    # What every module of the base asks for is computed once.
    told: StepPlan | RefreshPlan | None = field(init=False)
    """The plan of the step or of the refresh; a forward without one is the base's own."""
    may_round_differently: bool = field(init=False)
    """Whether this is a decode step or a KV refresh that need not add up in the order of the base's forward."""
    is_timed: bool = field(init=False)
    """Whether each part may choose by the clock among its ways to compute the same."""

    def __post_init__(self):
        self.told = self.plan or self.refresh
        self.may_round_differently = self.told is not None and self.told.backend != "reference"
        self.is_timed = self.told is not None and self.told.is_timed

    @property
    def skips_head(self) -> bool:
        """Whether nobody needs the logits."""
        return self.refresh is not None and self.refresh.skips_head

    def head_inputs(self) -> torch.Tensor:
        """What the forward reported.

        Raises:
            RuntimeError: if the LM head did not run, or the base was not instrumented.
        """
        if self.hidden_states is None:
            raise RuntimeError("The base's LM head did not run within this forward, so there is no hidden state.")
        return self.hidden_states

    def last_hidden_state(self) -> torch.Tensor:
        """Of the last token, `(rows, hidden_size)`."""
        return self.head_inputs()[:, -1]


ACTIVE: ContextVar[ForwardContext | None] = ContextVar("sol_hf_active_forward", default=None)


@contextmanager
def active_forward(plan: StepPlan | None = None, refresh: RefreshPlan | None = None) -> Iterator[ForwardContext]:
    """Make a plan the one that the parts of a base see in this thread within the block.

    Raises:
        PlanNotExecutedError: at the end of the block, if a part of the plan was not carried out.
    """
    context = ForwardContext(plan, refresh)
    token = ACTIVE.set(context)
    try:
        yield context
    finally:
        ACTIVE.reset(token)
    if plan is not None:
        plan.check_done()
