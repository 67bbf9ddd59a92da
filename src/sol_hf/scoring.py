# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Teacher-forced scoring: rows of any length, aligned so that all decode steps begin together.

row 0   pad pad c c | s s s l            c: context, processed densely
row 1   c   c   c c | s l . .            s: a decode step each, scored on the token after it
                    ^ context ends       l: label of the last step only;  .: filler, not counted
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from .actions import ActionSpace
from .attention import active_forward
from .cache import SOLCache
from .decoding import ForwardInputs, accepted_arguments, decode_forward, dense_forward
from .outputs import NO_ACTION, SOLScoreOutput, realised_means


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
    mask, step_mask = rows.attention_mask, rows.step_mask
    begin = rows.context if share_prefill(base, rows, cache) else 0
    cache.set_up_rows(len(rows.tokens), rows.tokens.device)
    if mask is not None:
        cache.set_padding(rows.padding)
        cache.position_offset = rows.padding
    logprobs, logits, greedy = [], [], []
    for step in range(step_mask.shape[1]):
        end = rows.context + step + 1
        inputs = ForwardInputs(rows.tokens[:, begin:end], mask)
        output = decode_forward(base, inputs, cache, all_logits=False, active=step_mask[:, step])
        label, begin = rows.tokens[:, end : end + 1], end
        logprobs.append(label_logprobs(output.logits, label))
        greedy.append(output.logits.argmax(dim=-1) == label)
        if return_logits:
            logits.append(output.logits)
    actions = torch.stack([action for action, _ in cache.trace], dim=1)
    counted = torch.stack([flag for _, flag in cache.trace], dim=1)
    return SOLScoreOutput(
        logprobs=torch.cat(logprobs, dim=1) * step_mask,
        actions=actions.masked_fill(~step_mask, NO_ACTION),
        realised=realised_means(actions, counted, cache.action_space),
        step_mask=step_mask,
        logits=torch.cat(logits, dim=1) if return_logits else None,
        greedy=torch.cat(greedy, dim=1) & step_mask,
    )


def share_prefill(base: PreTrainedModel, rows: AlignedRows, cache: SOLCache) -> bool:
    """Process contexts that several rows have in common once, and deal their keys and values out to the rows.

    Returns:
        `bool`: `False` if there was nothing to share, and nothing was done.
    """
    budget = cache.controls.budget
    if rows.context == 0 or (budget is not None and budget.rows is not None):
        return False
    contexts = torch.cat([rows.padding[:, None], rows.tokens[:, : rows.context]], dim=1)
    contexts, owner = contexts.unique(dim=0, return_inverse=True)
    if len(contexts) == len(rows.tokens):
        return False
    padding, tokens = contexts[:, 0], contexts[:, 1:]
    unique = AlignedRows(tokens, padding, rows.context, torch.zeros_like(padding))
    cache.set_up_rows(len(tokens), tokens.device)
    if unique.attention_mask is not None:
        cache.set_padding(padding)
        cache.position_offset = padding
    dense_forward(base, tokens, cache, ForwardInputs(tokens, unique.attention_mask))
    cache.batch_select_indices(owner)
    return True


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
