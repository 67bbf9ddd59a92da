# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Trains a policy with TRL's GRPO: blocks of text are the prompts, schedules of actions the completions.

Differences from [`~trl.GRPOTrainer`]: rollouts of a frozen base replace text generation; rewards and advantages are
those of [`rewards`] and of the [`constraint`], one per step; log-probabilities are computed by one forward of the
policy over a whole episode. Loss, clipping, entropy bonus, KL divergence, iterations, accumulation and logging are
those of TRL.
"""

import copy
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from datasets import Dataset, IterableDataset
from tokenizers import Tokenizer, models
from transformers import (
    AutoTokenizer,
    GenerationConfig,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    TrainerCallback,
)
from trl import GRPOTrainer
from trl.trainer.callbacks import SyncRefModelCallback

from ..budget.action_space import ActionSpace
from ..controllers.hard_budget import HardBudgetProcessor, within
from ..controllers.processors import ActionProcessorList, budget_processors
from ..episodes.block_runner import without_dropout
from ..episodes.rollouts import Rollouts, SampledPolicyController, prefill, roll_out
from ..episodes.step_settings import StepSettings
from ..episodes.text_blocks import pack_blocks
from ..modeling_sol import SOLForCausalLM
from .block_order import EndlessBlocks, EpochSampler, check_enough_blocks
from .checkpoints import AtomicCheckpoints
from .constraint import BudgetConstraint
from .grpo_config import SOLGRPOConfig
from .metrics import BudgetMetrics
from .rewards import (
    RewardTerm,
    checked_rewards,
    discounted_returns,
    group_advantages,
    outcome_returns,
    task_reward,
    whiten,
)
from .run_checks import check_controllable, check_evaluated_blocks, check_run
from .run_start import CheckedStart
from .sharding import place_base


OBSERVATIONS = ("hidden_states", "token_embeddings", "scalars", "previous_actions")


def action_tokenizer(space: ActionSpace) -> PreTrainedTokenizerBase:
    """The tokenizer of completions: one token per action, named by its tag, and one for the start of an episode."""
    vocabulary = {space.tag(action): action for action in range(len(space))} | {"<start>": len(space)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<start>"))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<start>", eos_token="<start>")


def _rewards_come_from_rollouts(completions: list, **kwargs) -> list[float]:
    """The reward function that TRL requires; [`SOLGRPOTrainer`] computes rewards per step instead."""
    raise RuntimeError("SOLGRPOTrainer computes its rewards from rollouts.")


class SOLGRPOTrainer(CheckedStart, AtomicCheckpoints, BudgetConstraint, BudgetMetrics, GRPOTrainer):
    """GRPO on teacher-forced episodes.

    Args:
        model ([`SOLForCausalLM`]): Its policy is trained; its base is frozen and not part of the trained module.
        args ([`SOLGRPOConfig`], *optional*): Defaults to the published recipe.
        train_dataset (`Dataset` or `IterableDataset`): Texts, or blocks of `context_length + episode_length + 1`
            token ids in a column `input_ids`.
        eval_dataset (`Dataset`, `IterableDataset` or a `dict` of them, *optional*): Texts or blocks for evaluation.
        processing_class (`PreTrainedTokenizerBase`, *optional*): Tokenizer of the base, for datasets of texts.
        reward_terms (`list` of functions, *optional*): Each takes the [`Rollouts`] and returns rewards
            `(rows, steps)`, which are added to the others.
        callbacks (`list[TrainerCallback]`, *optional*): As in `Trainer`.
        optimizers (`tuple`, *optional*): As in `Trainer`.
        peft_config (`PeftConfig`, *optional*): Train an adapter on the policy instead of the policy.
        prices (`Mapping[str, list]`, *optional*): What the multipliers of `constraint="multiplier"` begin with, see
            [`Multipliers.begin_with`]; 0 by default. A [`CounterfactualWarmup`] has them.
    """

    _tag_names = ["trl", "grpo", "sol"]
    _name = "SOL-GRPO"

    def __init__(
        self,
        model: SOLForCausalLM,
        args: SOLGRPOConfig | None = None,
        train_dataset: Dataset | IterableDataset | None = None,
        eval_dataset: Dataset | IterableDataset | dict[str, Dataset | IterableDataset] | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        reward_terms: Sequence[RewardTerm] = (),
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple = (None, None),
        peft_config: Any = None,
        prices: Mapping[str, Sequence[Sequence[float]]] | None = None,
    ):
        if not isinstance(model, SOLForCausalLM):
            raise TypeError(f"`model` must be a SOLForCausalLM, got {type(model).__name__}: see `from_base`.")
        args = args if args is not None else SOLGRPOConfig("sol-policy")
        if train_dataset is None:
            raise ValueError("`train_dataset` is required: texts, or blocks of token ids in a column `input_ids`.")
        self.sol, self.reward_terms, self.args = model, list(reward_terms), args
        self.episode_length = model.config.episode_length
        self._text_tokenizer = getattr(processing_class, "tokenizer", processing_class)  # that of a processor
        check_run(args, self.evaluation_budgets(), train_dataset, eval_dataset)
        settings = StepSettings.of(model)
        settings.prepare(model, settings.free_axes)
        check_controllable(model.config.selection_rule, args.context_length + self.episode_length)
        model.config.selection_rule.refuse_short_text(args.context_length)
        self._set_multipliers(prices)
        train_blocks, eval_blocks = self._packed(train_dataset), self._packed(eval_dataset, documents=True)
        check_enough_blocks(train_blocks, args.generation_batch_size // args.num_generations)
        check_evaluated_blocks(eval_blocks)
        model.base.requires_grad_(False)
        model.policy.value_head.requires_grad_(False)  # not part of the loss, and DDP waits for all gradients
        with self._as_language_model(model.policy), self._without_reference(args):
            super().__init__(
                model=model.policy,
                reward_funcs=_rewards_come_from_rollouts,
                args=args,
                train_dataset=train_blocks,
                eval_dataset=eval_blocks,
                processing_class=action_tokenizer(model.action_space),
                callbacks=callbacks,
                optimizers=optimizers,
                peft_config=peft_config,
            )
        if not any(weight.requires_grad for weight in self.model.parameters()):
            raise ValueError(
                "Nothing of the policy can be trained, all of its weights are frozen: give a `peft_config`, or load "
                "an adapter with `PeftModel.from_pretrained(model.policy, folder, is_trainable=True)`."
            )
        self.processing_class = None  # the tokenizer of actions is not saved
        self.sol.policy = self.model
        place_base(self.sol.base, self.accelerator, shard=args.shard_base)
        self._set_reference()
        self._show_progress()

    @contextmanager
    def _as_language_model(self, policy):
        """Give the policy the attributes that TRL expects of a language model, and remove them afterwards."""
        policy = policy.get_base_model() if hasattr(policy, "get_base_model") else policy
        config = copy.deepcopy(policy.config)
        policy.generation_config = GenerationConfig()
        yield
        policy.generation_config, policy.config = None, config
        policy.__dict__.pop("forward", None)  # the fused LM head

    @contextmanager
    def _without_reference(self, args: SOLGRPOConfig):
        """Arguments with which TRL makes no reference policy, and takes an episode for a completion."""
        own = {"beta": 0.0, "sync_ref_model": False, "max_completion_length": self.episode_length}
        given = {name: getattr(args, name) for name in own}
        try:
            args.__dict__.update(own)
            yield
        finally:
            args.__dict__.update(given)

    def _set_reference(self) -> None:
        """Keep a copy of the policy as it is now, with its adapter if it has one."""
        self.beta = self.args.beta
        if self.beta:
            reference = copy.deepcopy(self.model).requires_grad_(False)
            self.ref_model = self.accelerator.prepare_model(reference, evaluation_mode=True)
            if self.args.sync_ref_model:
                self.add_callback(SyncRefModelCallback(ref_model=self.ref_model, accelerator=self.accelerator))

    def _packed(self, dataset, documents: bool = False):
        """Cut texts into blocks, for an evaluation with `documents`; blocks are returned unchanged.

        Accepts a dictionary of datasets and `None`, too.
        """
        if dataset is None or isinstance(dataset, dict):
            return dataset and {name: self._packed(part, documents) for name, part in dataset.items()}
        column, episodes = self.args.text_column, self.args.eval_episodes if documents else 1
        if self._text_tokenizer is None and column in (dataset.column_names or next(iter(dataset), {})):
            self._text_tokenizer = self._tokenizer_of_base()
        return pack_blocks(
            dataset,
            self._text_tokenizer,
            self.args.context_length + episodes * self.episode_length + 1,
            text_column=column,
            max_positions=self.sol.config.base_max_position_embeddings,
            documents=documents,
        )

    def _tokenizer_of_base(self) -> PreTrainedTokenizerBase:
        name = self.sol.base.config.name_or_path
        try:
            if not name:
                raise ValueError("the base has no name")
            return AutoTokenizer.from_pretrained(name, trust_remote_code=self.args.trust_remote_code)
        except (OSError, ValueError) as error:
            raise ValueError(
                "A dataset of texts needs the tokenizer of the base as `processing_class`: none was given, and none "
                f"was found with the base ({error}). Blocks of token ids in a column `input_ids` need none."
            ) from error

    def get_train_dataloader(self):
        """As in TRL. Differences: the order of every epoch is known from its number, and a stream has no end."""
        if isinstance(self.train_dataset, Dataset):
            return super().get_train_dataloader()
        return self._get_dataloader(
            dataset=EndlessBlocks(self.train_dataset, **self._order()),
            description="Training",
            batch_size=self._train_batch_size * self.args.steps_per_generation,
            is_training=True,
        )

    def _get_train_sampler(self, dataset=None):
        return EpochSampler(len(self.train_dataset), **self._order())

    def _order(self) -> dict[str, Any]:
        return {
            "blocks": self.args.generation_batch_size // self.num_generations,
            "generations": self.num_generations,
            "repeats": self._steps_per_batch(),
            "seed": self.args.seed if self.shuffle_dataset else None,
        }

    def _set_signature_columns_if_needed(self):
        self._signature_columns = ["input_ids"]

    def _generator(self, *place: int) -> torch.Generator:
        """A generator seeded by the seed and a position in the run, independent of the number of processes."""
        seed = self.args.seed
        for number in place:
            seed = (seed * 1_000_003 + number + 1) % (2**62)
        return torch.Generator().manual_seed(seed)

    def _draw_budget(self, generator: torch.Generator) -> torch.Tensor:
        """A budget `(axes,)` in ratio units."""
        drawn = []
        for axis in self.sol.action_space.axes:
            share = float(torch.rand((), generator=generator))
            drawn.append(self.args.draw_budget(axis, share) / axis.scale)
        return torch.tensor(drawn)

    def roll_out(self, blocks: torch.Tensor, first_block: int, generation: int) -> Rollouts:
        """Run `num_generations` rollouts of every block, at one budget a block.

        Under a hard budget over the generation they all begin with the same bank, drawn from those with which the
        episodes of long texts begin: a rollout is one episode, but a policy has to know all of them.

        Args:
            blocks (`torch.LongTensor` of shape `(blocks, context + steps + 1)`): Token ids.
            first_block (`int`): Index of the first block in the batch of all processes.
            generation (`int`): Index of the batch in the run.
        """
        args, device, repeats = self.args, self.accelerator.device, self.num_generations
        at_once, parts = args.rollout_batch_size // repeats, []
        policy = self.accelerator.unwrap_model(self.model)
        with without_dropout(policy):  # an action depends on its own row only
            for begin in range(0, len(blocks), at_once):
                chunk = blocks[begin : begin + at_once].to(device)
                budgets, uniforms, balances = [], [], []
                for block in range(first_block + begin, first_block + begin + len(chunk)):
                    budgets.append(self._draw_budget(self._generator(0, generation, block)))
                    draw = self._generator(1, generation, block)
                    uniforms.append(torch.rand(repeats, self.episode_length, generator=draw))
                    balances.append(self._draw_balance(budgets[-1], self._generator(2, generation, block)))
                targets = torch.stack(budgets).repeat_interleave(repeats, dim=0).to(device)
                drawn = [x for x in balances if x is not None]
                balance = torch.stack(drawn).repeat_interleave(repeats, dim=0).to(device) if drawn else None
                limits = budget_processors((), args.budget_mode == "hard", args.budget_horizon)
                limit = next((x for x in limits if isinstance(x, HardBudgetProcessor)), None)
                sampler = SampledPolicyController(policy, torch.cat(uniforms).to(device), self.temperature, limit)
                prefix = prefill(self.sol, chunk, args.context_length, dense=args.kl_reward_weight > 0)
                parts.append(roll_out(self.sol, prefix, chunk, targets, sampler, ActionProcessorList(limits), balance))
        return Rollouts.concatenate(parts)

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        repeats = self.num_generations
        blocks = torch.tensor([example["input_ids"] for example in inputs[::repeats]])
        generation = self._step // self._steps_per_batch()
        rollouts = self.roll_out(blocks, self.accelerator.process_index * len(blocks), generation)
        mask = rollouts.controllable.long()
        empty = mask.new_zeros(len(mask), 0)
        output = {
            "prompt_ids": empty,
            "prompt_mask": empty,
            "completion_ids": rollouts.actions,
            "completion_mask": mask,
            "num_items_in_batch": self.accelerator.reduce(mask.sum(), reduction="sum"),
            **{name: getattr(rollouts, name) for name in OBSERVATIONS},
        }
        if rollouts.bounds is not None:
            output["bounds"] = rollouts.bounds
        output["advantages"] = self._advantages(rollouts, output)
        if self.args.gradient_accumulation_steps % self._steps_per_batch():  # an update may lie before the last loss
            output["old_per_token_logps"] = rollouts.action_logprobs
        if self.beta:
            with torch.no_grad():
                output["ref_per_token_logps"] = self._score_actions(self.ref_model, output)[0]
        return output

    def _advantages(self, rollouts: Rollouts, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """Advantages `(rows, steps)` of this process's rollouts, normalized over those of all processes."""
        args = self.args
        rewards = task_reward(rollouts.label_logprobs, rollouts.divergence, args.kl_reward_weight)
        for term in self.reward_terms:
            rewards = rewards + checked_rewards(term, rollouts)
        costs = self._constraint_costs(rollouts)
        if args.advantage_level == "process":
            task = discounted_returns(rewards, args.gamma, args.return_kind)
        else:
            task = outcome_returns(rewards)
        constraint = self._constraint_returns(costs)
        advantages = group_advantages(task + constraint, self.num_generations, args.advantage_scale)
        self._log_rollouts(rollouts, rewards, costs.sum(dim=1))
        self._log_cosine(inputs, task, constraint)
        self._ascend(rollouts)
        if not args.whiten_advantages:
            return advantages
        begin = self.accelerator.process_index * len(advantages)
        return whiten(self.accelerator.gather(advantages))[begin : begin + len(advantages)]

    def _score_actions(self, model, inputs: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-probabilities of the actions and entropies, `(rows, steps)` each, at the training temperature.

        Under a hard budget they are those among the actions that it allowed, of which the rollouts drew.
        """
        with self.accelerator.autocast():
            logits = model(**{name: inputs[name] for name in OBSERVATIONS}).logits
        scores, allowed = logits.float() / self.temperature, None
        if "bounds" in inputs:
            allowed = within(inputs["bounds"].unbind(dim=2), StepSettings.of(self.sol).space)
            scores = scores.masked_fill(~allowed, float("-inf"))
        logprobs = scores.log_softmax(dim=-1)
        chosen = logprobs.gather(-1, inputs["completion_ids"][..., None]).squeeze(-1)
        known = logprobs if allowed is None else logprobs.masked_fill(~allowed, 0.0)
        return chosen, -(logprobs.exp() * known).sum(dim=-1)

    def _compute_loss(self, model, inputs):
        self._scored_inputs = inputs
        try:
            return super()._compute_loss(model, inputs)
        finally:
            del self._scored_inputs

    def _get_per_token_logps_and_entropies(self, model, *args, **kwargs):
        """Score the actions of whole episodes from observations. TRL's ids and masks belong to actions."""
        return *self._score_actions(model, self._scored_inputs), None
