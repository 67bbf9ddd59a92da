# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""`model.warmup()`: does ahead of the first call what a first call does once.

Compiled code is loaded, the base is recognised, copies and planes of weights are made. What a call needs depends on
the levels that its steps take: a copy of a weight is made by the first step that reads a part of it. So a short text
is processed on a schedule: every axis that the call controls takes its smallest level alone, then all of them take
their levels together.

    step         1     2     3     4     5     6 ...
    token_keep   .2    1     .2    .5    1     .2
    bits         16    6     6     8     16    6
"""

import dataclasses

import torch
from transformers import GenerationConfig, PreTrainedModel

from ..budget.action_space import ActionSpace
from ..budget.budget import Budget
from ..configuration_sol import SOLConfig
from ..controllers.schedule import ScheduleController
from ..execution.base_device import compute_device
from ..execution.compiled_code import load_kernels
from ..execution.coverage import Coverage
from ..execution.instrumentation import Instrumentation
from ..modeling_sol_policy import SOLPolicyModel
from .aligned_rows import align_rows
from .controls import DecodeControls
from .lossless.settings import look_ahead_of, lossless_controls
from .options import DecodeOptions, resolve_options
from .row_ends import RowEnds
from .scoring import score_rows, score_rows_densely
from .session import DecodingSession
from .setup import controls_for, new_cache, own_cache


CONTEXT = 40
"""Tokens before the steps: with fewer than 32 keys, attention outside of programs is not compiled code."""
LONG_CONTEXT, DRAFTED, NEW = 280, 3, 12
"""Tokens of a text of which drafts read a share of the keys, those of a draft, and how many are made."""


class Warmup(PreTrainedModel):
    """Mixin of [`SOLForCausalLM`]: the method `warmup`."""

    config: SOLConfig
    base: PreTrainedModel
    policy: SOLPolicyModel
    generation_config: GenerationConfig

    @torch.no_grad()
    def warmup(self, **options) -> Coverage:
        """Prepare everything that calls with these options need, so that none of them compiles or copies anything.

        It loads the compiled code, compiles it if no process has done so on this machine, recognises the base, makes
        copies and planes of weights, and processes a short text. Calls before it are not wrong, only slower.

        Args:
            options: Options of [`SOLForCausalLM.generate`] for which to prepare: a budget, `backend`, `bits_backend`
                and so on. An option that is left out has its stored value, as in a call. With no budget at all,
                everything is prepared that a budget on any axis of the base can need, and dense steps.

        Returns:
            [`Coverage`]: What each axis reaches on the base, and the memory of the copies; printed, it is a table.

        Raises:
            ValueError: for options that `generate` would refuse, before any compute.

        Examples:

        ```python
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> from sol_hf import SOLForCausalLM
        >>> sizes = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4)
        >>> model = SOLForCausalLM.from_base(LlamaForCausalLM(LlamaConfig(**sizes, vocab_size=99)))
        >>> print(model.warmup(backend="fast").layer_count)
        2
        ```
        """
        resolved = resolve_options(options, None, self.generation_config, self.config)
        rows = 1 if resolved.budget is None else resolved.budget.rows or 1
        given = None if resolved.is_bare else controls_for(resolved, self.base, self.policy, self.config, rows)
        cache = new_cache(self.base, self.config, resolved.kv_dtype)
        load_kernels(compute_device(self.base), self.base.dtype, cache.kv_dtype)
        self.policy.prepare_step(rows)
        if resolved.is_bare or resolved.is_dense and not resolved.runs_base:
            self._process(resolved.dense_controls(self.config), steps=2)
        elif given is None:
            self._process(None, steps=2)
        axes = self._controlled(resolved)
        if axes:
            schedule = level_schedule(self.config.action_space, axes, least=self.config.episode_length + 2)
            self._process(self._schedule_controls(resolved, axes, schedule), len(schedule))
        if given is not None and not resolved.is_dense:
            self._process(given, steps=2, rows=rows)
        if resolved.lossless:
            self._draft(resolved, rows)
        return Coverage.of(self.base, own_cache(cache, self.base, self.config))

    def _draft(self, options: DecodeOptions, rows: int) -> None:
        """Draft and check in a text that counts as short, and in one that does not, however few tokens it has."""
        controls, steps = lossless_controls(options, self.base, self.policy, self.config, rows)
        options = dataclasses.replace(options, lossless=DRAFTED)
        long = dataclasses.replace(controls, rule=dataclasses.replace(controls.rule, short_text_tokens=0))
        for context, chosen in ((CONTEXT, controls), (LONG_CONTEXT, long)):
            text = self._text(context).repeat(rows, 1)
            new = min(NEW, text.shape[1] - 1)
            begin = text.shape[1] - new
            cache = own_cache(new_cache(self.base, self.config, controls.kv_dtype), self.base, self.config)
            session = DecodingSession(self.base, cache, chosen, decode_from=begin - 1)
            session.look_ahead = look_ahead_of(options, chosen, steps, self.base, RowEnds(begin))
            with Instrumentation.of(self.base), session.running():
                logits = self(text[:, :begin], past_key_values=cache, logits_to_keep=1).logits
                for _ in range(new - 1):
                    logits = self(logits[:, -1:].argmax(-1), past_key_values=cache).logits

    def _text(self, length: int) -> torch.Tensor:
        """Ids `(1, length)` of a text, fewer if the base has fewer positions."""
        length = min(length, self.config.base_max_position_embeddings or length)
        ids = (torch.arange(length) * 7 + 3)[None] % (self.config.base_vocab_size or length)
        return ids.to(compute_device(self.base))

    def _controlled(self, options: DecodeOptions) -> list[str]:
        """The axes of which steps of a call may take any level."""
        space = self.config.action_space
        if not options.is_bare:
            held = options.dense_axes(space)
            return [] if options.is_dense else [axis for axis in options.controlled_axes(space) if axis not in held]
        base = Instrumentation.at_start(self.base)
        return [
            axis for axis in space.axis_names if options.controls_axis(axis, space) and base.unsupported(axis) is None
        ]

    def _schedule_controls(
        self, options: DecodeOptions, axes: list[str], schedule: torch.Tensor
    ) -> DecodeControls | None:
        """Controls of steps on a schedule of action ids `(steps, 1)`, under a budget on some axes only."""
        levels = self.config.action_space.levels
        options = dataclasses.replace(
            options,
            budget=Budget.of({axis: min(levels[axis]) for axis in axes}),
            budget_mode="soft",
            controller=ScheduleController(schedule),
            action_processors=None,
            do_sample_actions=False,
        )
        return controls_for(options, self.base, self.policy, self.config, rows=1)

    def _process(self, controls: DecodeControls | None, steps: int, rows: int = 1) -> None:
        """Process a text by steps; without controls by a forward of the base."""
        context = max(CONTEXT, self.config.short_text_tokens + 1)
        ids = self._text(context + steps + 1).repeat(rows, 1)
        aligned = align_rows(ids, None, max(0, ids.shape[1] - steps - 1))
        if controls is None:
            score_rows_densely(self.base, aligned, self.config.action_space, return_logits=False)
            return
        with Instrumentation.of(self.base):
            cache = own_cache(new_cache(self.base, self.config, controls.kv_dtype), self.base, self.config)
            session = DecodingSession(self.base, cache, controls, decode_from=aligned.context)
            score_rows(session.begin(), aligned, return_logits=False)


def level_schedule(space: ActionSpace, axes: list[str], least: int) -> torch.Tensor:
    """Action ids `(steps, 1)`: each of `axes` alone at its smallest level, then all of them at their levels in turn.

    Args:
        space ([`ActionSpace`]): The actions.
        axes (`list[str]`): Axes that are under control; the others are at their largest level.
        least (`int`): Fewest steps.
    """
    levels = {axis: sorted(space.levels[axis]) for axis in space.axis_names}
    largest = {axis: values[-1] for axis, values in levels.items()}
    wanted = [largest | {axis: levels[axis][0]} for axis in axes]
    together = max(len(levels[axis]) for axis in axes)
    for step in range(max(together, least - len(axes))):
        wanted.append(largest | {axis: levels[axis][step % len(levels[axis])] for axis in axes})
    ids = {tuple(map(float, values)): index for index, values in enumerate(space.table)}
    return torch.tensor([[ids[tuple(map(float, step.values()))]] for step in wanted])
