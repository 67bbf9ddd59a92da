# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""transformers' generation loop on a wrapper: what it asks of a model is answered by the base.

Some classes of bases override methods of the loop: vision-language models compute positions in three dimensions, for
example. The loop has to call the base's versions, except for those that [`WrappedGeneration`] has itself.
"""

from collections.abc import Callable
from typing import Any

import torch
from transformers import GenerationConfig, GenerationMixin, LogitsProcessorList, PreTrainedModel, StoppingCriteriaList
from transformers.generation import CandidateGenerator, EarlyExitCandidateGenerator

from .generate_checks import leave_out_budget, refuse_batching, suit_to_session
from .kept_cache import keep_cache
from .options import explain_unknown
from .positions import positions_in_loop
from .row_ends import ObservedStoppingCriteriaList
from .session import DecodingSession


class WrappedGeneration(GenerationMixin):
    """The methods of transformers' loop for a model around a base, which is its attribute `base`."""

    base: PreTrainedModel

    def prepare_inputs_for_generation(self, input_ids, *args, inputs_embeds=None, **kwargs):
        if inputs_embeds is not None:
            kwargs["inputs_embeds"] = inputs_embeds
        look_ahead = DecodingSession.looking_ahead(kwargs.get("past_key_values"))
        if look_ahead is not None:
            look_ahead.note_text(input_ids)
        prepared = self.base.prepare_inputs_for_generation(input_ids, *args, **kwargs)
        return keep_cache(self.base, prepared)

    def _prepare_position_ids_for_generation(self, inputs_tensor: torch.Tensor, model_kwargs: dict[str, Any]):
        return positions_in_loop(self.base, inputs_tensor, model_kwargs)

    def _get_logits_processor(self, generation_config: GenerationConfig, *args, **kwargs) -> LogitsProcessorList:
        is_own = type(self.base)._get_logits_processor is not GenerationMixin._get_logits_processor
        make = self.base._get_logits_processor if is_own else super()._get_logits_processor
        processors = make(generation_config, *args, **kwargs)
        look_ahead = DecodingSession.looking_ahead((kwargs.get("model_kwargs") or {}).get("past_key_values"))
        if look_ahead is not None:
            look_ahead.note_settings(processors, generation_config)
        return processors

    def _get_stopping_criteria(self, *args, **kwargs) -> StoppingCriteriaList:
        return ObservedStoppingCriteriaList(super()._get_stopping_criteria(*args, **kwargs))

    def _get_candidate_generator(self, *args, **kwargs) -> CandidateGenerator:
        generator = super()._get_candidate_generator(*args, **kwargs)
        if isinstance(generator, EarlyExitCandidateGenerator):
            leave_out_budget(generator.generation_config)
        return generator

    def _validate_model_kwargs(self, model_kwargs: dict[str, Any]) -> None:
        try:
            self.base._validate_model_kwargs(model_kwargs)
        except ValueError as error:
            raise ValueError(str(error) + explain_unknown(model_kwargs)) from error

    def _prepare_generation_config(self, *args, **kwargs) -> tuple[GenerationConfig, dict[str, Any]]:
        prepared, model_kwargs = super()._prepare_generation_config(*args, **kwargs)
        suit_to_session(prepared, model_kwargs)
        return prepared, model_kwargs

    def _prepare_cache_for_generation(self, *args, **kwargs):
        return self.base._prepare_cache_for_generation(*args, **kwargs)

    def init_continuous_batching(self, *args, **kwargs):
        refuse_batching()

    def continuous_batching_context_manager(self, *args, **kwargs):
        refuse_batching()

    def generate_batch(self, *args, **kwargs):
        refuse_batching()


def overridden_hooks(base: PreTrainedModel, wrapper: type[GenerationMixin]) -> dict[str, Callable]:
    """The methods of `GenerationMixin` that the class of `base` overrides and `wrapper` does not, bound to `base`.

    Args:
        base (`PreTrainedModel`): The base.
        wrapper (`type`): The class on which the loop runs.
    """
    hooks = {}
    for name, original in vars(GenerationMixin).items():
        if name.startswith("__") or not callable(getattr(GenerationMixin, name)):
            continue
        theirs = getattr(type(base), name, None)
        if getattr(wrapper, name) is original and theirs is not None and theirs is not original:
            hooks[name] = getattr(base, name)
    return hooks
