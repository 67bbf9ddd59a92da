# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Finds budgets that are worth comparing policies at: those at which the fixed schedule loses neither nothing nor all.

    1  every level of every axis alone, on a few texts           ->  KL(dense ‖ level)
    2  budgets whose axes add up to a wanted KL, in equal parts  ->  predicted
    3  the fixed schedule at these budgets                       ->  measured; wanted KL divided by what they miss by

Some budgets control all axes, some leave the MLPs dense, some read all keys.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from ..budget.action_space import ActionSpace
from ..budget.axes import AXES, MLP_KEEP, NEURON_KEEP, TOKEN_KEEP
from ..controllers.fixed import fixed_schedule
from ..controllers.schedule import ScheduleController
from ..episodes.block_runner import BlockRunner, Run, check_blocks, contexts_of
from ..episodes.counterfactuals import distinct_levels
from ..episodes.step_settings import StepSettings
from ..execution.instrumentation import Instrumentation
from ..modeling_sol import SOLForCausalLM


LEAST, MOST = 0.02, 0.5
"""KL(dense ‖ fixed) in nats per token that the budgets lie between."""
NUMBER = 9
TEXTS, EPISODES, ROUNDS = 4, 2, 4
"""Of the measurement: texts, episodes of each, and how often budgets are moved."""
MARGIN = 1.4
"""Factor by which wanted costs lie within the limits."""
GROUPS: tuple[frozenset[str], ...] = (
    frozenset(),
    frozenset({MLP_KEEP.name, NEURON_KEEP.name}),
    frozenset({TOKEN_KEEP.name}),
)
"""Axes that budgets leave dense, group by group."""


@dataclass(frozen=True)
class AxisCosts:
    """What the levels of one axis cost under the fixed schedule, the other axes dense.

    Args:
        levels (`tuple` of `float`): Ascending, in axis units.
        costs (`tuple` of `float`): KL in nats per token, descending to 0.
    """

    levels: tuple[float, ...]
    costs: tuple[float, ...]

    def target_for(self, cost: float) -> float:
        """The target that costs so much; the schedule mixes the two levels next to a target."""
        pairs = list(zip(self.levels, self.costs, strict=True))
        for (low, high_cost), (high, low_cost) in zip(pairs, pairs[1:], strict=False):
            if low_cost <= cost <= high_cost and high_cost > low_cost:
                return high - (high - low) * (cost - low_cost) / (high_cost - low_cost)
        return self.levels[0] if cost > self.costs[0] else self.levels[-1]


def find_budgets(
    model: SOLForCausalLM,
    tokens: torch.Tensor,
    context_length: int | Sequence[int],
    number: int = NUMBER,
    least: float = LEAST,
    most: float = MOST,
) -> list[tuple[float, ...]]:
    """Budgets at which the fixed schedule costs between `least` and `most` nats of KL, by a quick measurement.

    Args:
        model ([`SOLForCausalLM`]): Base and action space; the policy is not used.
        tokens (`torch.LongTensor` of shape `(blocks, longest context + steps + 1)`): Texts; the first ones are used.
        context_length (`int`, or one per block): Tokens before the first step.
        number (`int`, *optional*, defaults to 9): How many to find.
        least (`float`, *optional*, defaults to 0.02): Smallest KL, in nats per token.
        most (`float`, *optional*, defaults to 0.5): Largest KL.

    Returns:
        `list` of `tuple` of `float`: One number per axis, in axis units.

    Raises:
        ValueError: if there are fewer such budgets.
    """
    runner, counted = _quick_runner(model, tokens, context_length)
    space = runner.space
    alone = _axis_costs(runner, counted)
    wanted = _wanted(alone, number, least, most)
    found: dict[tuple[float, ...], float] = {}
    goals = [goal for _, goal in wanted]
    for _ in range(ROUNDS):
        pairs = zip(wanted, goals, strict=True)
        budgets = [_budget(space, {axis: alone[axis] for axis in axes}, goal) for (axes, _), goal in pairs]
        measured = _fixed_costs(runner, counted, budgets)
        found |= {budget: cost for budget, cost in zip(budgets, measured, strict=True) if least <= cost <= most}
        if all(least <= cost <= most for cost in measured):
            found = dict(zip(budgets, measured, strict=True))
            break
        goals = [
            goal * (asked / max(cost, 1e-6)) for goal, (_, asked), cost in zip(goals, wanted, measured, strict=True)
        ]
    chosen = sorted(found, key=lambda budget: found[budget])
    if len(chosen) < number:
        raise ValueError(
            f"Only {len(chosen)} budgets were found at which the fixed schedule costs {least:g} to {most:g} nats of "
            f"KL{f' ({chosen})' if chosen else ''}: give `--budgets` as numbers, or a policy with lower levels."
        )
    return [chosen[round(i * (len(chosen) - 1) / max(number - 1, 1))] for i in range(number)]


def _quick_runner(
    model: SOLForCausalLM, tokens: torch.Tensor, context_length: int | Sequence[int]
) -> tuple[BlockRunner, torch.Tensor]:
    """The first texts and episodes, and their controllable steps."""
    counted = check_blocks(model, tokens, context_length, TEXTS)
    steps = min(counted.shape[1], EPISODES * model.config.episode_length)
    contexts = contexts_of(context_length, len(tokens))[:TEXTS]
    StepSettings.of(model).prepare(model)
    return BlockRunner(model, tokens[:TEXTS, : max(contexts) + steps + 1], contexts, TEXTS), counted[:TEXTS, :steps]


def _axis_costs(runner: BlockRunner, counted: torch.Tensor) -> dict[str, AxisCosts]:
    """What the levels of every axis cost that can be less than dense on this base."""
    space, instrumentation = runner.space, Instrumentation.of(runner.model.base)
    spent = {
        axis: {dict(zip(space.levels[axis], space.spent[axis], strict=True))[x] for x in distinct_levels(space, axis)}
        for axis in space.axis_names
        if instrumentation.unsupported(axis) is None
    }
    dense = dict(zip(space.axis_names, space.largest, strict=True))
    cases = [(axis, level) for axis, levels in spent.items() for level in sorted(levels) if level < dense[axis]]
    budgets = [tuple((dense | {axis: level}).values()) for axis, level in cases]
    found: dict[str, list[tuple[float, float]]] = {}
    for (axis, level), cost in zip(cases, _fixed_costs(runner, counted, budgets), strict=True):
        found.setdefault(axis, []).append((level, cost))
    costs = {}
    for axis, pairs in found.items():
        levels, values = zip(*pairs, strict=True)
        falling = torch.tensor([*values, 0.0]).flip(0).cummax(0).values.flip(0)
        costs[axis] = AxisCosts((*levels, dense[axis]), tuple(falling.tolist()))
    return costs


def _fixed_costs(runner: BlockRunner, counted: torch.Tensor, budgets: Sequence[Sequence[float]]) -> list[float]:
    """KL of the fixed schedule at budgets."""
    if not budgets:
        return []
    space = runner.space
    means = torch.tensor(budgets, dtype=torch.float64) / space.scales
    plans = torch.stack([fixed_schedule(mean, len(counted), counted, space) for mean in means], dim=1)
    run = Run(means.float(), lambda blocks, some: ScheduleController(plans[blocks][:, some].flatten(0, 1).T))
    (result,) = runner.run([run], divergence=True)
    return result.divergence.mean(dim=0).tolist()


def _wanted(alone: Mapping[str, AxisCosts], number: int, least: float, most: float) -> list[tuple[list[str], float]]:
    """The axes that every budget controls, and the KL that it is to cost."""
    groups = [[axis for axis in alone if axis not in left] for left in GROUPS]
    groups = [group for place, group in enumerate(groups) if group and group not in groups[:place]]
    each, low, high = math.ceil(number / max(len(groups), 1)), math.log(least * MARGIN), math.log(most / MARGIN)
    wanted = []
    for group in groups:
        top = min(high, math.log(max(sum(alone[axis].costs[0] for axis in group) * 0.9, 1e-9)))
        shares = [i / max(each - 1, 1) for i in range(each)]
        wanted += [(group, math.exp(low + share * (max(top, low) - low))) for share in shares]
    return wanted


def _budget(space: ActionSpace, alone: Mapping[str, AxisCosts], goal: float) -> tuple[float, ...]:
    """The budget whose axes cost `goal` together, in equal parts as far as an axis can cost so much."""
    left, targets = goal, {}
    axes = sorted(alone, key=lambda axis: alone[axis].costs[0])
    for place, axis in enumerate(axes):
        part = min(left / (len(axes) - place), alone[axis].costs[0])
        targets[axis], left = alone[axis].target_for(part), left - part
    dense = dict(zip(space.axis_names, space.largest, strict=True))
    least = {axis: min(space.spent[axis]) for axis in space.axis_names}
    rounded = {
        axis: max(round(value, 2 if AXES[axis].is_integral else 3), least[axis]) for axis, value in targets.items()
    }
    return tuple((dense | rounded).values())
