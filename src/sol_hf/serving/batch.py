# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""A batch of requests in one call of `generate`: a budget, a length, a way to sample and an end for every row."""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import GenerationConfig, StoppingCriteria, StoppingCriteriaList

from ..budget.axes import AXES
from ..budget.budget import Budget
from ..modeling_sol import SOLForCausalLM
from .metrics import Spending
from .row import Row
from .sampling import RowDraws


class Batch:
    """Rows that are generated together.

    Args:
        model ([`SOLForCausalLM`]): The model.
        rows (`Sequence[Row]`): Rows of one [`RowSettings.company`].
        spending ([`Spending`]): Counts what they spend.
        after_step (`Callable`, *optional*): Called after every step.
    """

    def __init__(
        self,
        model: SOLForCausalLM,
        rows: Sequence[Row],
        spending: Spending,
        after_step: Callable[[], None] | None = None,
    ):
        self.model, self.rows, self.spending, self.after_step = model, list(rows), spending, after_step
        options = rows[0].settings.options
        self.is_alone = rows[0].settings.is_alone
        self.is_dense = options.budget is None or options.runs_base
        self.is_counted = not (self.is_dense or options.is_dense or options.lossless)
        self.cache = self.model.new_cache(options.kv_dtype) if self.is_counted else None
        self.ends = _end_tokens(model.generation_config)
        self.width = max(len(row.ids) for row in self.rows)

    def run(self) -> None:
        """Generate, and deliver to every row what is its own, its end as soon as it has ended."""
        for row in self.rows:
            row.begin()
        paddings = [self.width - len(row.ids) for row in self.rows]
        ids, mask = self._inputs(paddings)
        call: dict[str, Any] = dict(
            generation_config=self._generation_config(),
            logits_processor=[RowDraws([row.settings.sampling for row in self.rows], paddings)],
            stopping_criteria=StoppingCriteriaList([RowWatch(self)]),
            **self._options(),
        )
        if self.cache is not None:
            call["past_key_values"] = self.cache
        output = self.model.generate(ids, attention_mask=mask, **call)
        for index, row in enumerate(self.rows):
            self._close(index, row, output if self.is_alone else None)

    def observe(self, newest: list[int]) -> list[bool]:
        """Give the rows their newest tokens; returns which of them have ended."""
        ended = [row.add(token, token in self.ends) for row, token in zip(self.rows, newest, strict=True)]
        if not self.is_alone:
            for index, row in enumerate(self.rows):
                if ended[index] and not row.is_over:
                    self._close(index, row)
        if self.after_step is not None and not all(ended):
            self.after_step()
        return ended

    def _close(self, index: int, row: Row, output: Any = None) -> None:
        if row.is_over:
            return
        found = self.spending.of_row(row, index, self.cache, len(self.rows))
        for name in ("agreement", "tokens_per_forward"):
            value = getattr(output, name, None)
            if value is not None:
                found[name] = value
        row.close(found)

    def _inputs(self, paddings: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Ids and mask `(rows, width)`, padded on the left."""
        pad = self._generation_config().pad_token_id
        ids = torch.tensor([[pad] * padding + list(row.ids) for padding, row in zip(paddings, self.rows, strict=True)])
        mask = torch.arange(self.width) >= torch.tensor(paddings)[:, None]
        device = self.model.policy_device(self.model.base)
        return ids.to(device), mask.long().to(device)

    def _generation_config(self) -> GenerationConfig:
        """The model's, without what the rows have of their own."""
        config = copy.deepcopy(self.model.generation_config)
        plain = dict(do_sample=False, num_beams=1, num_return_sequences=1, repetition_penalty=1.0, max_length=None)
        plain |= dict(temperature=1.0, top_p=1.0, top_k=50, min_p=None, stop_strings=None)
        plain |= dict(return_dict_in_generate=True)
        config.update(**plain, max_new_tokens=max(row.max_new_tokens for row in self.rows))
        if config.pad_token_id is None:
            config.pad_token_id = min(self.ends, default=0)
        return config

    def _options(self) -> dict[str, Any]:
        """The budget options of the call."""
        options, call = self.rows[0].settings.options, dict[str, Any]()
        if self.is_alone:
            alone = dict(lossless=options.lossless, measure_agreement=options.measure_agreement, exact=options.exact)
            call |= {name: value for name, value in alone.items() if value}
        budgets = [budget for row in self.rows if (budget := row.settings.options.budget) is not None]
        if len(budgets) < len(self.rows):
            return call
        axes = [axis for axis in AXES if any(axis in budget.controlled for budget in budgets)]
        targets = {axis: [_target(budget, axis) for budget in budgets] for axis in axes}
        kept = dict(budget_mode=options.budget_mode, budget_horizon=options.budget_horizon)
        return call | kept | dict(budget=Budget.of(targets), controller=options.controller)


class RowWatch(StoppingCriteria):
    """Ends every row at its own end, and hands its tokens on.

    Args:
        batch ([`Batch`]): The batch.
    """

    def __init__(self, batch: Batch):
        self._batch = batch

    def __call__(self, input_ids: torch.LongTensor, scores: Any, **kwargs) -> torch.Tensor:
        ended = self._batch.observe(input_ids[:, -1].tolist())
        return torch.tensor(ended, dtype=torch.bool, device=input_ids.device)


def _target(budget: Budget, axis: str) -> float:
    value = getattr(budget, axis)
    return AXES[axis].dense if value is None else float(value)


def _end_tokens(config: GenerationConfig) -> frozenset[int]:
    end = config.eos_token_id
    if end is None:
        return frozenset()
    return frozenset(torch.as_tensor(end).flatten().tolist())
