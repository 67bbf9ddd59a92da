# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""How each row of a batch is sampled: with settings and random numbers of its own.

transformers' loop has one temperature and one random state for all rows. Here a row's token is drawn by the last
logits processor, which leaves nothing else to choose from. So a row gets the same text alone and in any batch.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import GenerationConfig, LogitsProcessor
from transformers.generation.logits_process import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)


@dataclass(frozen=True)
class Sampling:
    """Settings of a request; those that it does not give are the model's.

    Args:
        do_sample (`bool`): Whether tokens are drawn; the most likely one is taken otherwise.
        temperature, top_p (`float`, *optional*): As in transformers.
        top_k (`int`, *optional*): As in transformers.
        min_p (`float`, *optional*): As in transformers.
        repetition_penalty (`float`, *optional*): As in transformers, for prompt and new tokens of the row.
        logit_bias (`tuple`, *optional*): Pairs of a token id and what is added to its score.
        seed (`int`, *optional*): Of the row's own random numbers; without one they cannot be repeated.
    """

    do_sample: bool = False
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    logit_bias: tuple[tuple[int, float], ...] = ()
    seed: int | None = None

    @classmethod
    def of_model(cls, config: GenerationConfig) -> dict:
        """The settings that a model has stored."""
        names = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
        stored = {name: getattr(config, name, None) for name in names}
        return stored | {"do_sample": bool(config.do_sample)}

    def processors(self) -> list[LogitsProcessor]:
        """transformers' processors with these settings, in its order."""
        made: list[LogitsProcessor] = []
        if self.logit_bias:
            made.append(SequenceBiasLogitsProcessor([[[token], bias] for token, bias in self.logit_bias]))
        if self.repetition_penalty not in (None, 1.0):
            made.append(RepetitionPenaltyLogitsProcessor(self.repetition_penalty))
        if self.do_sample:
            if self.temperature not in (None, 1.0):
                made.append(TemperatureLogitsWarper(self.temperature))
            if self.top_k:
                made.append(TopKLogitsWarper(self.top_k))
            if self.top_p is not None and self.top_p < 1:
                made.append(TopPLogitsWarper(self.top_p))
            if self.min_p:
                made.append(MinPLogitsWarper(self.min_p))
        return made


class RowDraw:
    """Chooses the tokens of one row."""

    def __init__(self, sampling: Sampling):
        self._processors = sampling.processors()
        self._generator: torch.Generator | None = None
        if sampling.do_sample:
            seed = int.from_bytes(os.urandom(8)) >> 1 if sampling.seed is None else sampling.seed
            self._generator = torch.Generator().manual_seed(seed)

    def __call__(self, text: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Scores `(1, vocab_size)` after a text `(1, length)`; those of a draw leave one token."""
        for processor in self._processors:
            scores = processor(text, scores)
        if self._generator is None:
            return scores
        chances = scores.float().softmax(dim=-1).cpu()
        token = torch.multinomial(chances, num_samples=1, generator=self._generator).to(scores.device)
        return torch.full_like(scores, -torch.inf).scatter(1, token, 0.0)


class RowDraws(LogitsProcessor):
    """The draws of all rows of a batch.

    Args:
        samplings (`Sequence[Sampling]`): Settings, one per row.
        paddings (`Sequence[int]`): Padding on the left of every row, which is no text.
    """

    def __init__(self, samplings: Sequence[Sampling], paddings: Sequence[int]):
        self._draws = [RowDraw(sampling) for sampling in samplings]
        self._paddings = paddings

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        rows = [
            draw(input_ids[index : index + 1, padding:], scores[index : index + 1])
            for index, (draw, padding) in enumerate(zip(self._draws, self._paddings, strict=True))
        ]
        return torch.cat(rows)  # type: ignore[return-value]
