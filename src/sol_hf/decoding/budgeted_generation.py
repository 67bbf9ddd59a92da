# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""A `generate` call from its options to its output: checks, session, transformers' loop, and what is reported."""

import contextlib
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import GenerationConfig, StoppingCriteriaList
from transformers.utils import ModelOutput

from ..configuration_sol import SOLConfig
from ..execution.base_device import compute_device
from ..execution.compiled_modules import check_not_compiled
from ..execution.instrumentation import Instrumentation
from ..execution.own_loop import own_loop
from ..modeling_sol_policy import SOLPolicyModel
from .agreement_meter import AgreementMeter
from .call_session import session_of_call
from .controls import DecodeControls
from .custom_loop import custom_loop
from .executed import check_executed
from .generate_checks import add_mask_of_assistant, begin_of_text, contexts_of_prompt, find_prompt
from .lossless.look_ahead import LookAhead
from .lossless.settings import look_ahead_of, lossless_controls
from .options import DecodeOptions, resolve_options
from .outputs import SOLGenerateDecoderOnlyOutput, attach_steps
from .policy_fit import check_agreement
from .prompt_kinds import check_prompt_kinds
from .row_ends import RowEnds
from .session import DecodingSession
from .setup import controls_for
from .wrapped_generation import WrappedGeneration


class BudgetedGeneration(WrappedGeneration):
    """Mixin of [`SOLForCausalLM`]: what `generate` does with its options."""

    config: SOLConfig
    policy: SOLPolicyModel
    action_space: Any
    """[`SOLConfig.action_space`]."""

    def _generate(
        self, inputs: torch.Tensor | None, generation_config: GenerationConfig | None, given: dict, kwargs: dict
    ) -> ModelOutput | torch.LongTensor:
        """`generate` with its options in `given`, and transformers' arguments in `kwargs`."""
        check_prompt_kinds(inputs, kwargs)
        options = resolve_options(given, generation_config, self.generation_config, self.config)
        prompt, configs = find_prompt(inputs, kwargs), (generation_config, self.generation_config)
        if prompt is None and not options.runs_base:
            device = compute_device(self.base)
            prompt = inputs = begin_of_text(kwargs, generation_config, self.generation_config, device)
        add_mask_of_assistant(prompt, kwargs, generation_config)
        contexts = contexts_of_prompt(prompt, kwargs.get("attention_mask"))
        meter = AgreementMeter.of_call(options, prompt, kwargs, configs) if options.measure_agreement else None
        row_ends = RowEnds(prompt.shape[1] if prompt is not None and prompt.dim() == 2 else 0)
        controls, look_ahead = self._settings(options, 1 if prompt is None else len(prompt), row_ends)
        vocab_size = self.base.get_input_embeddings().weight.shape[0]
        session = session_of_call(self.base, self.config, controls, prompt, configs, kwargs, vocab_size)
        if session is not None:
            session.look_ahead, session.meter = look_ahead, meter
        if not options.is_bare:
            kwargs["stopping_criteria"] = StoppingCriteriaList([*(kwargs.get("stopping_criteria") or ()), row_ends])
        with contextlib.ExitStack() as stack:
            if controls is not None:
                stack.enter_context(Instrumentation.of(self.base))
            lends = kwargs.get("custom_generate") is not None
            stack.enter_context(DecodingSession.none_running() if session is None else session.running(lends))
            loop = stack.enter_context(custom_loop(given, kwargs))
            generate = own_loop(self.base, self.generation_config) or super().generate
            output = generate(inputs, generation_config=generation_config, **kwargs)
        if controls is not None and not loop.calls:  # calls of a custom loop check themselves
            check_executed(session, output, prompt, len(row_ends.ended))
        if options.is_bare or loop.calls or not isinstance(output, ModelOutput):
            return output
        cache = None if options.is_dense or options.lossless else kwargs["past_key_values"]
        attached = attach_steps(output, row_ends, cache, self.action_space, options.compute_unit)
        if not options.lossless:
            count = partial(self._count_bytes, options, attached.actions, cache is None, contexts)
            attached.count_bytes_by(count)
        if look_ahead is not None:
            look_ahead.counts.report(attached)
        if meter is not None and isinstance(attached, SOLGenerateDecoderOnlyOutput):
            attached.agreement = meter.agreement(self.base, output.sequences, row_ends.running())
        return attached

    def _count_bytes(
        self, options: DecodeOptions, actions: torch.Tensor | None, is_dense: bool, contexts: torch.Tensor
    ) -> torch.Tensor:
        """The share of the bytes of dense steps that every row has read, `(rows,)`."""
        raise NotImplementedError

    def _settings(
        self, options: DecodeOptions, rows: int, row_ends: RowEnds
    ) -> tuple[DecodeControls | None, LookAhead | None]:
        """The settings of the steps of a call, and what processes its forwards if it is one with `lossless`."""
        check_agreement(self.config, self.policy)
        if not options.runs_base and isinstance(self, nn.Module):
            check_not_compiled(self)
        if not options.lossless:
            return controls_for(options, self.base, self.policy, self.config, rows), None
        controls, steps = lossless_controls(options, self.base, self.policy, self.config, rows)
        return controls, look_ahead_of(options, controls, steps, self.base, row_ends)
