# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Teacher-forced scoring: rows of any length, aligned so that all decode steps begin together.

row 0   pad pad c c | s s s l            c: context, processed densely
row 1   c   c   c c | s l . .            s: a decode step each, scored on the token after it
                    ^ context ends       l: label of the last step only;  .: filler, not counted

Rows that are the same up to a step have the same result at this step, so it is computed once for all of them. Rows
that have ended are left out. Both require a controller whose rows are independent; otherwise rows share their dense
contexts only.
"""

import torch
from transformers import PreTrainedModel

from ..budget.action_space import ActionSpace
from ..controllers.processors import (
    AxisBiasProcessor,
    DenseRowsProcessor,
    HardBudgetProcessor,
    PinnedAxesProcessor,
)
from .aligned_rows import AlignedRows
from .base_arguments import accepted_arguments, first_position
from .base_forward import dense_forward
from .controls import DecodeControls
from .forward_inputs import ForwardInputs
from .outputs import NO_ACTION, SOLScoreOutput, net_keep_of, realised_means
from .positions import counts_images
from .session import DecodingSession
from .step import decode_forward


OWN_PROCESSORS = (AxisBiasProcessor, DenseRowsProcessor, HardBudgetProcessor, PinnedAxesProcessor)
"""Processors whose result for a row does not depend on other rows."""


def label_logprobs(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Log-probability of `labels` `(rows, steps)` under `logits` `(rows, steps, vocab)`, in float32."""
    return logits.float().log_softmax(dim=-1).gather(-1, labels[..., None]).squeeze(-1)


def score_rows(session: DecodingSession, rows: AlignedRows, return_logits: bool) -> SOLScoreOutput:
    """Score every row through the decode step.

    Args:
        session ([`DecodingSession`]): Session with an empty cache and with controls.
        rows ([`AlignedRows`]): The rows to score.
        return_logits (`bool`): Keep the logits of all steps.
    """
    cache, controls = session.cache, session.require_controls()
    mask, step_mask, device = rows.attention_mask, rows.step_mask, rows.tokens.device
    everyone = torch.arange(len(rows.tokens), device=device)
    session.steps = step_mask.sum(dim=1) if controls.is_exact else None
    merging, place = can_merge(controls) and not rows.further, prefill_rows(session, rows)
    actions, counted = torch.full_like(step_mask, NO_ACTION, dtype=torch.long), torch.zeros_like(step_mask)
    logprobs, greedy = torch.zeros(step_mask.shape, device=device), torch.zeros_like(step_mask)
    logits = []
    for step in range(step_mask.shape[1]):
        end, alive = rows.context + step + 1, everyone[step_mask[:, step]]
        leaders, own = rows.merge(end, alive) if merging else (everyone, alive)
        select_rows(session, None if place is None else place[leaders], len(leaders), rows.padding[leaders])
        place = torch.zeros_like(everyone).index_copy(0, alive, own) if merging else everyone
        begin = 0 if end == 1 else end - 1
        inputs = inputs_of(rows, leaders, begin, end, mask)
        output = decode_forward(session, inputs, all_logits=False, active=step_mask[leaders, step])
        step_logits, label = output.logits[:, -1], rows.tokens[alive, end]
        logprobs[alive, step] = step_logits.float().log_softmax(dim=-1)[own, label]
        greedy[alive, step] = step_logits.argmax(dim=-1)[own] == label
        actions[alive, step], counted[alive, step] = (value[own] for value in cache.trace[-1])
        if return_logits:
            logits.append(step_logits[place])
    realised = realised_means(actions, counted, cache.action_space)
    return SOLScoreOutput(
        logprobs=logprobs,
        actions=actions,
        realised=realised,
        net_keep=net_keep_of(realised, cache.action_space),
        step_mask=step_mask,
        logits=torch.stack(logits, dim=1) if return_logits else None,
        greedy=greedy,
    )


def can_merge(controls: DecodeControls) -> bool:
    """Whether equal rows have equal results, so that they can be computed once and ended rows can be left out."""
    known = all(isinstance(processor, OWN_PROCESSORS) for processor in controls.processors)
    is_same = known and not controls.is_exact  # rows of other lengths have other steps left
    return controls.controller.rows_are_independent and is_same and not controls.do_sample and can_share(controls)


def can_share(controls: DecodeControls) -> bool:
    """Whether all rows have the same budget."""
    return controls.budget is None or controls.budget.rows is None


def prefill_rows(session: DecodingSession, rows: AlignedRows) -> torch.Tensor | None:
    """Process the contexts densely; a context that several rows have in common is processed once.

    Returns:
        `torch.LongTensor` of shape `(rows,)`: Row of the cache that holds each row's context; `None` without contexts.
    """
    everyone = torch.arange(len(rows.tokens), device=rows.tokens.device)
    shared = can_share(session.require_controls()) and not rows.further
    leaders, place = rows.merge(rows.context, everyone) if shared else (everyone, everyone)
    if rows.context == 0:
        return None
    select_rows(session, None, len(leaders), rows.padding[leaders])
    dense_forward(session, inputs_of(rows, leaders, 0, rows.context, rows.attention_mask, is_dense=True))
    return place


def inputs_of(
    rows: AlignedRows,
    leaders: torch.Tensor,
    begin: int,
    end: int,
    mask: torch.Tensor | None,
    is_dense: bool = False,
) -> ForwardInputs:
    """The inputs of a forward over the columns from `begin` to `end` of the rows `leaders`; all rows beside images.

    Args:
        rows ([`AlignedRows`]): All rows.
        leaders (`torch.LongTensor` of shape `(some,)`): Those of the forward.
        begin (`int`): The first column.
        end (`int`): The column after the last.
        mask (`torch.Tensor` of shape `(rows, columns)`, *optional*): [`AlignedRows.attention_mask`].
        is_dense (`bool`, *optional*, defaults to `False`): Whether these are the contexts, which have the images.
    """
    if rows.further:
        return ForwardInputs.of(rows.tokens, mask, rows.further).part(begin, end, is_dense)
    return ForwardInputs(rows.tokens[leaders, begin:end], None if mask is None else mask[leaders])


def select_rows(session: DecodingSession, source: torch.Tensor | None, number: int, padding: torch.Tensor) -> None:
    """Give the cache `number` rows: copies of those at `source` `(number,)`, or new ones if it is empty."""
    cache = session.cache
    if cache.rows == 0:
        session.set_up_rows(number, padding.device)
        if bool(padding.any()):
            cache.set_padding(padding)
            cache.position_offset = padding - first_position(session.base)
    elif source is not None and (number != cache.rows or not torch.equal(source, torch.arange(number).to(source))):
        cache.batch_select_indices(source)


def score_rows_densely(
    base: PreTrainedModel, rows: AlignedRows, space: ActionSpace, return_logits: bool
) -> SOLScoreOutput:
    """Score every row in one parallel forward of the base, which is equivalent to a budget of (1, 1, 16)."""
    mask, step_mask = rows.attention_mask, rows.step_mask
    tokens, steps = rows.tokens[:, :-1], step_mask.shape[1]
    inputs = ForwardInputs.of(rows.tokens, mask, rows.further).part(0, tokens.shape[1], is_dense=True)
    arguments = inputs.arguments()
    if mask is not None:
        arguments["attention_mask"] = mask[:, :-1]
        if "position_ids" in accepted_arguments(base) and not counts_images(base, inputs):
            slots = torch.arange(tokens.shape[1], device=tokens.device)
            arguments["position_ids"] = (slots - rows.padding[:, None]).clamp(min=0) + first_position(base)
    if "logits_to_keep" in accepted_arguments(base):
        arguments["logits_to_keep"] = steps
    logits = base(**arguments, use_cache=False, return_dict=True).logits[:, -steps:]
    dense_id = space.dense_id if space.has_dense else NO_ACTION
    actions = torch.full_like(step_mask, dense_id, dtype=torch.long)
    realised = torch.tensor(space.dense, device=tokens.device).repeat(len(tokens), 1)
    return SOLScoreOutput(
        logprobs=label_logprobs(logits, rows.tokens[:, -steps:]) * step_mask,
        actions=actions.masked_fill(~step_mask, NO_ACTION),
        realised=realised,
        net_keep=net_keep_of(realised, space),
        step_mask=step_mask,
        logits=logits if return_logits else None,
        greedy=(logits.argmax(dim=-1) == rows.tokens[:, -steps:]) & step_mask,
    )
