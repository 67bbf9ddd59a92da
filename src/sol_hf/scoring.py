# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Teacher-forced scoring: rows of any length, aligned so that all decode steps begin together.

row 0   pad pad c c | s s s l            c: context, processed densely
row 1   c   c   c c | s l . .            s: a decode step each, scored on the token after it
                    ^ context ends       l: label of the last step only;  .: filler, not counted

Rows that are the same up to a step would do the same there, so one of them runs for all, and a row that has ended is
left out. That takes a controller that looks at every row by itself; otherwise rows share their dense contexts only.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from .actions import ActionSpace
from .cache import SOLCache
from .decoding import DecodeControls, ForwardInputs, accepted_arguments, decode_forward, dense_forward
from .outputs import NO_ACTION, SOLScoreOutput, realised_means
from .processors import AxisBiasProcessor, HardBudgetProcessor, PinnedAxesProcessor
from .step_plan import active_forward


OWN_PROCESSORS = (AxisBiasProcessor, HardBudgetProcessor, PinnedAxesProcessor)
"""Processors that treat every row by itself."""


@dataclass(frozen=True)
class AlignedRows:
    """Rows laid out for scoring.

    Args:
        tokens (`torch.LongTensor` of shape `(rows, context + steps + 1)`): Contexts end in the same column.
        padding (`torch.LongTensor` of shape `(rows,)`): Left padding of every row.
        context (`int`): Columns before the first decode step.
        steps (`torch.LongTensor` of shape `(rows,)`): Decode steps of every row.
    """

    tokens: torch.Tensor
    padding: torch.Tensor
    context: int
    steps: torch.Tensor

    @property
    def step_mask(self) -> torch.Tensor:
        """Which steps a row has, `(rows, steps)`."""
        width = self.tokens.shape[1] - self.context - 1
        return torch.arange(width, device=self.tokens.device) < self.steps[:, None]

    @property
    def attention_mask(self) -> torch.Tensor | None:
        """1 for real tokens `(rows, columns)`, `None` if no row is padded on the left."""
        if not bool(self.padding.any()):
            return None
        return (torch.arange(self.tokens.shape[1], device=self.tokens.device) >= self.padding[:, None]).long()

    def merge(self, end: int, among: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The first row of every group that is the same before column `end`.

        Args:
            end (`int`): Columns that are compared.
            among (`torch.LongTensor` of shape `(some,)`): Rows to consider, ascending.

        Returns:
            `torch.LongTensor` of shape `(groups,)`, those rows, ascending; and of shape `(some,)`, the group of each.
        """
        begins = torch.cat([self.padding[:, None], self.tokens[:, :end]], dim=1)[among]
        _, group = begins.unique(dim=0, return_inverse=True)
        first = torch.full_like(among, len(self.tokens)).scatter_reduce(0, group, among, "amin")[group]
        leaders = first.unique()
        return leaders, torch.searchsorted(leaders, first)


def align_rows(
    input_ids: torch.Tensor, attention_mask: torch.Tensor | None, context_length: int | Sequence[int] | torch.Tensor
) -> AlignedRows:
    """Lay out rows so that their contexts end in the same column.

    Args:
        input_ids (`torch.LongTensor` of shape `(rows, length)`): Tokens, padded on either side.
        attention_mask (`torch.Tensor` of shape `(rows, length)`, *optional*): 0 marks padding.
        context_length (`int` or one per row): Real tokens that are processed densely.

    Raises:
        ValueError: if a row has less than two tokens after its context, or the lengths do not match the rows.
    """
    if input_ids.dim() != 2 or input_ids.shape[1] == 0:
        raise ValueError(f"`input_ids` must have shape (rows, length), got {tuple(input_ids.shape)}.")
    rows, device = len(input_ids), input_ids.device
    mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
    if mask.shape != input_ids.shape:
        raise ValueError(f"`attention_mask` has shape {tuple(mask.shape)}, `input_ids` {tuple(input_ids.shape)}.")
    if bool((mask.bool().int().diff(dim=1, prepend=mask.new_zeros(rows, 1).int()) > 0).sum(dim=1).max() > 1):
        raise ValueError("`attention_mask` has a gap: padding may stand on either side of a row, not within.")
    contexts = torch.as_tensor(context_length).expand(rows).tolist() if _is_scalar(context_length) else None
    if contexts is None:
        contexts = [int(value) for value in context_length]  # type: ignore[union-attr]
    if len(contexts) != rows:
        raise ValueError(f"`context_length` has {len(contexts)} entries, but the input has {rows} rows.")
    real = [row[flag.bool()] for row, flag in zip(input_ids, mask, strict=True)]
    for index, (tokens, context) in enumerate(zip(real, contexts, strict=True)):
        if not 0 <= context <= len(tokens) - 2:
            raise ValueError(
                f"Row {index} has {len(tokens)} tokens, so `context_length` must lie in 0..{len(tokens) - 2} (a token "
                f"to process and one to score), got {context}."
            )
    widest, longest = max(contexts), max(len(t) - c for t, c in zip(real, contexts, strict=True))
    aligned = input_ids.new_zeros(rows, widest + longest)
    for index, (tokens, context) in enumerate(zip(real, contexts, strict=True)):
        aligned[index, widest - context : widest - context + len(tokens)] = tokens
    padding = torch.tensor([widest - context for context in contexts], device=device)
    steps = torch.tensor([len(t) - c - 1 for t, c in zip(real, contexts, strict=True)], device=device)
    return AlignedRows(aligned, padding, widest, steps)


def _is_scalar(value: int | Sequence[int] | torch.Tensor) -> bool:
    return isinstance(value, int) or (isinstance(value, torch.Tensor) and value.dim() == 0)


def label_logprobs(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Log-probability of `labels` `(rows, steps)` under `logits` `(rows, steps, vocab)`, in float32."""
    return logits.float().log_softmax(dim=-1).gather(-1, labels[..., None]).squeeze(-1)


def score_rows(base: PreTrainedModel, rows: AlignedRows, cache: SOLCache, return_logits: bool) -> SOLScoreOutput:
    """Score every row through the decode step.

    Args:
        base (`PreTrainedModel`): The frozen base.
        rows ([`AlignedRows`]): What to score.
        cache ([`SOLCache`]): Empty, with the controls to score under.
        return_logits (`bool`): Keep the logits of all steps.
    """
    mask, step_mask, device = rows.attention_mask, rows.step_mask, rows.tokens.device
    everyone = torch.arange(len(rows.tokens), device=device)
    merging, place = can_merge(cache.controls), prefill_rows(base, rows, cache)
    actions, counted = torch.full_like(step_mask, NO_ACTION, dtype=torch.long), torch.zeros_like(step_mask)
    logprobs, greedy = torch.zeros(step_mask.shape, device=device), torch.zeros_like(step_mask)
    logits = []
    for step in range(step_mask.shape[1]):
        end, alive = rows.context + step + 1, everyone[step_mask[:, step]]
        leaders, own = rows.merge(end, alive) if merging else (everyone, alive)
        select_rows(cache, None if place is None else place[leaders], len(leaders), rows.padding[leaders])
        place = torch.zeros_like(everyone).index_copy(0, alive, own) if merging else everyone
        begin = 0 if end == 1 else end - 1
        inputs = ForwardInputs(rows.tokens[leaders, begin:end], None if mask is None else mask[leaders])
        output = decode_forward(base, inputs, cache, all_logits=False, active=step_mask[leaders, step])
        step_logits, label = output.logits[:, -1], rows.tokens[alive, end]
        logprobs[alive, step] = step_logits.float().log_softmax(dim=-1)[own, label]
        greedy[alive, step] = step_logits.argmax(dim=-1)[own] == label
        actions[alive, step], counted[alive, step] = (value[own] for value in cache.trace[-1])
        if return_logits:
            logits.append(step_logits[place])
    return SOLScoreOutput(
        logprobs=logprobs,
        actions=actions,
        realised=realised_means(actions, counted, cache.action_space),
        step_mask=step_mask,
        logits=torch.stack(logits, dim=1) if return_logits else None,
        greedy=greedy,
    )


def can_merge(controls: DecodeControls) -> bool:
    """Whether rows that begin alike would do the same, so that one can stand for all, and ended rows can go."""
    known = all(isinstance(processor, OWN_PROCESSORS) for processor in controls.processors)
    return controls.controller.rows_are_independent and known and not controls.do_sample and can_share(controls)


def can_share(controls: DecodeControls) -> bool:
    """Whether all rows have the same budget."""
    return controls.budget is None or controls.budget.rows is None


def prefill_rows(base: PreTrainedModel, rows: AlignedRows, cache: SOLCache) -> torch.Tensor | None:
    """Process the contexts densely, each that several rows have in common once.

    Returns:
        `torch.LongTensor` of shape `(rows,)`: Row of the cache that holds each row's context; `None` without contexts.
    """
    everyone = torch.arange(len(rows.tokens), device=rows.tokens.device)
    leaders, place = rows.merge(rows.context, everyone) if can_share(cache.controls) else (everyone, everyone)
    if rows.context == 0:
        return None
    select_rows(cache, None, len(leaders), rows.padding[leaders])
    mask = None if rows.attention_mask is None else rows.attention_mask[leaders]
    tokens = rows.tokens[leaders, : rows.context]
    dense_forward(base, tokens, cache, ForwardInputs(tokens, mask))
    return place


def select_rows(cache: SOLCache, source: torch.Tensor | None, number: int, padding: torch.Tensor) -> None:
    """Make the cache one of `number` rows: those at `source` `(number,)`, or new ones if it is empty."""
    if cache.rows == 0:
        cache.set_up_rows(number, padding.device)
        if bool(padding.any()):
            cache.set_padding(padding)
            cache.position_offset = padding
    elif source is not None and (number != cache.rows or not torch.equal(source, torch.arange(number).to(source))):
        cache.batch_select_indices(source)


def score_rows_densely(
    base: PreTrainedModel, rows: AlignedRows, space: ActionSpace, return_logits: bool
) -> SOLScoreOutput:
    """Score every row in one parallel forward of the base: what a budget of (1, 1, 16) amounts to."""
    mask, step_mask = rows.attention_mask, rows.step_mask
    tokens, steps = rows.tokens[:, :-1], step_mask.shape[1]
    arguments: dict = {"input_ids": tokens}
    if mask is not None:
        arguments["attention_mask"] = mask[:, :-1]
        if "position_ids" in accepted_arguments(base.__class__):
            slots = torch.arange(tokens.shape[1], device=tokens.device)
            arguments["position_ids"] = (slots - rows.padding[:, None]).clamp(min=0)
    if "logits_to_keep" in accepted_arguments(base.__class__):
        arguments["logits_to_keep"] = steps
    with active_forward():
        logits = base(**arguments, use_cache=False, return_dict=True).logits[:, -steps:]
    actions = torch.full_like(step_mask, space.dense_id, dtype=torch.long)
    return SOLScoreOutput(
        logprobs=label_logprobs(logits, rows.tokens[:, -steps:]) * step_mask,
        actions=actions.masked_fill(~step_mask, NO_ACTION),
        realised=realised_means(actions, torch.zeros_like(step_mask), space),
        step_mask=step_mask,
        logits=logits if return_logits else None,
        greedy=(logits.argmax(dim=-1) == rows.tokens[:, -steps:]) & step_mask,
    )
