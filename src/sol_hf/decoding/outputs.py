# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The outputs of `generate` and `score`, and how executed steps are added to them."""

from dataclasses import dataclass, fields

import torch
from transformers.generation.utils import (
    GenerateBeamDecoderOnlyOutput,
    GenerateDecoderOnlyOutput,
)
from transformers.utils import ModelOutput

from ..budget.action_space import ActionSpace
from ..cache.sol_cache import SOLCache
from .counted_output import CountsBytes
from .row_ends import RowEnds


NO_ACTION = -1

_ACTIONS_AND_REALISED = """
        actions (`torch.LongTensor` of shape `(rows, steps)`): Action under which each new token was computed, -1 where
            the row had already ended.
        realised (`torch.Tensor` of shape `(rows, axes)`): Means of `token_keep`, `mlp_keep`, `bits` and further axes
            of the action space over the row's controllable steps; the largest levels for a row that had none.
        net_keep (`torch.Tensor` of shape `(rows,)`): Mean of `realised` over the axes, in ratio units.
        compute_unit (`str`, *optional*): What `compute` counted, if the budget came from it."""


@dataclass
class SOLGenerateDecoderOnlyOutput(CountsBytes, GenerateDecoderOnlyOutput):
    __doc__ = f"""Output of greedy search and sampling under a budget.

    Args:
        sequences (`torch.LongTensor` of shape `(rows, length)`): Prompt and new tokens.{_ACTIONS_AND_REALISED}
        agreement (`float`, *optional*): With `lossless`, the share of drafted tokens that were taken; with
            `measure_agreement`, the share of new tokens at which the most likely token is the dense one.
        checks (`int`, *optional*): With `lossless`, dense forwards over drafts.
        tokens_per_forward (`float`, *optional*): With `lossless`, tokens of a row for every dense forward after the
            prompt, checks and dense steps.
    """

    actions: torch.Tensor | None = None
    realised: torch.Tensor | None = None
    compute_unit: str | None = None
    net_keep: torch.Tensor | None = None
    agreement: float | None = None
    checks: int | None = None
    tokens_per_forward: float | None = None


@dataclass
class SOLGenerateBeamDecoderOnlyOutput(CountsBytes, GenerateBeamDecoderOnlyOutput):
    __doc__ = f"""Output of beam search under a budget.

    Args:
        sequences (`torch.LongTensor` of shape `(rows, length)`): Prompt and new tokens.{_ACTIONS_AND_REALISED}
    """

    actions: torch.Tensor | None = None
    realised: torch.Tensor | None = None
    compute_unit: str | None = None
    net_keep: torch.Tensor | None = None


@dataclass
class SOLScoreOutput(CountsBytes, ModelOutput):
    """Teacher-forced scores of a continuation; `steps` is the number of steps of the longest row.

    Args:
        logprobs (`torch.FloatTensor` of shape `(rows, steps)`): Log-probability (nats) of every scored token, 0
            where a row has no step.
        actions (`torch.LongTensor` of shape `(rows, steps)`): Action of every step, -1 where a row has none, and where
            the base ran densely though the action space has no dense action.
        realised (`torch.FloatTensor` of shape `(rows, axes)`): Means of `token_keep`, `mlp_keep`, `bits` and further
            axes of the action space over the row's controllable steps; the largest levels for a row that had none.
        step_mask (`torch.BoolTensor` of shape `(rows, steps)`): True for the steps that a row has.
        logits (`torch.FloatTensor` of shape `(rows, steps, vocab_size)`, *optional*): With `return_logits=True`.
        greedy (`torch.BoolTensor` of shape `(rows, steps)`): Whether the scored token was the most likely one.
        net_keep (`torch.FloatTensor` of shape `(rows,)`): Mean of `realised` over the axes, in ratio units.
        compute_unit (`str`, *optional*): What `compute` counted, if the budget came from it.
    """

    logprobs: torch.Tensor | None = None
    actions: torch.Tensor | None = None
    realised: torch.Tensor | None = None
    step_mask: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    greedy: torch.Tensor | None = None
    compute_unit: str | None = None
    net_keep: torch.Tensor | None = None


def realised_means(actions: torch.Tensor, counted: torch.Tensor, space: ActionSpace) -> torch.Tensor:
    """Means in axis units over the counted steps, `(rows, axes)`, from `(rows, steps)` actions and flags.

    Steps that cannot be controlled run at the largest levels, so these are the values of a row without counted steps.
    """
    ratios = space.ratios_on(actions.device)[actions.clamp(min=0)]
    weight = counted.to(ratios.dtype)[..., None]
    means = (ratios * weight).sum(1) / weight.sum(1).clamp(min=1) * space.scales.to(actions.device)
    return torch.where(weight.sum(1) > 0, means, torch.tensor(space.largest, device=actions.device))


def net_keep_of(realised: torch.Tensor, space: ActionSpace) -> torch.Tensor:
    """Means over the axes in ratio units, `(rows,)`, of means `(rows, axes)` in axis units."""
    return (realised / space.scales.to(realised)).mean(dim=-1)


def attach_steps(
    output: GenerateDecoderOnlyOutput | GenerateBeamDecoderOnlyOutput,
    row_ends: RowEnds,
    cache: SOLCache | None,
    space: ActionSpace,
    compute_unit: str | None = None,
) -> SOLGenerateDecoderOnlyOutput | SOLGenerateBeamDecoderOnlyOutput:
    """Add `actions` and `realised` to the output of transformers' generate.

    Args:
        output: From `generate`.
        row_ends ([`RowEnds`]): When every row ended.
        cache ([`SOLCache`], *optional*): The cache of the call, with the steps as executed; `None` if all were dense.
        space ([`ActionSpace`]): Meaning of the ids.
        compute_unit (`str`, *optional*): What `compute` counts, if the budget came from it.
    """
    beams = getattr(output, "beam_indices", None)
    if beams is not None:
        beams = beams[:, : len(row_ends.ended)].long()
    running = row_ends.running() if beams is None else beams >= 0
    steps = running.shape[1]
    if cache is None:
        actions = torch.full_like(running, space.dense_id if space.has_dense else NO_ACTION, dtype=torch.long)
        realised = torch.tensor(space.dense, device=running.device).repeat(len(running), 1)
    else:
        trace = cache.trace
        actions = torch.stack([action for action, _ in trace[:steps]], dim=1)
        counted = torch.stack([flag for _, flag in trace[:steps]], dim=1)
        if beams is not None:
            actions, counted = (x.gather(0, beams.clamp(min=0)) for x in (actions, counted))
        realised = realised_means(actions, counted & running, cache.action_space)
    is_beam_search = isinstance(output, GenerateBeamDecoderOnlyOutput)
    target = SOLGenerateBeamDecoderOnlyOutput if is_beam_search else SOLGenerateDecoderOnlyOutput
    return target(
        **{field.name: getattr(output, field.name) for field in fields(output)},
        actions=actions.masked_fill(~running, NO_ACTION),
        realised=realised,
        compute_unit=compute_unit,
        net_keep=net_keep_of(realised, space),
    )
