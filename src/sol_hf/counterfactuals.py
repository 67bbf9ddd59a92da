# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""What each level of each axis would cost at a step: measured, one step at a time, on a shared prefix.

Along the continuation of a block, which is written under the fixed schedule at a random budget, every step is tried
under a few *probes*: one axis at one level, the others dense. A probe's cost is KL(dense ‖ probe), the loss that it is
expected to add if the dense model is right; the loss on the actual label has the same mean, but a far larger variance.
All probes of a step are rows over one prefix, and leave no trace.
"""

from dataclasses import dataclass, fields

import torch
from torch.nn.functional import kl_div

from .actions import AXES, ActionSpace
from .cache import SOLCache
from .controllers import FixedController, ScheduleController
from .decoding import ForwardInputs, decode_step
from .instrumentation import Instrumentation
from .modeling_sol import SOLForCausalLM
from .rollouts import Recorder, one_episode, prefill


@dataclass(frozen=True)
class Probes:
    """Actions to try: dense, then each axis at each of its probed levels.

    Args:
        actions (`torch.LongTensor` of shape `(probes,)`): Action ids; the first is the dense one.
        axes (`tuple[int, ...]`): For every probe but the first, its axis.
        levels (`tuple[float, ...]`): And its level, in ratio units.
    """

    actions: torch.Tensor
    axes: tuple[int, ...]
    levels: tuple[float, ...]

    @classmethod
    def of(cls, space: ActionSpace, per_axis: int = 4) -> "Probes":
        """Up to `per_axis` levels of every axis, denser at the cheap end, where the costs are."""
        largest = {axis: max(space.levels[axis]) for axis in AXES}
        actions, axes, levels = [space.table.index(tuple(largest.values()))], [], []
        for number, axis in enumerate(AXES):
            below = sorted(space.levels[axis])[:-1]
            count = min(per_axis, len(below))
            places = {round((len(below) - 1) * (i / max(count - 1, 1)) ** 1.5) for i in range(count)}
            for level in (below[place] for place in sorted(places) if below):
                action = space.table.index(tuple({**largest, axis: level}.values()))
                actions.append(action)
                axes.append(number)
                levels.append(float(space.ratios[action, number]))
        return cls(torch.tensor(actions), tuple(axes), tuple(levels))


@dataclass(frozen=True)
class Counterfactuals:
    """Measured costs along the continuation of every block.

    Args:
        hidden_states (`torch.Tensor` of shape `(blocks, steps, hidden_size)`): The LM's state before every step.
        tokens (`torch.LongTensor` of shape `(blocks, steps)`): The token that a step processes.
        controllable (`torch.BoolTensor` of shape `(blocks, steps)`): Whether the step is under control.
        divergence (`torch.Tensor` of shape `(blocks, steps, probes)`): KL(dense ‖ probe) in nats.
        losses (`torch.Tensor` of shape `(blocks, steps, probes)`): Loss on the label in nats.
    """

    hidden_states: torch.Tensor
    tokens: torch.Tensor
    controllable: torch.Tensor
    divergence: torch.Tensor
    losses: torch.Tensor

    @staticmethod
    def concatenate(parts: "list[Counterfactuals]") -> "Counterfactuals":
        """Several measurements as one. Tensors of inference mode become ordinary ones."""
        names = [field.name for field in fields(Counterfactuals)]
        return Counterfactuals(**{name: torch.cat([getattr(part, name) for part in parts]).clone() for name in names})


def measure(
    model: SOLForCausalLM, blocks: torch.Tensor, context_length: int, probes: Probes, targets: torch.Tensor
) -> Counterfactuals:
    """Try every probe at every step of the continuation of `blocks`.

    Args:
        model ([`SOLForCausalLM`]): Its base is measured; its policy is not used.
        blocks (`torch.LongTensor` of shape `(blocks, context + steps + 1)`): Token ids.
        context_length (`int`): Tokens that are processed densely.
        probes ([`Probes`]): What to try.
        targets (`torch.Tensor` of shape `(blocks, 3)`): Budgets, in ratio units, under which the history is written.
    """
    steps = blocks.shape[1] - context_length - 1
    prefix = prefill(model, blocks, context_length, dense=True)
    assert prefix.logprobs is not None, "asked for by `dense`"
    cache, recorder = prefix.cache, Recorder(FixedController(carry=AXES))
    divergence, losses = [], []
    with Instrumentation.of(model.base), torch.inference_mode():
        cache.drop_tokens(steps)
        cache.end_episode(prefix.hidden_states[:, 0])
        cache.start(one_episode(model, recorder, steps), context_length)
        cache.targets = targets
        for step in range(steps):
            token = blocks[:, context_length + step, None]
            label = blocks[:, context_length + step + 1, None]
            logits = _try(model, cache, token, probes)
            logprobs = logits.sub_(logits.logsumexp(dim=-1, keepdim=True))
            dense = prefix.logprobs[:, step, None]
            divergence.append(
                torch.cat(
                    [
                        kl_div(one, dense[:, 0], reduction="none", log_target=True).sum(-1, keepdim=True)
                        for one in logprobs.unbind(1)
                    ],
                    dim=1,
                )
            )
            losses.append(-logprobs.gather(2, label[:, None].expand(-1, logprobs.shape[1], 1)).squeeze(2))
            decode_step(model.base, token, cache, ForwardInputs(token), None)
        measured = Counterfactuals(
            hidden_states=torch.stack([seen.hidden_state for seen in recorder.seen], dim=1),
            tokens=blocks[:, context_length : context_length + steps],
            controllable=torch.stack([seen.controllable for seen in recorder.seen], dim=1),
            divergence=torch.stack(divergence, dim=1),
            losses=torch.stack(losses, dim=1),
        )
    return Counterfactuals.concatenate([measured])


def _try(model: SOLForCausalLM, cache: SOLCache, token: torch.Tensor, probes: Probes) -> torch.Tensor:
    """Logits of `token` `(rows, 1)` under every probe, `(rows, probes, vocab)`, in float32."""
    rows, count = len(token), len(probes.actions)
    hidden = cache.episode.hidden_state
    assert hidden is not None, "set by the prefill"
    fanned = cache.fan_out(count, hidden)
    fanned.start(one_episode(model, ScheduleController(probes.actions.repeat(rows)[None]), 1), None)
    repeated = token.repeat_interleave(count, dim=0)
    logits = decode_step(model.base, repeated, fanned, ForwardInputs(repeated), None).logits[:, -1]
    return logits.float().view(rows, count, -1)
