# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""`measure_agreement=True`: how often a text under a budget had the most likely token of the dense model.

The most likely token of every step is noted. After the text one dense forward over all of it gives those of the base,
after the same tokens. Neither processors nor sampling enter.
"""

from collections.abc import Mapping
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel

from ..execution.watch import evaluating
from .base_arguments import accepted_arguments
from .options import DecodeOptions


TEXT = ("inputs", "input_ids", "attention_mask")
"""Tensors of a call of which the text consists. With others, such as images, a forward over the tokens is another."""


class AgreementMeter:
    """The most likely tokens of the steps of a call.

    Args:
        attention_mask (`torch.Tensor` of shape `(rows, prompt length)`, *optional*): Of the call.
    """

    def __init__(self, attention_mask: torch.Tensor | None = None):
        self._mask = attention_mask
        self._best: list[torch.Tensor] = []

    @classmethod
    def of_call(
        cls,
        options: DecodeOptions,
        prompt: torch.Tensor | None,
        arguments: Mapping[str, Any],
        configs: tuple[GenerationConfig | None, GenerationConfig],
    ) -> "AgreementMeter":
        """The meter of a call.

        Raises:
            ValueError: for a call that has nothing to measure, or whose text cannot be processed again.
        """
        if options.is_dense:
            raise ValueError("All steps of this call are dense, so they agree: leave out `measure_agreement`.")
        if prompt is None or prompt.is_floating_point():
            raise ValueError("`measure_agreement` processes the whole text again: pass the prompt as `input_ids`.")
        further = [name for name, value in arguments.items() if isinstance(value, torch.Tensor) and name not in TEXT]
        if further:
            raise ValueError(
                f"`measure_agreement` processes the text again from its tokens alone, without `{further[0]}`: leave "
                "one of them out."
            )
        name = "return_dict_in_generate"
        values = [arguments.get(name), *(getattr(config, name, None) for config in configs if config is not None)]
        if not next((value for value in values if value is not None), False):
            raise ValueError(f"`measure_agreement` is reported in the output: pass `{name}=True`.")
        beams = [arguments.get("num_beams"), *(config.num_beams for config in configs if config is not None)]
        if (next((value for value in beams if value is not None), 1) or 1) > 1:
            raise ValueError("`measure_agreement` cannot be used with beams: leave it out.")
        mask = arguments.get("attention_mask")
        if mask is not None and mask.shape != prompt.shape:
            raise ValueError(
                "`measure_agreement` processes the whole text again: pass all of it, not new tokens only."
            )
        return cls(mask)

    def note(self, logits: torch.Tensor) -> None:
        """Note the most likely token of every row, by logits `(rows, vocab_size)` of a new token."""
        self._best.append(logits.argmax(dim=-1))

    @torch.no_grad()
    def agreement(self, base: PreTrainedModel, sequences: torch.Tensor, running: torch.Tensor) -> float:
        """The share of the new tokens at which the most likely token is that of a dense forward.

        Args:
            base (`PreTrainedModel`): The frozen base.
            sequences (`torch.LongTensor` of shape `(rows, length)`): The text.
            running (`torch.BoolTensor` of shape `(rows, new tokens)`): Which of its new tokens count.
        """
        rows, steps = running.shape
        arguments: dict[str, Any] = {"input_ids": sequences[:, :-1]}
        if self._mask is not None:
            mask = self._mask.repeat_interleave(rows // len(self._mask), dim=0)
            new = mask.new_ones(rows, sequences.shape[1] - 1 - mask.shape[1])
            arguments["attention_mask"] = torch.cat([mask, new], dim=1)
            if "position_ids" in accepted_arguments(base):
                arguments["position_ids"] = (arguments["attention_mask"].cumsum(dim=1) - 1).clamp(min=0)
        if "logits_to_keep" in accepted_arguments(base):
            arguments["logits_to_keep"] = steps
        with evaluating(base):
            logits = base(**arguments, use_cache=False, return_dict=True).logits[:, -steps:]
        same = (logits.argmax(dim=-1) == torch.stack(self._best[-steps:], dim=1)) & running
        return float(same.sum() / running.sum())
