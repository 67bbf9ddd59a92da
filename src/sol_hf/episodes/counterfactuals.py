# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The cost of each level of each axis at a step, measured for one step at a time after a dense history.

Every step of the continuation of a block is run under a few *probes*. A probe sets one axis to one level; the other
axes and all earlier steps are dense. Its cost is KL(dense ‖ probe), which is the expected additional loss if the dense
model is right. The additional loss on the actual label has the same mean and a far larger variance.

The hidden states that a policy under a budget observes are not those of the dense model, but those after cheap steps.
Every step is therefore also run under one random action, and the hidden state after it is kept for the next step.

One dense forward computes the history of all steps. Probes of steps that are whole pages apart are rows of one decode
step over that history. Each row sees the history up to its own step:

    block    | context | 0 1 2 3 4 5 6 7 | 0 1 2 3 4 5 6 7 |        steps with the same number run together
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import torch

from ..budget.action_space import ActionSpace
from ..cache.sol_cache import SOLCache
from ..decoding.base_forward import base_forward
from ..decoding.forward_inputs import ForwardInputs
from ..execution.instrumentation import Instrumentation
from ..execution.plan import StepPlan, active_forward
from ..modeling_sol import SOLForCausalLM
from ..selection.criterion import CRITERIA
from ..selection.rule import SelectionRule
from .rollouts import prefill
from .step_settings import StepSettings


@dataclass(frozen=True)
class Probes:
    """Actions to measure: one axis at one level, the other axes at their largest level.

    Args:
        actions (`torch.LongTensor` of shape `(probes,)`): Action ids.
        axes (`tuple[int, ...]`): For every probe, the column of its axis in the action space.
        levels (`tuple[float, ...]`): For every probe, its level in ratio units.
    """

    actions: torch.Tensor
    axes: tuple[int, ...]
    levels: tuple[float, ...]

    @classmethod
    def at(cls, space: ActionSpace, levels: Mapping[str, Sequence[float]]) -> "Probes":
        """Probes at given levels.

        Args:
            space ([`ActionSpace`]): The action space of the levels.
            levels (`Mapping[str, Sequence[float]]`): Levels per axis, in axis units; an axis may be left out.

        Raises:
            ValueError: for an unknown axis, a level that the space does not have, or no level at all.
        """
        largest = {axis: max(own) for axis, own in space.levels.items()}
        actions, axes, ratios = [], [], []
        for axis, wanted in levels.items():
            for level in wanted:
                if level not in space.levels.get(axis, ()):
                    raise ValueError(f"{axis}={level} is not a level of the action space: {space.levels}.")
                actions.append(space.index(**{**largest, axis: level}))
                axes.append(space.column(axis))
                ratios.append(float(space.ratios[actions[-1], axes[-1]]))
        if not actions:
            raise ValueError("There is no level to measure: name some below the largest of an axis.")
        return cls(torch.tensor(actions), tuple(axes), tuple(ratios))

    @classmethod
    def of(cls, space: ActionSpace, per_axis: int = 4) -> "Probes":
        """Up to `per_axis` levels of every axis below its largest, most of them low levels, which have high costs."""
        distinct = {axis: distinct_levels(space, axis) for axis in space.axis_names}
        return cls.at(space, {axis: levels_to_probe(levels, per_axis) for axis, levels in distinct.items()})


def distinct_levels(space: ActionSpace, axis: str) -> list[float]:
    """The levels of an axis, without those that are carried out as the next higher one."""
    spent = dict(zip(space.levels[axis], space.spent[axis], strict=True))
    highest = {amount: max(level for level in spent if spent[level] == amount) for amount in spent.values()}
    return sorted(highest.values())


def levels_to_probe(levels: Sequence[float], count: int) -> list[float]:
    """Up to `count` levels of an axis below its largest, most of them low levels, which have high costs."""
    below = sorted(levels)[:-1]
    count = min(count, len(below))
    places = {round((len(below) - 1) * (i / max(count - 1, 1)) ** 1.5) for i in range(count)}
    return [below[place] for place in sorted(places)]


@dataclass(frozen=True)
class Counterfactuals:
    """Measured costs along the continuation of every block.

    Args:
        hidden_states (`torch.Tensor` of shape `(blocks, steps, hidden_size)`): The LM's state before every step.
        tokens (`torch.LongTensor` of shape `(blocks, steps)`): The token that a step processes.
        divergence (`torch.Tensor` of shape `(blocks, steps, probes)`): KL(dense ‖ probe) in nats.
        losses (`torch.Tensor` of shape `(blocks, steps, 1 + probes)`): Loss on the label in nats, dense and probed.
        next_actions (`torch.LongTensor` of shape `(blocks, steps)`): A random action at every step.
        next_states (`torch.Tensor` of shape `(blocks, steps, hidden_size)`): The state after this action.
    """

    hidden_states: torch.Tensor
    tokens: torch.Tensor
    divergence: torch.Tensor
    losses: torch.Tensor
    next_actions: torch.Tensor
    next_states: torch.Tensor

    @staticmethod
    def concatenate(parts: "list[Counterfactuals]") -> "Counterfactuals":
        """Several measurements as one. Inference tensors become ordinary ones."""
        names = [field.name for field in fields(Counterfactuals)]
        return Counterfactuals(**{name: torch.cat([getattr(part, name) for part in parts]).clone() for name in names})


def measure(
    model: SOLForCausalLM, blocks: torch.Tensor, context_length: int, probes: Probes, next_actions: torch.Tensor
) -> Counterfactuals:
    """Measure every probe at every step of the continuation of `blocks`, and one further action per step.

    Args:
        model ([`SOLForCausalLM`]): Its base is measured; its policy is not used.
        blocks (`torch.LongTensor` of shape `(blocks, context + steps + 1)`): Token ids.
        context_length (`int`): Tokens before the first step.
        probes ([`Probes`]): The probes to measure.
        next_actions (`torch.LongTensor` of shape `(blocks, steps)`): One further action per step. Only the hidden
            state after it is kept.

    Raises:
        ValueError: if the first steps would not be controllable after so short a context.
    """
    rule = model.config.selection_rule
    rule.refuse_short_text(context_length)
    if not rule.is_controllable(torch.tensor(context_length + 1)):
        raise ValueError(f"After a context of {context_length} tokens the first steps are always dense.")
    steps = blocks.shape[1] - context_length - 1
    prefix = prefill(model, blocks, context_length, dense=True)
    assert prefix.logprobs is not None, "computed with `dense`"
    with Instrumentation.of(model.base), torch.inference_mode():
        labels = blocks[:, context_length + 1 :, None]
        losses = -prefix.logprobs.gather(2, labels).expand(-1, -1, 1 + len(probes.actions)).clone()
        divergence = torch.empty(*losses.shape[:2], len(probes.actions), device=losses.device)
        next_states = torch.empty_like(prefix.hidden_states[:, :-1])
        for together in steps_run_together(steps, prefix.cache, rule, context_length):
            tried = probes.actions.to(blocks.device).expand(len(blocks), len(together), -1)
            tried = torch.cat([tried, next_actions[:, together, None]], dim=2)
            probed, states = _try(model, prefix.cache, blocks, [context_length + step for step in together], tried)
            next_states[:, together] = states[:, :, -1]
            probed = probed[:, :, :-1]
            divergence[:, together] = divergence_of(probed, prefix.logprobs[:, together])
            label = labels[:, together, None].expand(-1, -1, probed.shape[2], 1)
            losses[:, together, 1:] = -probed.gather(3, label).squeeze(3)
        measured = Counterfactuals(
            hidden_states=prefix.hidden_states[:, :-1],
            tokens=blocks[:, context_length : context_length + steps],
            divergence=divergence,
            losses=losses,
            next_actions=next_actions,
            next_states=next_states,
        )
    return Counterfactuals.concatenate([measured])


def divergence_of(logprobs: torch.Tensor, dense: torch.Tensor) -> torch.Tensor:
    """KL(dense ‖ tried) `(..., tried)` in nats, of log-probabilities `(..., tried, vocab)` and `(..., vocab)`."""
    probability = dense.exp()
    entropy = -(probability * dense).sum(dim=-1, keepdim=True)
    return -(logprobs @ probability[..., None]).squeeze(-1) - entropy


def steps_run_together(steps: int, cache: SOLCache, rule: SelectionRule, context_length: int) -> list[list[int]]:
    """Groups of steps that can be rows of one decode step: whole pages apart, if cache and criterion allow it."""
    least = CRITERIA[rule.criterion].prefix_to_stagger
    whole_pages = context_length // rule.page_size * rule.page_size
    stride = rule.page_size if least is not None and whole_pages >= least and cache.can_stagger else steps
    return [list(range(first, steps, stride)) for first in range(min(stride, steps))]


def _try(
    model: SOLForCausalLM, cache: SOLCache, blocks: torch.Tensor, places: list[int], actions: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities and hidden states of the tokens at `places` under `actions` `(blocks, places, tried)`.

    Returns:
        Two `torch.Tensor` of shape `(blocks, places, tried, vocab)` and `(blocks, places, tried, hidden_size)`.
    """
    count, settings = actions.shape[2], StepSettings.of(model)
    token = blocks[:, places].repeat_interleave(count, dim=1).view(-1, 1)
    hidden = torch.empty(len(blocks), 0, device=token.device)  # no controller uses it
    fanned = cache.fan_out(count, hidden, places)
    values = settings.space.values_on(token.device)[actions.flatten()]
    parts = Instrumentation.of(model.base).parts(fanned, settings.bits_backend)
    how = model.config.selection_rule, settings.backend, settings.bits_backend
    plan = StepPlan.from_values(values, fanned, *how, parts=parts)
    with active_forward(plan) as context:
        output = base_forward(model.base, ForwardInputs(token), fanned)
    logprobs = output.logits[:, -1].log_softmax(dim=-1, dtype=torch.float32)
    return logprobs.view(*actions.shape, -1), context.last_hidden_state().view(*actions.shape, -1)
