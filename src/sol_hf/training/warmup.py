# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""A supervised start for a policy: the allocation that follows from measured costs, at every budget.

The costs of each level at each step are measured once and used for all budgets. [`CostModel`] estimates the mean cost
of a level given the inputs of a policy. [`Allocation`] computes the levels of least cost at a given mean. The policy
is trained to choose these levels from its observations and the budget. The targets do not compensate for earlier steps
of an episode that spent more than the budget: the budget is kept on average over many episodes, which allows for a
larger gain. With `budget_mode="hard"` it is kept in every episode.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from accelerate import PartialState
from safetensors.torch import load_file, save_file
from tqdm.auto import tqdm
from transformers.utils import logging

from ..budget.axes import AXES, PUBLISHED_AXES
from ..episodes.counterfactuals import Counterfactuals, Probes, levels_to_probe
from ..episodes.measurements import Measurements
from ..hub.recipe import recipe_of
from ..modeling_sol import SOLForCausalLM
from .warmup_targets import WarmupTargets, run_on_policy


FITTED, FITTED_SETTINGS = "policy.safetensors", "fit.json"
PUBLISHED_NAMES = tuple(axis.name for axis in PUBLISHED_AXES)
PROBES_PER_AXIS = 4
logger = logging.get_logger(__name__)


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
        warmup_updates (`int`, *optional*, defaults to 1500): Updates of the policy.
        warmup_episodes (`int`, *optional*, defaults to 64): Episodes of an update.
        warmup_learning_rate (`float`, *optional*, defaults to 7e-4): Largest learning rate.
        warmup_repayment_spread (`float`, *optional*, defaults to 3.0): Initial spread of the budget prior.
        warmup_practice_rounds (`int`, *optional*, defaults to 4): Rounds of on-policy episodes, whose observations and
            spent compute are used in the fit.
        warmup_practice_episodes (`int`, *optional*, defaults to 512): Episodes of a round.
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
    warmup_updates: int = field(default=1500, metadata={"help": "Updates of the policy."})
    warmup_episodes: int = field(default=64, metadata={"help": "Episodes of an update."})
    warmup_learning_rate: float = field(default=7e-4, metadata={"help": "Largest learning rate."})
    warmup_repayment_spread: float = field(default=3.0, metadata={"help": "Initial spread of the budget prior."})
    warmup_practice_rounds: int = field(default=4, metadata={"help": "Rounds of on-policy episodes."})
    warmup_practice_episodes: int = field(default=512, metadata={"help": "Episodes of a round."})
    warmup_save_every: int = field(default=0, metadata={"help": "Updates between kept copies of the policy; 0: none."})
    warmup_seed: int = field(default=0, metadata={"help": "Seed of measurements and fit."})

    def __post_init__(self):
        least = {f"warmup_{name}": 1 for name in ("updates", "episodes", "practice_episodes")}
        least |= {f"warmup_{name}": 0 for name in ("repayment_spread", "practice_rounds", "save_every")}
        least |= {"warmup_cost_models": 2, "warmup_blocks": self.warmup_cost_models}
        for name, smallest in least.items():
            if getattr(self, name) < smallest:
                raise ValueError(f"`{name}` must be at least {smallest}, got {getattr(self, name)}.")
        if isinstance(self.warmup_axis_levels, str):  # from a command line
            self.warmup_axis_levels = dict(json.loads(self.warmup_axis_levels))
        for axis in self.warmup_axis_levels or ():
            if axis not in AXES or axis in PUBLISHED_NAMES:
                raise ValueError(f"`warmup_axis_levels` names {axis!r}, which is no further axis.")

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


class CounterfactualWarmup:
    """Measures costs on text, and fits a policy to the allocation that follows from them.

    Args:
        model ([`SOLForCausalLM`]): Its policy, with `action_head="factored"` or `"joint"`, is fitted in place.
        config ([`CounterfactualWarmupConfig`]): The settings; `warmup_dir` is required.

    Raises:
        ValueError: without a folder, or if an episode is longer than the steps of a block.
    """

    def __init__(self, model: SOLForCausalLM, config: CounterfactualWarmupConfig):
        if config.warmup_dir is None:
            raise ValueError("`warmup_dir` is required: measurements are kept there.")
        if config.warmup_steps_per_block < model.config.episode_length:
            raise ValueError("`warmup_steps_per_block` must be at least the length of an episode.")
        self.model, self.config, self.folder = model, config, Path(config.warmup_dir)
        space = model.action_space
        self.probes = Probes.at(
            space, {axis: config.levels_of(axis, own) for axis, own in space.levels.items() if len(own) > 1}
        )

    @property
    def block_length(self) -> int:
        """Tokens of a block."""
        return self.config.warmup_context_length + self.config.warmup_steps_per_block + 1

    def run(self, blocks: torch.Tensor) -> None:
        """Fit the policy, or load it from the folder if it was fitted there with the same settings.

        Args:
            blocks (`torch.LongTensor` of shape `(blocks, block_length)`): Token ids.
        """
        state, settings = PartialState(), asdict(self.config) | {"policy": self._network()}
        settings.pop("warmup_dir")
        if settings["warmup_axis_levels"] is None:  # folders of earlier versions lack this setting
            settings.pop("warmup_axis_levels")
        store = Measurements(
            self.folder, self.config.warmup_context_length, self.probes, 10, self.config.warmup_batch_size
        )
        measured = store.collect(self.model, blocks)
        written = self.folder / FITTED_SETTINGS
        done = written.exists() and json.loads(written.read_text(encoding="utf-8")) == settings
        if not done and state.is_main_process:
            self.fit(measured, blocks)
            weights = {name: tensor.contiguous() for name, tensor in self.model.policy.state_dict().items()}
            written.unlink(missing_ok=True)
            save_file(weights, self.folder / FITTED)
            written.write_text(json.dumps(settings), encoding="utf-8")
        state.wait_for_everyone()
        self.model.policy.load_state_dict(load_file(self.folder / FITTED))
        self.model.training_recipe = {type(self).__name__: recipe_of(self.config, blocks=len(blocks))}

    def _network(self) -> dict:
        settings = self.model.config.to_dict()
        fields = {
            name: value
            for name, value in settings.items()
            if name.startswith(("policy_", "action_", "budget_", "observe_"))
        }
        return fields | {"levels": {axis: list(levels) for axis, levels in self.model.action_space.levels.items()}}

    def fit(self, measured: Counterfactuals, blocks: torch.Tensor) -> list[float]:
        """Fit the policy to measured costs of `blocks`; returns the loss of every update."""
        config, losses = self.config, []
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.warmup_seed)
            targets = WarmupTargets(
                self.model,
                measured,
                self.probes,
                config.warmup_context_length,
                config.warmup_episodes,
                config.warmup_cost_models,
            )
            policy = self.model.policy.float().train()
            if policy.budget_prior is not None:
                with torch.no_grad():
                    policy.budget_prior.repayment_spread.fill_(config.warmup_repayment_spread)
            optimizer, rounds = _optimizer(policy, config.warmup_learning_rate), self._on_policy_rounds()
            for update in tqdm(range(config.warmup_updates), desc="Fitting"):
                if update in rounds:
                    self._add_on_policy(targets, blocks)
                rate = min(1.0, (update + 1) / 50) * 0.5 * (1 + math.cos(math.pi * update / config.warmup_updates))
                for group in optimizer.param_groups:
                    group["lr"] = config.warmup_learning_rate * (rate + 0.02)
                loss = targets.loss(policy)
                optimizer.zero_grad()
                loss.backward()
                torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
                optimizer.step()
                losses.append(loss.item())
                if config.warmup_save_every and (update + 1) % config.warmup_save_every == 0:
                    self.model.save_pretrained(self.folder / f"update-{update + 1:05d}")
        policy.eval()
        return losses

    def _on_policy_rounds(self) -> set[int]:
        """The updates before which the policy runs episodes, distributed over the middle of the fit."""
        rounds, updates = self.config.warmup_practice_rounds, self.config.warmup_updates
        return {int(updates * (0.3 + 0.5 * number / rounds)) for number in range(rounds)}

    def _add_on_policy(self, targets: WarmupTargets, blocks: torch.Tensor) -> None:
        budgets = targets.draw_budgets(self.config.warmup_practice_episodes)
        episodes = run_on_policy(self.model, blocks, self.config.warmup_context_length, budgets)
        error = targets.add_on_policy(episodes)
        logger.info(f"Spent more than the budget: {', '.join(f'{x:+.3f}' for x in error.tolist())}.")
        self.model.policy.train()


def _optimizer(policy: torch.nn.Module, learning_rate: float) -> torch.optim.Optimizer:
    named = [(name, p) for name, p in policy.named_parameters() if "value_head" not in name and "spread" not in name]
    groups = [
        {"params": [p for _, p in named if p.dim() > 1], "weight_decay": 0.1},
        {"params": [p for _, p in named if p.dim() <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.98))


def warmup_blocks(packed, config: CounterfactualWarmupConfig, seed: int = 42) -> torch.Tensor:
    """The blocks to measure: `warmup_blocks` of a packed dataset, drawn without replacement.

    Args:
        packed (`Dataset`): Blocks in a column `input_ids`.
        config ([`CounterfactualWarmupConfig`]): The number of blocks.
        seed (`int`, *optional*, defaults to 42): Seed of the draw.

    Raises:
        ValueError: if the dataset has fewer blocks.
    """
    if len(packed) < config.warmup_blocks:
        raise ValueError(f"`warmup_blocks` is {config.warmup_blocks}, but the texts make {len(packed)} blocks only.")
    chosen: Sequence = packed.shuffle(seed=seed).select(range(config.warmup_blocks))["input_ids"]
    return torch.tensor(list(chosen))
