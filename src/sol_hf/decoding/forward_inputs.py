# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The inputs of a forward, and what of them each of its parts gets.

A forward over a [`SOLCache`] is computed in parts: a dense prompt, steps, KV refreshes. There are three kinds of
further arguments for the base:

    one entry per token     positions, token types          every part gets those of its tokens
    images and sounds       pixel_values                    only the dense prompt gets them, which has their tokens
    all others              flags, encoder states           every part gets them
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.generation import utils as transformers_loop

from ..cache.token_arguments import TokenArgument, TokenArguments, can_join, join


PROMPT_ONLY = frozenset(getattr(transformers_loop, "MULTIMODAL_INPUTS_TO_DROP_OUTSIDE_PREFILL", ()))
"""Arguments that transformers' loop passes with the prompt only; older versions have no such list."""
PROMPT_ONLY_BEGINNINGS = ("pixel_", "image_", "video_", "input_features", "input_values", "feature_")
OUTPUT_FLAGS = ("output_hidden_states", "output_attentions", "output_router_logits")


@dataclass(frozen=True)
class ForwardInputs:
    """The tokens of a forward and the arguments that belong to them.

    Args:
        tokens (`torch.Tensor`): Ids `(rows, length)`, or embeddings `(rows, length, embedding_size)`.
        attention_mask (`torch.Tensor` of shape `(rows, cached + length)`, *optional*): 0 marks left padding. It may
            cover tokens after these, too.
        along (`TokenArguments`): Arguments with one entry per token.
        with_prompt (`dict[str, Any]`): Arguments for the dense prompt only.
        further (`dict[str, Any]`): Arguments for every part.
    """

    tokens: torch.Tensor
    attention_mask: torch.Tensor | None = None
    along: TokenArguments = field(default_factory=dict)
    with_prompt: dict[str, Any] = field(default_factory=dict)
    further: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(
        cls, tokens: torch.Tensor, attention_mask: torch.Tensor | None, arguments: Mapping[str, Any]
    ) -> "ForwardInputs":
        """The inputs of a call.

        Args:
            tokens (`torch.Tensor`): Ids or embeddings.
            attention_mask (`torch.Tensor`, *optional*): See [`ForwardInputs`].
            arguments (`Mapping[str, Any]`): All further arguments of the call.
        """
        along: dict[str, TokenArgument] = {}
        with_prompt, further = {}, {}
        for name, value in arguments.items():
            if name in PROMPT_ONLY or name.startswith(PROMPT_ONLY_BEGINNINGS):
                with_prompt[name] = value
            elif (argument := TokenArgument.find(value, len(tokens), tokens.shape[1])) is not None:
                along[name] = argument
            else:
                further[name] = value
        return cls(tokens, attention_mask, along, with_prompt, further)

    @property
    def length(self) -> int:
        """Number of tokens per row."""
        return self.tokens.shape[1]

    @property
    def asks_for_more(self) -> bool:
        """Whether the base has to compute more than logits from more than tokens and positions."""
        ignored = ("use_cache", "cache_position", "logits_to_keep", "return_dict")
        values = (value for name, value in self.further.items() if name not in ignored)
        positions = self.along.get("position_ids")
        plain = not self.along.keys() - {"position_ids", "cache_position"}
        return not plain or (positions is not None and positions.value.dim() != 2) or any(map(_is_set, values))

    def part(self, begin: int, end: int, is_dense: bool) -> "ForwardInputs":
        """The inputs of the tokens from `begin` to `end`; with images only if the part is the dense prompt."""
        along = {name: argument.cut(begin, end) for name, argument in self.along.items()}
        with_prompt = self.with_prompt if is_dense else {}
        return replace(self, tokens=self.tokens[:, begin:end], along=along, with_prompt=with_prompt)

    def again(self, tokens: torch.Tensor, along: TokenArguments) -> "ForwardInputs":
        """The inputs of earlier tokens that are processed again: no images, and no output but what is needed."""
        further = {name: value for name, value in self.further.items() if name not in OUTPUT_FLAGS}
        return ForwardInputs(tokens, self.attention_mask, along, further=further)

    def can_follow(self, earlier: "ForwardInputs") -> bool:
        """Whether these tokens can be processed together with earlier ones in one forward."""
        same_kind = self.tokens.is_floating_point() == earlier.tokens.is_floating_point()
        return same_kind and not self.with_prompt and can_join([earlier.along, self.along])

    def after(self, *earlier: "ForwardInputs") -> "ForwardInputs":
        """The inputs of earlier tokens and these, see [`ForwardInputs.can_follow`]."""
        parts = (*earlier, self)
        tokens = torch.cat([part.tokens for part in parts], dim=1)
        return replace(self, tokens=tokens, along=join([part.along for part in parts]))

    def embedded(self, base: PreTrainedModel) -> "ForwardInputs":
        """The inputs with embeddings in place of ids."""
        if self.tokens.is_floating_point():
            return self
        return replace(self, tokens=base.get_input_embeddings()(self.tokens))

    def arguments(self) -> dict[str, Any]:
        """All arguments for the base but the mask."""
        named = {name: argument.value for name, argument in self.along.items()}
        tokens = {"inputs_embeds" if self.tokens.is_floating_point() else "input_ids": self.tokens}
        return {**self.further, **self.with_prompt, **named, **tokens}


def join_runs(parts: Sequence[ForwardInputs]) -> list[ForwardInputs]:
    """Join all neighbours that can be processed in one forward."""
    runs: list[list[ForwardInputs]] = []
    for part in parts:
        if runs and part.can_follow(runs[-1][-1]):
            runs[-1].append(part)
        else:
            runs.append([part])
    return [run[-1].after(*run[:-1]) for run in runs]


def _is_set(value: Any) -> bool:
    return value is not None and value is not False
