# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The settings of the decode steps of a call."""

from dataclasses import dataclass
from functools import cached_property

from transformers import LogitsProcessorList

from ..budget.action_space import ActionSpace
from ..budget.budget import Budget
from ..budget.limits import Limits
from ..controllers.base import Controller
from ..controllers.processors import (
    ActionProcessorList,
    DenseRowsProcessor,
    GenerationBudgetProcessor,
    HardBudgetProcessor,
    PinnedAxesProcessor,
    limits_of,
)
from ..selection.rule import SelectionRule


LIMITS = (PinnedAxesProcessor, DenseRowsProcessor, HardBudgetProcessor, GenerationBudgetProcessor)
"""Processors that hold a call to its budget."""
OWN_CONTROLLERS = f"{Controller.__module__.rpartition('.')[0]}."
"""Module names of controllers and processors that do not edit what they are given begin with this."""


@dataclass(frozen=True)
class DecodeControls:
    """Controller, budget and options of decode steps; one object per `generate` or `score` call.

    Args:
        controller ([`Controller`]): Scores the actions.
        budget ([`Budget`], *optional*): Targets; `None` for a controller that needs none.
        processors ([`ActionProcessorList`]): Applied to the scores in order.
        rule ([`SelectionRule`]): How cached keys are selected.
        episode_length (`int`): Steps in an episode.
        kv_refresh (`bool` or `"auto"`): Whether an episode ends with a dense forward over its tokens, see
            [`needs_refresh`].
        do_sample (`bool`): Draw the action instead of taking the best.
        temperature (`float`): Divides the scores before drawing.
        backend (`str`): The implementations to use, see [`StepPlan`].
        bits_backend (`str`): How `bits` is computed, see [`StepPlan`].
        cuda_graphs (`bool` or `int`): Run the base's part of steps and KV refreshes from CUDA graphs; a number is the
            length of the text above which no graphs are used.
        kv_dtype (`str`, *optional*): In which a new cache keeps keys and values; by default that of the config.
        asks_kv_dtype (`bool`): Whether the call itself says so, and not a stored config.
        dense_axes (`frozenset[str]`): Axes that are dense at every step, for any scores of the controller.
        action_space ([`ActionSpace`], *optional*): The actions with what they spend in this call, if that is not what
            they spend by default.
        origin (`str`): Why a call without a budget among its arguments has steps, as the end of an error message.
    """

    controller: Controller
    budget: Budget | None
    processors: LogitsProcessorList
    rule: SelectionRule
    episode_length: int
    kv_refresh: bool | str = True
    do_sample: bool = False
    temperature: float = 1.0
    backend: str = "auto"
    bits_backend: str = "fake"
    cuda_graphs: bool | int = False
    kv_dtype: str | None = None
    asks_kv_dtype: bool = False
    dense_axes: frozenset[str] = frozenset()
    action_space: ActionSpace | None = None
    origin: str = ""

    @cached_property
    def edits(self) -> LogitsProcessorList:
        """The processors that come before the limits."""
        return ActionProcessorList(x for x in self.processors if type(x) not in LIMITS)

    @cached_property
    def limits(self) -> LogitsProcessorList:
        """The processors that hold the call to its budget. They come last, and see the state itself."""
        return ActionProcessorList(x for x in self.processors if type(x) in LIMITS)

    @cached_property
    def simple_limits(self) -> Limits | None:
        """The limits in numbers, where an action is the best one within them; `None` where more is done to scores."""
        return None if self.do_sample or self.edits or self.needs_copies else limits_of(self.limits)

    @cached_property
    def keeps_bank(self) -> bool:
        """Whether the budget is kept over the whole call."""
        return any(isinstance(x, GenerationBudgetProcessor) for x in self.limits)

    @cached_property
    def is_exact(self) -> bool:
        """Whether the call has to know the number of its steps."""
        return any(isinstance(x, GenerationBudgetProcessor) and x.exact for x in self.limits)

    @cached_property
    def needs_copies(self) -> bool:
        """Whether the controller or a processor is foreign code, which gets a copy of the state before a step."""
        code = (self.controller, *self.processors)
        return not all(type(x).__module__.startswith(OWN_CONTROLLERS) for x in code)
