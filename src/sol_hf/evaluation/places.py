# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Measures what levels cost by the place in a page, and schedules by it: for `fixed:place`."""

from collections.abc import Sequence

import torch

from ..budget.action_space import ActionSpace
from ..budget.place_costs import PlaceCosts, levels_by_place
from ..controllers.fixed import half_between, upper_turns
from ..episodes.block_runner import BlockRunner, check_blocks, contexts_of
from ..episodes.cost_model import level_costs
from ..episodes.counterfactuals import Probes
from ..episodes.step_settings import StepSettings
from ..modeling_sol import SOLForCausalLM
from .oracle import LEVELS_PER_AXIS, measure_blocks


def measure_places(
    model: SOLForCausalLM, blocks: torch.Tensor, context_length: int | Sequence[int], batch_size: int = 4
) -> PlaceCosts:
    """Costs of all levels at every place of a page: KL(dense ‖ level) of single steps after a dense history.

    Args:
        model ([`SOLForCausalLM`]): Its base is measured; its policy is not used.
        blocks (`torch.LongTensor` of shape `(blocks, longest context + steps + 1)`): Token ids.
        context_length (`int`, or one per block): Tokens before the first step.
        batch_size (`int`, *optional*, defaults to 4): Blocks that run at the same time.

    Raises:
        ValueError: if some place of a page has no step, or blocks do not fit.
    """
    space, contexts = StepSettings.of(model).space, contexts_of(context_length, len(blocks))
    counted = check_blocks(model, blocks, contexts, batch_size)
    probes = Probes.of(space, LEVELS_PER_AXIS)
    damage = measure_blocks(BlockRunner(model, blocks, contexts, batch_size), probes, 0, "Measuring places")
    return costs_by_place(
        damage, counted, places_of(contexts, counted.shape[1], model.config.page_size), probes, space
    )


def places_of(contexts: Sequence[int], steps: int, page_size: int) -> torch.Tensor:
    """The place in its page of every step's own token, from 0, `(blocks, steps)`."""
    return (torch.tensor(list(contexts))[:, None] + torch.arange(steps)) % page_size


def costs_by_place(
    damage: torch.Tensor, counted: torch.Tensor, places: torch.Tensor, probes: Probes, space: ActionSpace
) -> PlaceCosts:
    """Means of measured damage over the steps of every place.

    Args:
        damage (`torch.Tensor` of shape `(blocks, steps, probes)`): From [`measure_blocks`].
        counted (`torch.BoolTensor` of shape `(blocks, steps)`): Controllable steps.
        places (`torch.LongTensor` of shape `(blocks, steps)`): From [`places_of`].
        probes ([`Probes`]): What was measured.
        space ([`ActionSpace`]): The levels.
    """
    means = []
    for place in range(int(places.max()) + 1):
        own = counted & (places == place)
        if not bool(own.any()):
            raise ValueError(f"No step is at place {place} of a page: give blocks of a page of steps or more.")
        means.append(damage[own].double().mean(dim=0))
    return PlaceCosts.of(space, level_costs(torch.stack(means), probes, space))


def place_schedule(
    costs: PlaceCosts, means: torch.Tensor, counted: torch.Tensor, places: torch.Tensor, space: ActionSpace
) -> torch.Tensor:
    """The schedule of `fixed:place` over all blocks, so that it meets its means: remainders are carried from page to
    page and from block to block.

    Args:
        costs ([`PlaceCosts`]): Measured costs.
        means (`torch.Tensor` of shape `(axes,)`): Means to meet, in ratio units.
        counted (`torch.BoolTensor` of shape `(blocks, steps)`): Controllable steps; the others are dense.
        places (`torch.LongTensor` of shape `(blocks, steps)`): From [`places_of`].
        space ([`ActionSpace`]): The levels.

    Returns:
        `torch.LongTensor` of shape `(blocks, steps)`: Action ids.
    """
    chosen = torch.zeros(*counted.shape, len(space.axes), dtype=torch.long)
    for number, (axis, mean) in enumerate(zip(space.axes, means.tolist(), strict=True)):
        levels = torch.tensor(space.spent[axis.name], dtype=torch.float64) / axis.scale
        table = torch.tensor(costs.costs[axis.name], dtype=torch.float64)
        low, high, share = levels_by_place(table, levels, mean)
        for place in range(len(table)):
            own = counted & (places == place)
            half = half_between(low[place], high[place])[None]
            is_high = upper_turns(share[place][None], half, int(own.sum()))[:, 0]
            wanted = torch.where(is_high, high[place], low[place])
            chosen[..., number][own] = (levels - wanted[:, None]).abs().argmin(dim=1)
    schedule = torch.full(counted.shape, space.dense_id)
    schedule[counted] = space.ids_of(chosen)[counted]
    return schedule
