# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""How good a schedule could be that knows the text: levels per token which minimize KL(dense ‖ sparse) at a budget.

It is the divergence that is minimized, not the loss on the text's own tokens: that would mine luck, and end below the
dense loss. What a cheap level does is measured at every step on its own, after a dense history:

    step      0 1 2 3 4 5 6 7 ...
    probe     d d C d d d d d        C: one axis at one level;  d: dense
                  ^ ^ ^ ^            divergence here: of the step itself, and of `look_ahead` steps after it

Costs of axes and steps are taken to add up. Then the best levels of given means minimize `cost + price * level`, with
one price per axis. They do not really add up, so this is an estimate of the limit, which a schedule may even beat.
"""

from collections.abc import Sequence

import torch

from ..budget.action_space import AXES, AXIS_SCALE, ActionSpace
from ..cache.sol_cache import SOLCache
from ..decoding.base_forward import ForwardInputs, base_forward
from ..episodes.block_runner import BlockPlayer
from ..episodes.counterfactuals import Probes, divergence_of, steps_run_together
from ..episodes.rollouts import DensePrefix, prefill
from ..execution.instrumentation import Instrumentation
from ..execution.plan import StepPlan, active_forward
from ..modeling_sol import SOLForCausalLM


LEVELS_PER_AXIS = 6
"""Levels of an axis that are measured; what lies between them is interpolated."""


def measure_damage(
    model: SOLForCausalLM, blocks: torch.Tensor, context_length: int, probes: Probes, look_ahead: int = 0
) -> torch.Tensor:
    """What every probe costs at every step, in the step itself and in those after it.

    Args:
        model ([`SOLForCausalLM`]): Its base is measured.
        blocks (`torch.LongTensor` of shape `(blocks, context_length + steps + 1)`): Token ids.
        context_length (`int`): Tokens before the first step.
        probes ([`Probes`]): What to try.
        look_ahead (`int`, *optional*, defaults to 0): Dense steps after a probe whose divergence is added, as far as
            the block goes.

    Returns:
        `torch.Tensor` of shape `(blocks, steps, probes)`: In nats.
    """
    steps, rule = blocks.shape[1] - context_length - 1, model.config.selection_rule
    prefix = prefill(model, blocks, context_length, dense=True)
    damage = torch.zeros(len(blocks), steps, len(probes.actions), device=blocks.device)
    with Instrumentation.of(model.base), torch.inference_mode():
        for together in steps_run_together(steps, prefix.cache, rule):
            damage[:, together] = _damage_at(model, blocks, prefix, together, probes, look_ahead)
    return damage


def _damage_at(
    model: SOLForCausalLM,
    blocks: torch.Tensor,
    prefix: DensePrefix,
    places: list[int],
    probes: Probes,
    look_ahead: int,
) -> torch.Tensor:
    """Damage `(blocks, places, probes)` of the probes at some steps."""
    assert prefix.logprobs is not None, "prefilled with `dense`"
    count, steps, rule = len(probes.actions), prefix.logprobs.shape[1], model.config.selection_rule
    begins = [prefix.context_length + place for place in places]
    fanned = prefix.cache.fan_out(count, blocks.new_zeros(len(blocks), 0), begins)
    tried = probes.actions.to(blocks.device).repeat(len(blocks) * len(places))
    values = model.action_space.values_on(blocks.device)[tried]
    parts = Instrumentation.of(model.base).parts(fanned)
    plan = StepPlan.from_values(values, fanned, rule, parts=parts)
    damage = torch.zeros(len(blocks), len(places), count, device=blocks.device)
    for later in range(1 + min(look_ahead, steps - 1 - min(places))):
        at = [min(place + later, steps - 1) for place in places]  # beyond the end: played, but not counted
        counted = torch.tensor([place + later < steps for place in places], device=blocks.device)
        token = blocks[:, [prefix.context_length + place for place in at]].repeat_interleave(count, dim=1)
        logprobs = _step(model, token.view(-1, 1), fanned, plan).view(*damage.shape, -1)
        damage += divergence_of(logprobs, prefix.logprobs[:, at]) * counted[:, None]
        plan = StepPlan(fanned, rule)
    return damage


def _step(model: SOLForCausalLM, token: torch.Tensor, cache: SOLCache, plan: StepPlan) -> torch.Tensor:
    """Log-probabilities `(rows, vocab)` after one more token per row."""
    with active_forward(plan):
        output = base_forward(model.base, token, cache, ForwardInputs(token))
    return output.logits[:, -1].log_softmax(dim=-1, dtype=torch.float32)


def measure_blocks(player: BlockPlayer, probes: Probes, look_ahead: int, name: str = "") -> torch.Tensor:
    """[`measure_damage`] on all blocks of a player, each process its share.

    Args:
        player ([`BlockPlayer`]): Base and blocks.
        probes ([`Probes`]): What to try.
        look_ahead (`int`): Steps after a probe that count.
        name (`str`, *optional*): For the bar.

    Returns:
        `torch.Tensor` of shape `(blocks, steps, probes)`: In nats, on the CPU.
    """
    damage = torch.zeros(len(player.tokens), player.steps, len(probes.actions))
    for _, tokens, some in player.batches(name):
        found = measure_damage(player.model, tokens, player.context_length, probes, look_ahead)
        damage[some] = found[: some.stop - some.start].cpu()
        if player.advance is not None:
            player.advance((some.stop - some.start) * len(probes.actions) * (1 + look_ahead))
    return player.gather(damage)


def cheapest_levels(costs: torch.Tensor, levels: torch.Tensor, mean: float) -> torch.Tensor:
    """Levels of least total cost whose mean is at most `mean`, and as close to it as one step's level allows.

    Args:
        costs (`torch.Tensor` of shape `(steps, levels)`): Of every level at every step.
        levels (`torch.Tensor` of shape `(levels,)`): In ratio units.
        mean (`float`): At least the smallest level.

    Returns:
        `torch.LongTensor` of shape `(steps,)`: Indices into `levels`.
    """
    costs, levels = costs.double(), levels.double()
    allowed = mean * len(costs) + 1e-6

    def at(log_price: float) -> torch.Tensor:
        return (costs + 10**log_price * levels).argmin(dim=-1)

    low, high = -12.0, 9.0
    if levels[at(low)].sum() <= allowed:
        return at(low)
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (low, middle) if levels[at(middle)].sum() <= allowed else (middle, high)
    chosen, dearer = at(high), at(low)
    left = allowed - float(levels[chosen].sum())
    for step in (chosen != dearer).nonzero().squeeze(1).tolist():  # as good at this price: as many as fit
        extra = float(levels[dearer[step]] - levels[chosen[step]])
        if 0 < extra <= left:
            chosen[step], left = dearer[step], left - extra
    return chosen


def oracle_schedule(
    tables: Sequence[torch.Tensor], space: ActionSpace, means: torch.Tensor, counted: torch.Tensor
) -> torch.Tensor:
    """The schedule of least cost at given means over all blocks.

    Args:
        tables (`Sequence[torch.Tensor]`): Per axis the costs `(blocks, steps, levels)`, from [`level_costs`].
        space ([`ActionSpace`]): The levels.
        means (`torch.Tensor` of shape `(3,)`): Means over blocks and controllable steps, in ratio units.
        counted (`torch.BoolTensor` of shape `(steps,)`): Controllable steps; the others are dense.

    Returns:
        `torch.LongTensor` of shape `(blocks, steps)`: Action ids.
    """
    blocks = len(tables[0])
    ids = torch.zeros(blocks, int(counted.sum()), dtype=torch.long)
    for axis, scale, table, mean in zip(AXES, AXIS_SCALE, tables, means.tolist(), strict=True):
        levels = torch.tensor(space.levels[axis], dtype=torch.float64) / scale
        chosen = cheapest_levels(table[:, counted].flatten(0, 1), levels, mean)
        ids = ids * len(levels) + chosen.view(blocks, -1)
    schedule = torch.full((blocks, len(counted)), space.dense_id)
    schedule[:, counted] = ids
    return schedule
