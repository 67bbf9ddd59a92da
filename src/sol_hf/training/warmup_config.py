# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Settings of [`CounterfactualWarmup`]."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from ..budget.axes import AXES, PUBLISHED_AXES
from ..budget.bank import BUDGET_MODES, HORIZONS
from ..episodes.counterfactuals import levels_to_probe


PUBLISHED_NAMES = tuple(axis.name for axis in PUBLISHED_AXES)
PROBES_PER_AXIS = 4
PASSES = 10
"""How often the measured steps are drawn by default."""
FEWEST_UPDATES, MOST_UPDATES = 100, 1500
MOST_PRACTICE_EPISODES = 512


@dataclass
class CounterfactualWarmupConfig:
    """
    Settings of the measurements, and of the fit of the policy to them.

    Args:
        warmup_dir (`str`, *optional*): Folder of the measurements. `None` for no warmup.
        warmup_blocks (`int`, *optional*, defaults to 1000): Blocks of text to measure.
        warmup_context_length (`int`, *optional*, defaults to 192): Tokens of a block before the first step.
        warmup_steps_per_block (`int`, *optional*, defaults to 128): Steps of a block.
        warmup_token_keep (`list[float]`, *optional*): Levels of `token_keep` to measure.
        warmup_mlp_keep (`list[float]`, *optional*): Levels of `mlp_keep` to measure.
        warmup_bits (`list[float]`, *optional*): Levels of `bits` to measure.
        warmup_axis_levels (`dict[str, list[float]]`, *optional*): Levels of further axes to measure, by name; by
            default up to four of each.
        warmup_batch_size (`int`, *optional*, defaults to 4): Blocks that are measured at the same time.
        warmup_cost_models (`int`, *optional*, defaults to 4): Number of cost models, at least 2. Each estimates the
            costs of an equal share of the blocks, and is fitted to all others.
        warmup_updates (`int`, *optional*): Updates of the policy. By default as many as the measured steps are worth:
            they are drawn ten times, in 100 to 1500 updates. With 0 the policy stays as it is, and only the prices
            of compute are found, with which multipliers begin: for GRPO on a policy that was made before.
        warmup_episodes (`int`, *optional*, defaults to 64): Episodes of an update.
        warmup_learning_rate (`float`, *optional*, defaults to 7e-4): Largest learning rate.
        warmup_repayment_spread (`float`, *optional*, defaults to 3.0): Initial spread of the budget prior.
        warmup_practice_rounds (`int`, *optional*, defaults to 4): Rounds of on-policy episodes, whose observations and
            spent compute are used in the fit.
        warmup_practice_episodes (`int`, *optional*): Episodes of a round. By default four per block, 512 at most.
        warmup_budget_mode (`str`, *optional*, defaults to `"hard"`): How the budgets are kept for which the policy is
            fitted, `"hard"` or `"soft"`, as in `generate`.
        warmup_budget_horizon (`str`, *optional*, defaults to `"generation"`): Over what hard budgets are kept,
            `"generation"` or `"episode"`, as in `generate`.
        warmup_save_every (`int`, *optional*, defaults to 0): Updates between saved copies of the policy in the
            folder, named `update-00100` and so on; 0 for none.
        warmup_seed (`int`, *optional*, defaults to 0): Seed of measurements and fit.
    """

    warmup_dir: str | None = field(default=None, metadata={"help": "Folder of measurements; no warmup without one."})
    warmup_blocks: int = field(default=1000, metadata={"help": "Blocks of text to measure."})
    warmup_context_length: int = field(default=192, metadata={"help": "Tokens before the first step of a block."})
    warmup_steps_per_block: int = field(default=128, metadata={"help": "Steps of a block."})
    warmup_token_keep: list[float] = field(default_factory=lambda: [0.1, 0.2, 0.4, 0.7], metadata={"help": "Levels."})
    warmup_mlp_keep: list[float] = field(default_factory=lambda: [0.4, 0.5, 0.65], metadata={"help": "Levels."})
    warmup_bits: list[float] = field(default_factory=lambda: [5.0, 6.0], metadata={"help": "Levels."})
    warmup_axis_levels: dict[str, list[float]] | str | None = field(
        default=None, metadata={"help": "Levels of further axes, as a dictionary."}
    )
    warmup_batch_size: int = field(default=4, metadata={"help": "Blocks that are measured at the same time."})
    warmup_cost_models: int = field(default=4, metadata={"help": "Cost models, each for blocks it was not fitted to."})
    warmup_updates: int | None = field(
        default=None,
        metadata={"help": "Updates of the policy; by default as the measured steps are worth; 0: prices only."},
    )
    warmup_episodes: int = field(default=64, metadata={"help": "Episodes of an update."})
    warmup_learning_rate: float = field(default=7e-4, metadata={"help": "Largest learning rate."})
    warmup_repayment_spread: float = field(default=3.0, metadata={"help": "Initial spread of the budget prior."})
    warmup_practice_rounds: int = field(default=4, metadata={"help": "Rounds of on-policy episodes."})
    warmup_practice_episodes: int | None = field(
        default=None, metadata={"help": "Episodes of a round; by default four per block, 512 at most."}
    )
    warmup_budget_mode: str = field(default="hard", metadata={"help": "How budgets are kept: hard or soft."})
    warmup_budget_horizon: str = field(
        default=HORIZONS[0], metadata={"help": "Over what hard budgets are kept: generation or episode."}
    )
    warmup_save_every: int = field(default=0, metadata={"help": "Updates between kept copies of the policy; 0: none."})
    warmup_seed: int = field(default=0, metadata={"help": "Seed of measurements and fit."})

    def __post_init__(self):
        least = {f"warmup_{name}": 1 for name in ("episodes", "practice_episodes")}
        least |= {f"warmup_{name}": 0 for name in ("updates", "repayment_spread", "practice_rounds", "save_every")}
        least |= {"warmup_cost_models": 2, "warmup_blocks": self.warmup_cost_models}
        for name, smallest in least.items():
            if getattr(self, name) is not None and getattr(self, name) < smallest:
                raise ValueError(f"`{name}` must be at least {smallest}, got {getattr(self, name)}.")
        for name, allowed in (("warmup_budget_mode", BUDGET_MODES), ("warmup_budget_horizon", HORIZONS)):
            if getattr(self, name) not in allowed:
                raise ValueError(f"`{name}` must be one of {', '.join(allowed)}, got {getattr(self, name)!r}.")
        if isinstance(self.warmup_axis_levels, str):  # from a command line
            self.warmup_axis_levels = dict(json.loads(self.warmup_axis_levels))
        for axis in self.warmup_axis_levels or ():
            if axis not in AXES or axis in PUBLISHED_NAMES:
                raise ValueError(f"`warmup_axis_levels` names {axis!r}, which is no further axis.")

    def updates_for(self, blocks: int, episode_length: int) -> int:
        """Updates of the policy on measurements of `blocks` blocks."""
        if self.warmup_updates is not None:
            return self.warmup_updates
        steps = blocks * self.warmup_steps_per_block
        worth = math.ceil(PASSES * steps / (self.warmup_episodes * episode_length))
        return min(max(worth, FEWEST_UPDATES), MOST_UPDATES)

    def practice_episodes_for(self, blocks: int) -> int:
        """Episodes of an on-policy round on `blocks` blocks."""
        return self.warmup_practice_episodes or min(4 * blocks, MOST_PRACTICE_EPISODES)

    def levels_of(self, axis: str, levels: Sequence[float]) -> list[float]:
        """Levels of an axis to measure.

        Args:
            axis (`str`): Name of the axis.
            levels (`Sequence[float]`): All levels of the axis.
        """
        if axis in PUBLISHED_NAMES:
            return getattr(self, f"warmup_{axis}")
        named = self.warmup_axis_levels
        given = named.get(axis) if isinstance(named, dict) else None
        return levels_to_probe(levels, PROBES_PER_AXIS) if given is None else given
