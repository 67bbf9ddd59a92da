# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""What a running forward of the base is told: the plan of a decode step, or that it is a KV refresh.

It lives in a context variable, so that threads that share a model cannot see each other's and nothing is stored on the
base's modules.
"""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch

from ..budget.action_space import AXES, DENSE
from ..cache.sol_cache import SOLCache
from ..selection.rule import SelectionRule


BACKENDS = ("auto", "reference", "fast")
BITS_BACKENDS = ("fake", "int8")


@dataclass(frozen=True)
class StepPlan:
    """What one decode step computes: per-row settings on the device, `None` on an axis that is dense for all rows.

    Args:
        cache ([`SOLCache`]): Where the attention function finds layers, page index and padding.
        rule ([`SelectionRule`]): How keys are selected.
        token_keep (`torch.Tensor` of shape `(rows,)`, *optional*): Fraction of the cached tokens to read.
        mlp_keep (`torch.Tensor` of shape `(rows,)`, *optional*): Fraction of the MLP input channels to keep.
        bits (`torch.Tensor` of shape `(rows,)`, *optional*): Bit-width of the MLP output.
        backend (`str`): `"reference"`, `"fast"`, or `"auto"` for whichever is measured to be faster.
        bits_backend (`str`): `"fake"` quantizes MLP outputs and back, `"int8"` multiplies in int8 at 8 bits and below.
        memo (`dict`): What is the same in every layer, kept by whoever computes it first.
    """

    cache: SOLCache
    rule: SelectionRule
    token_keep: torch.Tensor | None = None
    mlp_keep: torch.Tensor | None = None
    bits: torch.Tensor | None = None
    backend: str = "auto"
    bits_backend: str = "fake"
    memo: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def from_values(
        cls,
        values: torch.Tensor,
        cache: SOLCache,
        rule: SelectionRule,
        backend: str = "auto",
        bits_backend: str = "fake",
        dense_axes: Collection[str] = (),
    ) -> "StepPlan":
        """Plan for action values `(rows, 3)` in axis units.

        An axis in `dense_axes`, which are dense whatever the action, is left out. On the CPU one that is dense for all
        rows is recognised, too; on an accelerator looking at the values would stall the device.
        """
        columns: dict[str, Any] = columns_but(dense_axes, values)
        if values.device.type == "cpu":
            dense = dict(zip(AXES, DENSE, strict=True))
            columns = {axis: column for axis, column in columns.items() if bool((column < dense[axis]).any())}
        return cls(cache, rule, backend=backend, bits_backend=bits_backend, **columns)

    @property
    def is_fanned_out(self) -> bool:
        """Whether rows share the prefix of their block."""
        if "fanned out" not in self.memo:
            self.memo["fanned out"] = self.cache.is_fanned_out
        return self.memo["fanned out"]

    def covers(self, layer_idx: int) -> bool:
        """Whether `token_keep` applies to a layer."""
        if "sparse layers" not in self.memo:
            self.memo["sparse layers"] = self.cache.sparse_layers
        return layer_idx in self.memo["sparse layers"]

    @property
    def is_dense(self) -> bool:
        """Whether the host knows that this step computes exactly what the base would."""
        return self.token_keep is None and self.mlp_keep is None and self.bits is None


def columns_but(dense_axes: Collection[str], values: torch.Tensor) -> dict[str, torch.Tensor]:
    """The columns `(rows,)` of action values `(rows, 3)` by axis, without axes that are dense at every step."""
    columns = zip(AXES, values.unbind(dim=-1), strict=True)
    return {axis: column for axis, column in columns if axis not in dense_axes}


@dataclass(frozen=True)
class Replay:
    """A KV refresh: a dense forward over the tokens of an episode, which may round differently from the base's own.

    Args:
        cache ([`SOLCache`]): Where the attention function finds layers and padding.
        backend (`str`): As of a [`StepPlan`]; with `"reference"` the forward is the base's.
        skips_head (`bool`): Whether nobody needs its logits.
        memo (`dict`): What is the same in every layer, kept by whoever computes it first.
    """

    cache: SOLCache
    backend: str = "auto"
    skips_head: bool = False
    memo: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)


@dataclass
class ForwardContext:
    """What a running forward of the base is told (`plan` or `replay`), and what it reports (`hidden_states`).

    `hidden_states` is what the LM head received, of shape `(rows, tokens, hidden_size)`.
    """

    plan: StepPlan | None = None
    replay: Replay | None = None
    hidden_states: torch.Tensor | None = None

    @property
    def backend(self) -> str:
        """That of the plan or the replay; a forward that is neither is the base's own."""
        told = self.plan or self.replay
        return "reference" if told is None else told.backend

    @property
    def memo(self) -> dict[str, Any]:
        """That of the plan or the replay, else an empty one."""
        told = self.plan or self.replay
        return {} if told is None else told.memo

    @property
    def is_replay(self) -> bool:
        """Whether this is a KV refresh that may round differently from the base's forward."""
        return self.replay is not None and self.backend != "reference"

    @property
    def is_step(self) -> bool:
        """Whether this is a decode step or a KV refresh that may round differently from the base's forward."""
        return self.backend != "reference"

    @property
    def skips_head(self) -> bool:
        """Whether nobody needs the logits."""
        return self.replay is not None and self.replay.skips_head

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
def active_forward(plan: StepPlan | None = None, replay: Replay | None = None) -> Iterator[ForwardContext]:
    """Make a plan or a replay the one that the hooks of this thread see within the block."""
    context = ForwardContext(plan, replay)
    token = ACTIVE.set(context)
    try:
        yield context
    finally:
        ACTIVE.reset(token)
