# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""What transformers' loop would take if the logits of a draft were those of the model.

A drafted token is of use only if the loop then takes it. So the processors of the call are applied to the draft's
logits, and where the loop samples, the token is drawn with the random numbers that the loop will use: from a copy of
the state of its generator. If draft and model nearly agree, so do the draws. The loop's own generator and processors
are as if there were no draft. What is proposed has no influence on the text.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from transformers import GenerationConfig, LogitsProcessorList
from transformers.generation import logits_process


PURE = tuple(
    vars(logits_process)[name]
    for name in (
        "EncoderNoRepeatNGramLogitsProcessor",
        "EncoderRepetitionPenaltyLogitsProcessor",
        "EpsilonLogitsWarper",
        "EtaLogitsWarper",
        "ExponentialDecayLengthPenalty",
        "ForcedBOSTokenLogitsProcessor",
        "ForcedEOSTokenLogitsProcessor",
        "InfNanRemoveLogitsProcessor",
        "LogitNormalization",
        "MinLengthLogitsProcessor",
        "MinNewTokensLengthLogitsProcessor",
        "MinPLogitsWarper",
        "NoBadWordsLogitsProcessor",
        "NoRepeatNGramLogitsProcessor",
        "RepetitionPenaltyLogitsProcessor",
        "SequenceBiasLogitsProcessor",
        "SuppressTokensAtBeginLogitsProcessor",
        "SuppressTokensLogitsProcessor",
        "TemperatureLogitsWarper",
        "TopKLogitsWarper",
        "TopPLogitsWarper",
        "TypicalLogitsWarper",
    )
    if name in vars(logits_process)
)
"""Processors that can be called once more without any effect on later calls. Others are left out of drafts."""

KNOWN = float("inf")
"""The gap of a token without another choice."""


@dataclass(frozen=True)
class Proposal:
    """A drafted token of every row.

    Args:
        tokens (`torch.LongTensor` of shape `(rows,)`): The tokens.
        gaps (`torch.Tensor` of shape `(rows,)`): By how much each was better than the second best, in nats; `KNOWN`
            where there was no choice.
    """

    tokens: torch.Tensor
    gaps: torch.Tensor


class Proposals:
    """The choices of a running loop, as far as they can be foreseen.

    Attributes:
        text (`torch.LongTensor` of shape `(rows, length)`, *optional*): All tokens so far, as the loop has them.
    """

    def __init__(self) -> None:
        self._processors = LogitsProcessorList()
        self._samples = False
        self._pad: torch.Tensor | None = None
        self._ends: torch.Tensor | None = None
        self._longest: int | None = None
        self.text: torch.Tensor | None = None

    def observe(self, processors: Iterable[Any], config: GenerationConfig) -> None:
        """Take over the settings of a loop that begins."""
        self._processors = LogitsProcessorList(x for x in processors if type(x) in PURE)
        self._samples, self._longest = bool(config.do_sample), config.max_length
        self._pad, self._ends = (getattr(config, f"_{name}_token_tensor", None) for name in ("pad", "eos"))

    def left(self) -> int | None:
        """Tokens that the loop can still take; `None` if that is not known."""
        return None if self.text is None or self._longest is None else self._longest - self.text.shape[1]

    def begin(self, tokens: torch.Tensor, ended: torch.Tensor | None) -> "Draw":
        """The choices after the last tokens `(rows, 1)`; rows that have ended `(rows,)` get the padding token."""
        text = self.text
        if text is None or len(text) != len(tokens) or not torch.equal(text[:, -1:], tokens.to(text.device)):
            return Draw(LogitsProcessorList(), self._samples, tokens, self._pad, self._ends, ended)
        return Draw(self._processors, self._samples, text, self._pad, self._ends, ended)


class Draw:
    """The choices of one draft, one after the other, on the device of the loop."""

    def __init__(
        self,
        processors: LogitsProcessorList,
        samples: bool,
        text: torch.Tensor,
        pad: torch.Tensor | None,
        ends: torch.Tensor | None,
        ended: torch.Tensor | None,
    ):
        self._processors, self._text = processors, text
        self._pad, self._ends = (value if value is None else value.to(text.device) for value in (pad, ends))
        none = torch.zeros(len(text), dtype=torch.bool, device=text.device)
        self.ended = none if ended is None else ended.to(text.device)
        self._generator = generator_like_that_of(text.device) if samples else None

    def __call__(self, logits: torch.Tensor, known: torch.Tensor | None = None) -> Proposal:
        """The token that follows, by logits `(rows, vocab_size)`.

        Args:
            logits (`torch.Tensor` of shape `(rows, vocab_size)`): Of the draft, or dense ones.
            known (`torch.BoolTensor` of shape `(rows,)`, *optional*): Rows whose logits are the dense ones.
        """
        scores = self._processors(self._text, logits.to(self._text.device, torch.float32, copy=True))
        if self._generator is not None:
            scores = scores.softmax(dim=-1)
            noise = torch.empty_like(scores).exponential_(1, generator=self._generator)
            scores = (scores / noise).log()
        best = scores.topk(min(2, scores.shape[-1]), dim=-1)
        tokens, gaps = best.indices[:, 0], best.values[:, 0] - best.values[:, -1]
        if known is not None:
            gaps = gaps.masked_fill(known.to(gaps.device), KNOWN)
        if self._pad is not None and self._ends is not None:
            tokens, gaps = torch.where(self.ended, self._pad, tokens), gaps.masked_fill(self.ended, KNOWN)
            self.ended = self.ended | torch.isin(tokens, self._ends)
        self._text = torch.cat([self._text, tokens[:, None]], dim=1)
        return Proposal(tokens, gaps.nan_to_num(nan=0.0, posinf=KNOWN))


def generator_like_that_of(device: torch.device) -> torch.Generator:
    """A generator that draws what the default generator of a device will draw next, and leaves that one alone."""
    own = torch.Generator(device=device)
    state = torch.get_rng_state() if device.type == "cpu" else torch.get_device_module(device).get_rng_state(device)
    own.set_state(state)
    return own
