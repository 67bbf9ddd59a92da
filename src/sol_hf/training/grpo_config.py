# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Arguments of [`SOLGRPOTrainer`]: those of TRL, and further ones for episodes, rewards and budgets."""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields

import torch
from trl import GRPOConfig

from ..budget.axes import AXES, PUBLISHED_AXES, Axis
from ..budget.bank import BUDGET_MODES, HORIZONS
from .option_kinds import check_accelerator, check_options
from .rewards import ADVANTAGE_SCALES, RETURN_KINDS


ADVANTAGE_LEVELS = ("process", "outcome")
CONSTRAINTS = ("penalty", "multiplier")
SMALLER_IS_BETTER = ("loss", "perplexity", "error", "net_keep")
"""Ends of the names of metrics; of all others, a greater value is better."""
PUBLISHED_BUDGETS = {axis.name: f"{axis.name}_budgets" for axis in PUBLISHED_AXES}
"""The fields with the budgets of the published axes."""


@dataclass
class SOLGRPOConfig(GRPOConfig):
    r"""
    Configuration of [`SOLGRPOTrainer`]. The defaults are the published recipe.

    The parameters of [`~trl.GRPOConfig`] keep their meaning, with rollouts of actions instead of completions:
    `num_generations` are the rollouts of a block, `temperature` is that of the policy, `beta` weighs the KL divergence
    to the initial policy. An argument of TRL or transformers that does nothing here is refused, or named in a warning;
    [`option_kinds`] has them all. Of a `metric_for_best_model` it is known whether a greater value is better.

    Args:
        text_column (`str`, *optional*, defaults to `"text"`): Column of a dataset that holds the text.
        context_length (`int`, *optional*, defaults to 512): Tokens of a block that are processed densely.
        rollout_batch_size (`int`, *optional*, defaults to 32): Rollouts that run at the same time; a multiple of
            `num_generations`.
        return_kind (`str`, *optional*, defaults to `"sum"`): `"sum"` or `"max"`, see [`discounted_returns`].
        gamma (`float`, *optional*, defaults to 0.85): Discount of later rewards.
        advantage_level (`str`, *optional*, defaults to `"process"`): `"process"` for an advantage per step,
            `"outcome"` for one per rollout.
        advantage_scale (`str`, *optional*, defaults to `"center"`): `"center"` or `"zscore"` within a group.
        whiten_advantages (`bool`, *optional*, defaults to `True`): Normalize advantages over the whole batch.
        penalty_weights (`list[float]`, *optional*, defaults to 100, 100, 200): Weight of the squared budget error of
            `token_keep`, `mlp_keep` and `bits` (in ratio units). Further axes have the `penalty_weight` of their
            [`Axis`].
        penalty_tolerance (`float`, *optional*, defaults to 0.02): Budget error without penalty.
        kl_reward_weight (`float`, *optional*, defaults to 0.0): Share of -KL(dense ‖ sparse) in the reward; above 0,
            every block also runs densely.
        token_keep_budgets (`list[float]`, *optional*, defaults to 0.1, 1.0): Range from which budgets are drawn.
            From a list of more or fewer than two values, one of them is drawn.
        mlp_keep_budgets (`list[float]`, *optional*, defaults to 0.4, 1.0): As above.
        bits_budgets (`list[float]`, *optional*, defaults to 5, 16): As above, in bits.
        axis_budgets (`dict[str, list[float]]`, *optional*): The same for further axes, by name, in axis units. An axis
            that is not named has the `budget_range` of its [`Axis`].
        draw_from_list (`bool`, *optional*, defaults to `False`): Draw from the values of these lists instead of their
            range, for lists of any length.
        budget_mode (`str`, *optional*, defaults to `"soft"`): With `"hard"`, rollouts, loss and evaluation are under
            the limits that `generate` has in hard mode: actions are drawn from those that the budget allows. A penalty
            is then not needed: set `penalty_weights` to 0, 0, 0.
        budget_horizon (`str`, *optional*, defaults to `"generation"`): Over what a hard budget is kept. A rollout is
            one episode, which begins with a drawn bank, as the episodes of a long text do.
        constraint (`str`, *optional*, defaults to `"penalty"`): What makes rollouts spend what they are asked to.
            `"penalty"` for the squared error of each of them, `"multiplier"` for [`Multipliers`], which hold the mean
            over texts to it; `penalty_weights` and `penalty_tolerance` are then not used.
        multiplier_bins (`int`, *optional*, defaults to 4): Multipliers of an axis, over the range of its budgets.
        multiplier_rate (`float`, *optional*, defaults to 0.5): Change of a multiplier after a batch that spends 1 too
            much in its bin, in nats per step, both in ratio units.
        gradient_cosine_steps (`int`, *optional*, defaults to 0): Batches of rollouts between two measurements of
            `sol/gradient_cosine`, each of which takes as long as three forwards of the policy; 0 for none.
        eval_budgets (`list[list[float]]`, *optional*): Budgets to evaluate at, one number per axis; by default nine
            over the published grid, clipped to the levels of the action space.
        eval_blocks (`int`, *optional*, defaults to 64): Number of blocks of an evaluation, taken from the beginning
            of the evaluation dataset; at least 2.
        eval_episodes (`int`, *optional*, defaults to 1): Episodes of a block of an evaluation, with a KV refresh
            between them as in `generate`.
        eval_per_document (`int`, *optional*): Blocks of a document that an evaluation takes at most, so that errors
            over documents are of more of them; all by default.
        shard_base (`bool`, *optional*, defaults to `False`): Shard the base over the processes (FSDP2).
    """

    _VALID_DICT_FIELDS = [*GRPOConfig._VALID_DICT_FIELDS, "axis_budgets"]

    learning_rate: float = field(default=1e-4, metadata={"help": "Initial learning rate."})
    max_grad_norm: float = field(default=2.0, metadata={"help": "Largest gradient norm."})
    temperature: float = field(default=1.3, metadata={"help": "Temperature at which actions are drawn."})
    num_generations: int | None = field(default=16, metadata={"help": "Rollouts of every block."})
    per_device_train_batch_size: int = field(default=32, metadata={"help": "Rollouts per device and minibatch."})
    gradient_accumulation_steps: int = field(default=4, metadata={"help": "Minibatches of an update."})
    entropy_coef: float = field(default=0.05, metadata={"help": "Weight of the entropy bonus."})
    activation_checkpointing: bool | None = field(default=False, metadata={"help": "Not needed: the policy is small."})
    gradient_checkpointing: bool = field(default=False, metadata={"help": "Its name before transformers 5.23."})
    bf16: bool | None = field(default=False, metadata={"help": "Autocast the policy to bfloat16."})
    text_column: str = field(default="text", metadata={"help": "Column of a dataset that holds the text."})
    context_length: int = field(default=512, metadata={"help": "Tokens of a block that are processed densely."})
    rollout_batch_size: int = field(default=32, metadata={"help": "Rollouts that run at the same time."})
    return_kind: str = field(default="sum", metadata={"help": "How rewards become returns: sum or max."})
    gamma: float = field(default=0.85, metadata={"help": "Discount of later rewards."})
    advantage_level: str = field(default="process", metadata={"help": "process: per step; outcome: per rollout."})
    advantage_scale: str = field(default="center", metadata={"help": "Within a group: center or zscore."})
    whiten_advantages: bool = field(default=True, metadata={"help": "Normalize advantages over the batch."})
    penalty_weights: list[float] = field(
        default_factory=lambda: [100.0, 100.0, 200.0], metadata={"help": "Weights of the squared budget errors."}
    )
    penalty_tolerance: float = field(default=0.02, metadata={"help": "Budget error without penalty."})
    kl_reward_weight: float = field(default=0.0, metadata={"help": "Share of -KL(dense, sparse) in the reward."})
    token_keep_budgets: list[float] = field(
        default_factory=lambda: [0.1, 1.0], metadata={"help": "Range of the budgets of token_keep."}
    )
    mlp_keep_budgets: list[float] = field(
        default_factory=lambda: [0.4, 1.0], metadata={"help": "Range of the budgets of mlp_keep."}
    )
    bits_budgets: list[float] = field(
        default_factory=lambda: [5.0, 16.0], metadata={"help": "Range of the budgets of bits."}
    )
    axis_budgets: dict[str, list[float]] | str | None = field(
        default=None, metadata={"help": "Ranges of the budgets of further axes, as a dictionary."}
    )
    draw_from_list: bool = field(default=False, metadata={"help": "Draw budgets from the lists, not their range."})
    budget_mode: str = field(default="soft", metadata={"help": "soft, or hard: under the limits of hard budgets."})
    budget_horizon: str = field(default=HORIZONS[0], metadata={"help": "Of hard budgets: generation or episode."})
    constraint: str = field(default="penalty", metadata={"help": "What keeps budgets: penalty or multiplier."})
    multiplier_bins: int = field(default=4, metadata={"help": "Multipliers of an axis, by budget."})
    multiplier_rate: float = field(default=0.5, metadata={"help": "Change of a multiplier for an error of 1."})
    gradient_cosine_steps: int = field(
        default=0, metadata={"help": "Batches between comparisons of the gradients of reward and constraint; 0: none."}
    )
    eval_budgets: list[list[float]] | None = field(
        default=None, metadata={"help": "Budgets to evaluate at, as 0.5,0.7,8."}
    )
    eval_blocks: int = field(default=64, metadata={"help": "Blocks that an evaluation runs."})
    eval_episodes: int = field(default=1, metadata={"help": "Episodes of a block of an evaluation."})
    eval_per_document: int | None = field(default=None, metadata={"help": "Blocks of a document at most."})
    num_generations_eval: int | None = field(default=1, metadata={"help": "Must be 1: evaluation is greedy."})
    shard_base: bool = field(default=False, metadata={"help": "Shard the base over the processes (FSDP2)."})

    def __post_init__(self):
        check_options(self, {field.name: field for field in fields(GRPOConfig)})
        check_accelerator(self.accelerator_config)
        # without `use_cpu` accelerate does not connect processes on CPUs
        self.use_cpu: bool = self.use_cpu or not torch.accelerator.is_available()
        if self.fp16 and self.use_cpu:
            raise ValueError("`fp16` has no effect on a CPU: use `bf16=True`, or leave both out.")
        if self.metric_for_best_model is not None and self.greater_is_better is None:
            self.greater_is_better: bool | None = is_better_if_greater(self.metric_for_best_model)
        super().__post_init__()
        choices = {
            "return_kind": RETURN_KINDS,
            "advantage_level": ADVANTAGE_LEVELS,
            "advantage_scale": ADVANTAGE_SCALES,
            "budget_mode": BUDGET_MODES,
            "budget_horizon": HORIZONS,
            "constraint": CONSTRAINTS,
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"`{name}` must be one of {', '.join(allowed)}, got {getattr(self, name)!r}.")
        for name in ("gamma", "kl_reward_weight"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"`{name}` must lie in 0..1, got {getattr(self, name)}.")
        if self.penalty_tolerance < 0 or len(self.penalty_weights) != 3 or min(self.penalty_weights) < 0:
            raise ValueError("`penalty_weights` are three numbers of at least 0, `penalty_tolerance` at least 0.")
        least = {"multiplier_bins": 1, "multiplier_rate": 0, "gradient_cosine_steps": 0, "eval_episodes": 1}
        for name, smallest in least.items():
            if getattr(self, name) < smallest:
                raise ValueError(f"`{name}` must be at least {smallest}, got {getattr(self, name)}.")
        if self.eval_budgets is not None:
            self.eval_budgets = [numbers_of(budget) for budget in self.eval_budgets]
        if self.eval_blocks < 2:
            raise ValueError(f"`eval_blocks` must be at least 2, got {self.eval_blocks}.")
        if self.eval_per_document is not None and self.eval_per_document < 1:
            raise ValueError(f"`eval_per_document` must be at least 1, got {self.eval_per_document}.")
        if self.context_length < 1:
            raise ValueError(f"`context_length` must be at least 1, got {self.context_length}.")
        if self.num_generations is None or self.rollout_batch_size % self.num_generations:
            raise ValueError(
                f"`rollout_batch_size` ({self.rollout_batch_size}) must be a multiple of `num_generations` "
                f"({self.num_generations}): the rollouts of a block share its prefix."
            )
        self._check_axis_budgets()

    def _check_axis_budgets(self) -> None:
        lists = {field_name: getattr(self, field_name) for field_name in PUBLISHED_BUDGETS.values()}
        for name, values in self._further_budgets().items():
            if name in PUBLISHED_BUDGETS:
                raise ValueError(f"The budgets of `{name}` are those of `{PUBLISHED_BUDGETS[name]}`.")
            AXES[name].check_values(values)
            lists[f"axis_budgets[{name!r}]"] = values
        for name, values in lists.items():
            if not values or (not self.draw_from_list and (len(values) != 2 or values[0] > values[1])):
                raise ValueError(
                    f"`{name}` must be a range [low, high], or any list with `draw_from_list=True`, got {values}."
                )

    def _further_budgets(self) -> dict[str, list[float]]:
        given = self.axis_budgets or {}
        if not isinstance(given, dict):
            raise ValueError(f"`axis_budgets` must be a dictionary of lists by axis, got {given!r}.")
        return given

    def _budgets_of(self, axis: Axis) -> Sequence[float]:
        """The list of budgets of an axis, or the ends of their range, in axis units."""
        if axis.name in PUBLISHED_BUDGETS:
            return getattr(self, PUBLISHED_BUDGETS[axis.name])
        return self._further_budgets().get(axis.name, axis.budget_range)

    def budget_range(self, axis: Axis) -> tuple[float, float]:
        """The smallest and the largest budget of an axis that is drawn, in ratio units."""
        values = self._budgets_of(axis)
        return min(values) / axis.scale, max(values) / axis.scale

    def draw_budget(self, axis: Axis, share: float) -> float:
        """A budget of one axis, in axis units.

        Args:
            axis ([`Axis`]): The axis.
            share (`float`): A uniform random number in [0, 1).
        """
        values, is_given = self._budgets_of(axis), axis.name in {*PUBLISHED_BUDGETS, *self._further_budgets()}
        if is_given and self.draw_from_list:
            return values[int(share * len(values))]
        return values[0] + share * (values[1] - values[0])

    def penalty_weight(self, axis: Axis) -> float:
        """Weight of the squared budget error of an axis."""
        published = list(PUBLISHED_BUDGETS)
        return self.penalty_weights[published.index(axis.name)] if axis.name in published else axis.penalty_weight


def numbers_of(budget: Sequence[float] | Sequence[str]) -> list[float]:
    """The numbers of a budget; parsers of command lines make single characters of `0.5,0.7,8`.

    Raises:
        ValueError: if a text has anything but numbers and commas.
    """
    if not any(isinstance(value, str) for value in budget):
        return [*map(float, budget)]
    text = "".join(map(str, budget))
    try:
        return [float(value) for value in text.split(",")]
    except ValueError as error:
        raise ValueError(
            f"`eval_budgets` are numbers with commas between them, one per axis, such as 0.5,0.7,8, got {text!r}."
        ) from error


def is_better_if_greater(metric: str) -> bool:
    """Whether a greater value of a metric of an evaluation is the better one; `metric` may end with a budget."""
    return not metric.partition("/")[0].endswith(SMALLER_IS_BETTER)
