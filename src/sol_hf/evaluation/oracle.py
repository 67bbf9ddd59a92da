# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The best schedule for a known text: levels per token that minimize KL(dense ‖ sparse) at a budget.

The divergence is minimized, not the loss on the text's own tokens. Minimizing that loss would select steps at which an
error happens to favour the label, and the result could be below the dense loss. The damage of a level is measured for
every step separately, after a dense history:

    step      0 1 2 3 4 5 6 7 ...
    probe     d d C d d d d d        C: one axis at one level;  d: dense
                  ^ ^ ^ ^            divergence here: of the step itself, and of `later_steps` steps after it

Costs of axes and steps are assumed to add up. Then the best levels at given means minimize `cost + price * level`,
with one price per axis and horizon: a text, for a policy that keeps its budget over a generation. Since costs add up
approximately only, the result is an estimate of the optimum and not a bound: other schedules may be better.
"""

from collections.abc import Sequence

import torch

from ..budget.action_space import ActionSpace
from ..cache.sol_cache import SOLCache
from ..decoding.base_forward import base_forward
from ..decoding.forward_inputs import ForwardInputs
from ..episodes.block_runner import BlockRunner
from ..episodes.counterfactuals import Probes, divergence_of, steps_run_together
from ..episodes.rollouts import DensePrefix, prefill
from ..episodes.step_settings import StepSettings
from ..execution.instrumentation import Instrumentation
from ..execution.plan import StepPlan, active_forward
from ..modeling_sol import SOLForCausalLM


LEVELS_PER_AXIS = 6
"""Number of levels of an axis that are measured; costs of other levels are interpolated."""


def measure_damage(
    model: SOLForCausalLM, blocks: torch.Tensor, context_length: int, probes: Probes, later_steps: int = 0
) -> torch.Tensor:
    """Divergence that every probe causes at every step, in that step and in the steps after it.

    Args:
        model ([`SOLForCausalLM`]): Its base is measured.
        blocks (`torch.LongTensor` of shape `(blocks, context_length + steps + 1)`): Token ids.
        context_length (`int`): Tokens before the first step.
        probes ([`Probes`]): The probes to measure.
        later_steps (`int`, *optional*, defaults to 0): Dense steps after a probe whose divergence is added, up to the
            end of the block.

    Returns:
        `torch.Tensor` of shape `(blocks, steps, probes)`: In nats.
    """
    steps, rule = blocks.shape[1] - context_length - 1, model.config.selection_rule
    prefix = prefill(model, blocks, context_length, dense=True)
    damage = torch.zeros(len(blocks), steps, len(probes.actions), device=blocks.device)
    with Instrumentation.of(model.base), torch.inference_mode():
        for together in steps_run_together(steps, prefix.cache, rule, context_length):
            damage[:, together] = _damage_at(model, blocks, prefix, together, probes, later_steps)
    return damage


def _damage_at(
    model: SOLForCausalLM,
    blocks: torch.Tensor,
    prefix: DensePrefix,
    places: list[int],
    probes: Probes,
    later_steps: int,
) -> torch.Tensor:
    """Damage `(blocks, places, probes)` of the probes at some steps."""
    assert prefix.logprobs is not None, "computed with `dense`"
    count, steps, rule = len(probes.actions), prefix.logprobs.shape[1], model.config.selection_rule
    begins = [prefix.context_length + place for place in places]
    fanned = prefix.cache.fan_out(count, blocks.new_zeros(len(blocks), 0), begins)
    tried = probes.actions.to(blocks.device).repeat(len(blocks) * len(places))
    settings = StepSettings.of(model)
    values = settings.space.values_on(blocks.device)[tried]
    parts = Instrumentation.of(model.base).parts(fanned, settings.bits_backend)
    plan = StepPlan.from_values(values, fanned, rule, settings.backend, settings.bits_backend, parts=parts)
    damage = torch.zeros(len(blocks), len(places), count, device=blocks.device)
    for later in range(1 + min(later_steps, steps - 1 - min(places))):
        at = [min(place + later, steps - 1) for place in places]  # after the end of the block: run, but not counted
        counted = torch.tensor([place + later < steps for place in places], device=blocks.device)
        token = blocks[:, [prefix.context_length + place for place in at]].repeat_interleave(count, dim=1)
        logprobs = _step(model, token.view(-1, 1), fanned, plan).view(*damage.shape, -1)
        damage += divergence_of(logprobs, prefix.logprobs[:, at]) * counted[:, None]
        plan = StepPlan(fanned, rule, backend=settings.backend)
    return damage


def _step(model: SOLForCausalLM, token: torch.Tensor, cache: SOLCache, plan: StepPlan) -> torch.Tensor:
    """Log-probabilities `(rows, vocab)` after one more token per row."""
    with active_forward(plan):
        output = base_forward(model.base, ForwardInputs(token), cache)
    return output.logits[:, -1].log_softmax(dim=-1, dtype=torch.float32)


def measure_blocks(runner: BlockRunner, probes: Probes, later_steps: int, name: str = "") -> torch.Tensor:
    """[`measure_damage`] on all blocks of a runner; every process measures its share.

    Args:
        runner ([`BlockRunner`]): Base and blocks.
        probes ([`Probes`]): The probes to measure.
        later_steps (`int`): Dense steps after a probe whose divergence is added.
        name (`str`, *optional*): Title of the progress bar.

    Returns:
        `torch.Tensor` of shape `(blocks, steps, probes)`: In nats, on the CPU.
    """
    damage = torch.zeros(len(runner.tokens), runner.steps, len(probes.actions))
    for batch in runner.batches(name):
        found = measure_damage(runner.model, batch.tokens, batch.context_length, probes, later_steps)
        damage[batch.blocks[: batch.kept]] = found[: batch.kept].cpu()
        if runner.advance is not None:
            runner.advance(batch.kept * len(probes.actions) * (1 + later_steps))
    return runner.gather(damage)


def cheapest_levels(costs: torch.Tensor, levels: torch.Tensor, mean: float) -> torch.Tensor:
    """Levels of least total cost whose mean is at most `mean`, and as close to it as one step's level allows.

    Args:
        costs (`torch.Tensor` of shape `(steps, levels)`): Cost of every level at every step.
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
    for step in (chosen != dearer).nonzero().squeeze(1).tolist():  # equal cost: raise as many as the mean allows
        extra = float(levels[dearer[step]] - levels[chosen[step]])
        if 0 < extra <= left:
            chosen[step], left = dearer[step], left - extra
    return chosen


def oracle_schedule(
    tables: Sequence[torch.Tensor],
    space: ActionSpace,
    means: torch.Tensor,
    counted: torch.Tensor,
    together: torch.Tensor | None = None,
) -> torch.Tensor:
    """The schedule of least cost at given means.

    Args:
        tables (`Sequence[torch.Tensor]`): Per axis the costs `(blocks, steps, levels)`, from [`level_costs`].
        space ([`ActionSpace`]): The levels.
        means (`torch.Tensor` of shape `(axes,)`): Means over controllable steps, in ratio units.
        counted (`torch.BoolTensor` of shape `(steps,)` or `(blocks, steps)`): Controllable steps; the others are
            dense.
        together (`torch.LongTensor` of shape `(blocks, steps)`, *optional*): Steps with the same number keep the
            means together, see [`horizon_parts`]; by default all steps of all blocks do.

    Returns:
        `torch.LongTensor` of shape `(blocks, steps)`: Action ids.
    """
    counted = counted.expand(tables[0].shape[:2])
    parts = torch.zeros(counted.shape, dtype=torch.long) if together is None else together
    schedule = torch.full(counted.shape, space.dense_id)
    for part in parts[counted].unique():
        within, chosen = counted & (parts == part), []
        for axis, table, mean in zip(space.axes, tables, means.tolist(), strict=True):
            levels = torch.tensor(space.spent[axis.name], dtype=torch.float64) / axis.scale
            chosen.append(cheapest_levels(table[within], levels, mean))
        schedule[within] = space.ids_of(torch.stack(chosen, dim=-1))
    return schedule


def horizon_parts(blocks: int, steps: int, horizon: str | None, episode_length: int) -> torch.Tensor:
    """Which steps keep a budget together, as the policy does that the oracle is compared with.

    Args:
        blocks (`int`): Number of texts.
        steps (`int`): Steps of a text.
        horizon (`str`, *optional*): `"generation"`: those of a text; `"episode"`: those of an episode; `None`, for
            soft budgets: all.
        episode_length (`int`): Steps of an episode.

    Returns:
        `torch.LongTensor` of shape `(blocks, steps)`: The number of every step's part.
    """
    text, step = torch.arange(blocks)[:, None], torch.arange(steps)
    if horizon is None:
        return torch.zeros(blocks, steps, dtype=torch.long)
    return (text if horizon == "generation" else text * steps + step // episode_length).expand(blocks, steps)
