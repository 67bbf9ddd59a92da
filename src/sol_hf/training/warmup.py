# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""A supervised start for a policy: the allocation that follows from measured costs, at every budget.

The costs of each level at each step are measured once and used for all budgets. [`CostModel`] estimates the mean cost
of a level given the inputs of a policy. [`Allocation`] computes the levels of least cost at a given mean. The policy
is trained to choose these levels from its observations and the budget. So the start distils measured costs into the
policy; nothing of it is reinforcement learning. The targets do not compensate for earlier steps of an episode that
spent more than the budget: the budget is kept on average over many episodes, which allows for a larger gain. The
policy is fitted to what it sees where `generate` keeps the budget over the generation ([`BudgetStates`]): what an
episode is asked to spend follows the [`Bank`], and so do the levels that are allowed.

    folder/settings.json, measured-*     the measurements, which all processes share
           fit/                          the state of an unfinished fit; it continues where it was stopped
           policy.safetensors            the fitted policy, and in its notes the settings; fit.json has them to read
"""

import json
import math
import time
from contextlib import nullcontext
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from datasets import Dataset, IterableDataset
from tqdm.auto import tqdm
from transformers.utils import logging

from ..episodes.counterfactuals import Counterfactuals, Probes, distinct_levels
from ..episodes.measurements import Measurements
from ..episodes.step_settings import StepSettings
from ..episodes.stored_files import DamagedFileError, load_tensors, store_tensors, write_json
from ..hub.recipe import recipe_of
from ..modeling_sol import SOLForCausalLM
from ..stored.digests import sampled_digest, text_digest
from ..stored.folder_lock import folder_lock
from .budget_states import BudgetStates
from .warmup_config import CounterfactualWarmupConfig
from .warmup_progress import FitState
from .warmup_targets import WarmupTargets, run_on_policy


FITTED, FITTED_SETTINGS, SETTINGS_NOTE, PRICES_NOTE = "policy.safetensors", "fit.json", "settings", "prices"
BLOCKS_PER_PART = 10
SHUFFLED_BLOCKS = 4
"""Blocks of a stream among which one is drawn, per block that is measured."""
logger = logging.get_logger(__name__)


class CounterfactualWarmup:
    """Measures costs on text, and fits a policy to the allocation that follows from them.

    Args:
        model ([`SOLForCausalLM`]): Its policy, with `action_head="factored"` or `"joint"`, is fitted in place.
        config ([`CounterfactualWarmupConfig`]): The settings; `warmup_dir` is required.

    Raises:
        ValueError: without a folder, or if an episode is longer than the steps of a block.

    Attributes:
        prices (`dict[str, list]`, *optional*): After the fit, what one more unit of an axis is worth at some budgets,
            see [`WarmupTargets.prices`]. [`SOLGRPOTrainer`] may begin its multipliers with them.
    """

    def __init__(self, model: SOLForCausalLM, config: CounterfactualWarmupConfig):
        if config.warmup_dir is None:
            raise ValueError("`warmup_dir` is required: measurements are kept there.")
        if config.warmup_steps_per_block < model.config.episode_length:
            raise ValueError("`warmup_steps_per_block` must be at least the length of an episode.")
        self.model, self.config, self.folder = model, config, Path(config.warmup_dir)
        settings = StepSettings.of(model)
        settings.prepare(model, settings.free_axes)
        space = settings.space
        several = [name for name, own in space.levels.items() if len(own) > 1]
        levels = {name: config.levels_of(name, distinct_levels(space, name)) for name in several}
        self.probes = Probes.at(space, levels)
        for name, own in levels.items():
            if min(own, default=0) > min(space.levels[name]):
                logger.warning(
                    f"The smallest level of `{name}` that is measured is {min(own):g}, so what "
                    f"{min(space.levels[name]):g} costs is extrapolated: measure it, too, if budgets come near it."
                )
        hard = config.warmup_budget_mode == "hard"
        self.states = BudgetStates(space, model.config.episode_length, hard, config.warmup_budget_horizon)
        self.prices: dict[str, list[list[float]]] | None = None
        self.begun = sampled_digest(model.policy)
        self.base_print: str | None = None
        self.store = Measurements(
            self.folder,
            config.warmup_context_length,
            self.probes,
            BLOCKS_PER_PART,
            config.warmup_batch_size,
            config.warmup_seed,
        )

    @property
    def block_length(self) -> int:
        """Tokens of a block."""
        return self.config.warmup_context_length + self.config.warmup_steps_per_block + 1

    def run(self, blocks: torch.Tensor) -> None:
        """Fit the policy, or load it from the folder if it was fitted there with the same settings.

        The base is measured, and the policy fitted, on the device of this process (that of `accelerate`), unless the
        base was put on another one, or on several. The main process fits the policy; the others wait for its file.

        Args:
            blocks (`torch.LongTensor` of shape `(blocks, block_length)`): Token ids, the same in every process.

        Raises:
            ValueError: if the folder belongs to something else or is in use, or blocks have another length.
        """
        if blocks.dim() != 2 or blocks.shape[1] != self.block_length:
            raise ValueError(f"Blocks have {self.block_length} tokens each, got {tuple(blocks.shape)}.")
        state, settings = PartialState(), self._settings(blocks)
        with folder_lock(self.folder) if state.is_main_process else nullcontext():
            state.wait_for_everyone()
            if not self._load_fitted(settings):
                self._place(state.device)
                self._measure_and_fit(blocks, settings)
            state.wait_for_everyone()
        self.model.training_recipe = {type(self).__name__: recipe_of(self.config, blocks=len(blocks))}

    def is_fitted(self, blocks: torch.Tensor) -> bool:
        """Whether the folder has the policy that these settings and blocks give."""
        return self._read_fitted(self._settings(blocks)) is not None

    def _measure_and_fit(self, blocks: torch.Tensor, settings: dict[str, Any]) -> None:
        state, path = PartialState(), self.folder / FITTED
        if state.is_main_process:
            path.unlink(missing_ok=True)
        self.store.fill(self.model, blocks)
        if state.is_main_process:
            self.fit(self.store.load(blocks), blocks)
            notes = {SETTINGS_NOTE: json.dumps(settings, sort_keys=True), PRICES_NOTE: json.dumps(self.prices)}
            write_json(self.folder / FITTED_SETTINGS, settings)
            store_tensors(path, self.model.policy.state_dict(), notes)
            FitState(self.folder, settings).remove()
        else:
            while not path.exists():  # a barrier would end after some minutes, which a fit may take
                time.sleep(0.5)
        if not self._load_fitted(settings):
            raise ValueError(f"{path} is not what the main process fitted: use one folder for all processes.")

    def _read_fitted(self, settings: dict[str, Any]) -> tuple[dict[str, torch.Tensor], dict[str, str]] | None:
        """Weights and notes of the fitted policy, if there is one with these settings."""
        path = self.folder / FITTED
        if not path.exists():
            return None
        try:
            weights, notes = load_tensors(path, "the policy is fitted again")
        except DamagedFileError as error:
            logger.warning(str(error))
            return None
        is_wanted = notes.get(SETTINGS_NOTE) == json.dumps(settings, sort_keys=True) and PRICES_NOTE in notes
        return (weights, notes) if is_wanted else None

    def _load_fitted(self, settings: dict[str, Any]) -> bool:
        found = self._read_fitted(settings)
        if found is None:
            return False
        weights, notes = found
        self.model.policy.load_state_dict(weights)
        self.prices = json.loads(notes[PRICES_NOTE])
        return True

    def _place(self, device: torch.device) -> None:
        """Move base and policy to the device of this process, or the policy to where the base is already."""
        base = self.model.base
        if base.device.type == "cpu" and device.type != "cpu" and getattr(base, "hf_device_map", None) is None:
            base.to(device)
        self.model.policy.to(self.model.device)

    def _settings(self, blocks: torch.Tensor) -> dict[str, Any]:
        """All that the fitted policy depends on."""
        config = asdict(self.config)
        for name in ("warmup_dir", "warmup_save_every", "warmup_batch_size"):
            config.pop(name)
        if config["warmup_axis_levels"] is None:
            config.pop("warmup_axis_levels")
        config |= {
            "warmup_updates": self.config.updates_for(len(blocks), self.model.config.episode_length),
            "warmup_practice_episodes": self.config.practice_episodes_for(len(blocks)),
        }
        if self.base_print is None:
            self.base_print = sampled_digest(self.model.base)
        before = {
            "base": self.base_print,
            "dtype": str(self.model.base.dtype),
            "policy_before": self.begun,
        }
        before |= StepSettings.of(self.model).unusual
        return config | before | {"text": text_digest(blocks), "policy": self._network()}

    def _network(self) -> dict:
        settings = self.model.config.to_dict()
        kinds = ("episode_length", "policy_", "action_", "budget_", "observe_")
        fields = {name: value for name, value in settings.items() if name.startswith(kinds)}
        fields |= asdict(self.model.config.selection_rule)
        return fields | {"levels": {axis: list(levels) for axis, levels in self.model.action_space.levels.items()}}

    def fit(self, measured: Counterfactuals, blocks: torch.Tensor) -> list[float]:
        """Fit the policy to measured costs of `blocks`; returns the loss of every update.

        A fit that was stopped continues with the next update, and ends with the same policy.

        Raises:
            ValueError: if the loss is not a finite number.
        """
        config, model = self.config, self.model
        updates = config.updates_for(len(blocks), model.config.episode_length)
        stored = FitState(self.folder, self._settings(blocks))
        policy = model.policy.float().train()
        with torch.random.fork_rng(devices=[policy.device] if policy.device.type == "cuda" else []):
            torch.manual_seed(config.warmup_seed)
            targets = WarmupTargets(
                model,
                measured,
                self.probes,
                config.warmup_context_length,
                config.warmup_episodes,
                config.warmup_cost_models,
                stored,
                self.states,
            )
            self.prices = targets.prices()
            if updates and policy.budget_prior is not None:
                with torch.no_grad():
                    policy.budget_prior.repayment_spread.fill_(config.warmup_repayment_spread)
            optimizer = _optimizer(policy, config.warmup_learning_rate)
            losses = stored.load(policy, optimizer, targets)
            bar = tqdm(range(len(losses), updates), desc="Fitting", initial=len(losses), total=updates)
            for update in bar:
                losses.append(self._update(update, updates, optimizer, targets, blocks))
                bar.set_postfix(loss=f"{losses[-1]:.3f}", refresh=False)
                stored.save_sometimes(losses, policy, optimizer, targets)
        policy.eval()
        return losses

    def _update(
        self,
        update: int,
        updates: int,
        optimizer: torch.optim.Optimizer,
        targets: WarmupTargets,
        blocks: torch.Tensor,
    ) -> float:
        """One update of the policy, after on-policy episodes if it is time for them; returns the loss."""
        config, policy = self.config, self.model.policy
        if update in self._on_policy_rounds(updates):
            self._add_on_policy(targets, blocks)
        rate = min(1.0, (update + 1) / 50) * 0.5 * (1 + math.cos(math.pi * update / updates))
        for group in optimizer.param_groups:
            group["lr"] = config.warmup_learning_rate * (rate + 0.02)
        loss = targets.loss(policy)
        if not bool(loss.isfinite()):
            raise ValueError(f"The loss of update {update + 1} is {loss.item()}: lower `warmup_learning_rate`.")
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimizer.step()
        if config.warmup_save_every and (update + 1) % config.warmup_save_every == 0:
            self.model.save_pretrained(self.folder / f"update-{update + 1:05d}")
        return loss.item()

    def _on_policy_rounds(self, updates: int) -> set[int]:
        """The updates before which the policy runs episodes, distributed over the middle of the fit."""
        rounds = self.config.warmup_practice_rounds
        return {int(updates * (0.3 + 0.5 * number / rounds)) for number in range(rounds)}

    def _add_on_policy(self, targets: WarmupTargets, blocks: torch.Tensor) -> None:
        budgets = targets.draw_budgets(self.config.practice_episodes_for(len(blocks)))
        episodes = run_on_policy(self.model, blocks, self.config.warmup_context_length, budgets, self.states)
        error = targets.add_on_policy(episodes)
        missed = zip(self.model.action_space.axis_names, error.tolist(), strict=True)
        tqdm.write("On-policy episodes spent " + ", ".join(f"{x:+.3f} of {axis}" for axis, x in missed))
        self.model.policy.train()


def _optimizer(policy: torch.nn.Module, learning_rate: float) -> torch.optim.Optimizer:
    named = [(name, p) for name, p in policy.named_parameters() if "value_head" not in name and "spread" not in name]
    groups = [
        {"params": [p for _, p in named if p.dim() > 1], "weight_decay": 0.1},
        {"params": [p for _, p in named if p.dim() <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.98))


def warmup_blocks(
    packed: Dataset | IterableDataset, config: CounterfactualWarmupConfig, seed: int = 42
) -> torch.Tensor:
    """The blocks to measure: `warmup_blocks` of a packed dataset, drawn without replacement.

    Args:
        packed (`Dataset` or `IterableDataset`): Blocks in a column `input_ids`. Of a stream as much is read as is
            needed to draw from four times as many blocks.
        config ([`CounterfactualWarmupConfig`]): The number of blocks.
        seed (`int`, *optional*, defaults to 42): Seed of the draw.

    Raises:
        ValueError: if the dataset has fewer blocks.
    """
    number = config.warmup_blocks
    if isinstance(packed, IterableDataset):
        shuffled = packed.shuffle(seed=seed, buffer_size=SHUFFLED_BLOCKS * number)
        chosen = [row["input_ids"] for row in islice(shuffled, number)]
    else:
        chosen = list(packed.shuffle(seed=seed).select(range(min(number, len(packed))))["input_ids"])
    if len(chosen) < number:
        raise ValueError(
            f"`warmup_blocks` is {number}, but the texts make {len(chosen)} blocks only: give more text, or "
            f"`warmup_blocks` {len(chosen)}."
        )
    return torch.tensor(chosen)
