# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Controllers score the actions of a decode step; the learned policy is one of them, every baseline another.

A controller has one method to write, [`Controller.__call__`]. What it remembers within an episode goes into
`observation.state`, which lives in the cache and follows its rows wherever the generation loop moves them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from transformers import DynamicCache

from .actions import AXES, ActionSpace
from .ledger import BudgetLedger
from .modeling_sol_policy import SOLPolicyModel
from .policy_heads import TIE_MARGIN


@dataclass(frozen=True)
class Observation:
    """What is known before a decode step.

    Args:
        hidden_state (`torch.Tensor` of shape `(rows, hidden_size)`): The LM's last hidden state, after the final norm.
        token_embedding (`torch.Tensor` of shape `(rows, embedding_size)`): Input embedding of the token to process.
        previous_action (`torch.LongTensor` of shape `(rows,)`): `n_actions` at the start of an episode.
        controllable (`torch.BoolTensor` of shape `(rows,)`): Whether the row's choice will be obeyed and counted.
        remaining (`torch.Tensor` of shape `(rows,)`): Controllable steps left in the episode, this one included.
        step (`int`): Index of the step within its episode.
        total_step (`int`): Index of the step within the generation.
        episode_length (`int`): Steps in an episode.
        targets (`torch.Tensor` of shape `(rows, 3)`, *optional*): The budget in ratio units.
        ledger ([`BudgetLedger`]): What has been spent.
        action_space ([`ActionSpace`]): Meaning of the action ids.
        state (`dict[str, Any]`): What the controller remembers within the episode.
        page_fill (`torch.Tensor` of shape `(rows,)`): Share of its page that the token to process is going to fill.
        previous_hidden_state (`torch.Tensor` of shape `(rows, hidden_size)`, *optional*): The hidden state of one step
            before; `None` at the first step of an episode.
        previous_embedding (`torch.Tensor` of shape `(rows, embedding_size)`, *optional*): Input embedding of the token
            before the one to process; at the first step of an episode only, and `None` if there is no such token.
        logits_digest (`torch.Tensor` of shape `(rows, ...)`, *optional*): What [`Controller.digest_logits`] made of
            the logits that the last processed token led to; `None` for a controller without `needs_logits`.
    """

    hidden_state: torch.Tensor
    token_embedding: torch.Tensor
    previous_action: torch.Tensor
    controllable: torch.Tensor
    remaining: torch.Tensor
    step: int
    total_step: int
    episode_length: int
    targets: torch.Tensor | None
    ledger: BudgetLedger
    action_space: ActionSpace
    state: dict[str, Any]
    page_fill: torch.Tensor
    previous_hidden_state: torch.Tensor | None = None
    previous_embedding: torch.Tensor | None = None
    logits_digest: torch.Tensor | None = None

    @property
    def rows(self) -> int:
        """Number of rows."""
        return len(self.previous_action)

    @property
    def scalars(self) -> torch.Tensor:
        """What the policy is told in numbers: [`BudgetLedger.scalars`] and the page's fill, of shape `(rows, 9)`."""
        max_mlp_keep = max(self.action_space.levels["mlp_keep"])
        targets = self.require_targets()
        published = self.ledger.scalars(self.step, self.episode_length, self.controllable, targets, max_mlp_keep)
        return torch.cat([published, self.page_fill[:, None]], dim=-1)

    def require_targets(self) -> torch.Tensor:
        """The targets, or a ValueError that says that this controller needs a budget."""
        if self.targets is None:
            raise ValueError("This controller needs a budget: pass `token_keep`, `mlp_keep`, `bits` or `budget`.")
        return self.targets


class Controller:
    """Base class of everything that chooses actions.

    Class attributes:
        needs_budget (`bool`): Whether it needs targets.
        needs_logits (`bool`): Whether it wants to see the logits of the token before, see
            [`Controller.digest_logits`].

    Examples:

    ```python
    >>> import torch
    >>> from sol_hf import Controller
    >>> class Cheapest(Controller):
    ...     def __call__(self, observation):
    ...         cost = observation.action_space.ratios_on(observation.controllable.device).mean(dim=-1)
    ...         return -cost.expand(observation.rows, -1)
    ```
    """

    needs_budget = True
    needs_logits = False

    def __call__(self, observation: Observation) -> torch.Tensor:
        """Scores of all actions, of shape `(rows, n_actions)`; the highest allowed one is taken, or one is drawn."""
        raise NotImplementedError

    def digest_logits(self, logits: torch.Tensor) -> torch.Tensor:
        """What to keep of next-token logits `(rows, vocab)` for the next observation; called with `needs_logits` only.

        By default all of them. They are kept for every step of an episode, so keep what is needed: any shape that
        begins with the rows.
        """
        return logits


def closeness(wanted: torch.Tensor, space: ActionSpace) -> torch.Tensor:
    """Scores that rank actions by their distance to the wanted levels, 0 for an exact match.

    An action that a budget rules out thus falls back to its nearest neighbour.

    Args:
        wanted (`torch.Tensor` of shape `(rows, 3)`): Levels in ratio units.
        space ([`ActionSpace`]): The actions.

    Returns:
        `torch.Tensor` of shape `(rows, n_actions)`.
    """
    return -(space.ratios_on(wanted.device) - wanted[:, None]).abs().sum(dim=-1)


class PolicyController(Controller):
    """Lets a [`SOLPolicyModel`] choose.

    Args:
        policy ([`SOLPolicyModel`]): The policy network.
    """

    def __init__(self, policy: SOLPolicyModel):
        self.policy = policy

    def __call__(self, observation: Observation) -> torch.Tensor:
        if "cache" not in observation.state:
            observation.state["cache"] = DynamicCache()
        output = self.policy(
            hidden_states=observation.hidden_state[:, None],
            token_embeddings=observation.token_embedding[:, None],
            scalars=observation.scalars[:, None],
            previous_actions=observation.previous_action[:, None],
            past_key_values=observation.state["cache"],
        )
        return output.logits[:, -1].float()


class ScheduleController(Controller):
    """Plays a given schedule, whatever the model does.

    Args:
        actions (`torch.LongTensor` of shape `(steps, rows)`): Action ids. One column serves any number of rows.

    Raises:
        ValueError: when a generation has more steps or other rows than the schedule.
    """

    needs_budget = False

    def __init__(self, actions: torch.Tensor):
        actions = torch.as_tensor(actions)
        if actions.dim() != 2 or actions.is_floating_point():
            raise ValueError(f"A schedule has action ids of shape (steps, rows), got {tuple(actions.shape)}.")
        self.actions = actions.long()

    def __call__(self, observation: Observation) -> torch.Tensor:
        steps, rows = self.actions.shape
        if observation.total_step >= steps:
            raise ValueError(f"The schedule has {steps} steps, but step {observation.total_step + 1} was reached.")
        if rows not in (1, observation.rows):
            raise ValueError(f"The schedule has {rows} rows, but the input has {observation.rows}.")
        space = observation.action_space
        actions = self.actions[observation.total_step].to(observation.controllable.device)
        if observation.total_step == 0 and not bool(((self.actions >= 0) & (self.actions < len(space))).all()):
            raise ValueError(f"The schedule has action ids outside of 0..{len(space) - 1}.")
        scores = closeness(space.ratios_on(actions.device)[actions], space).expand(observation.rows, -1)
        chosen = actions.expand(observation.rows)[:, None]
        return scores.scatter(1, chosen, torch.ones_like(chosen, dtype=scores.dtype))


def neighbouring_levels(targets: torch.Tensor, space: ActionSpace) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Per axis the nearest levels at or below and at or above the target, and the share of the upper one.

    Args:
        targets (`torch.Tensor` of shape `(rows, 3)`): In ratio units.
        space ([`ActionSpace`]): The levels.

    Returns:
        Three `torch.Tensor` of shape `(rows, 3)`: lower level, upper level, and the share of upper levels that makes
        the mean meet the target.
    """
    lower, upper = [], []
    for column, target in zip(space.ratios_on(targets.device).unbind(-1), targets.unbind(-1), strict=True):
        levels = column.unique()
        last = torch.searchsorted(levels, target + 1e-6, right=True).clamp(1, len(levels)) - 1
        low = levels[last]
        lower.append(low)
        upper.append(torch.where(low >= target - 1e-6, low, levels[(last + 1).clamp(max=len(levels) - 1)]))
    low, high = torch.stack(lower, -1), torch.stack(upper, -1)
    share = ((targets - low) / (high - low).clamp(min=1e-6)).clamp(0, 1)
    return low, high, torch.where(high > low, torch.round(share, decimals=6), 0.0)


class FixedController(Controller):
    """The static schedule: the two levels next to each target, dealt round-robin over the rows.

    At every step an axis gives its upper level to as many rows as its share asks for, beginning at a row that moves on
    with the steps. On an axis in `carry` the remainder of that rounding is carried to the next step, so that the mean
    over rows and steps meets the target. The published baseline carries it on `mlp_keep` and `bits`, but rounds
    `token_keep` anew at every step.

    A row that is alone, or has a target of its own, deals to itself over time, and every axis carries.

    Args:
        carry (`Sequence[str]`, *optional*, defaults to `("mlp_keep", "bits")`): Axes that carry the remainder. All
            three make every axis meet its target.
    """

    def __init__(self, carry: Sequence[str] = ("mlp_keep", "bits")):
        unknown = set(carry) - set(AXES)
        if unknown:
            raise ValueError(f"`carry` names no axis: {sorted(unknown)}. The axes are {', '.join(AXES)}.")
        self.carry = tuple(axis in carry for axis in AXES)

    def __call__(self, observation: Observation) -> torch.Tensor:
        targets = observation.require_targets()
        low, high, share = neighbouring_levels(targets, observation.action_space)
        rows, step = observation.rows, observation.total_step
        half = 0.5 + TIE_MARGIN / (high - low).clamp(min=1e-6)  # ties go to the lower level, as in a `BudgetPrior`
        own_turn = torch.ceil(share * (step + 1) - half) > torch.ceil(share * step - half)

        total = share.sum(dim=0)
        carried = torch.tensor(self.carry, device=targets.device)
        dealt = torch.where(carried, torch.round(total * step), 0)
        hands = torch.where(carried, torch.round(total * (step + 1)) - dealt, torch.round(total))
        begin = torch.stack([torch.zeros_like(dealt[0]) + step, hands[0] + dealt[1], hands[0] + step])
        place = (torch.arange(rows, device=targets.device)[:, None] - begin) % rows
        shared_turn = place < hands

        shared = (targets == targets[0]).all() & (rows > 1)
        is_high = torch.where(shared, shared_turn, own_turn)
        return closeness(torch.where(is_high, high, low), observation.action_space)


def fixed_schedule(means: torch.Tensor, blocks: int, counted: torch.Tensor, space: ActionSpace) -> torch.Tensor:
    """The static schedule of `blocks` episodes: that of a lone row which plays them one after the other.

    Every axis alternates between the two levels next to its mean and carries the remainder from step to step and from
    block to block, so every episode is within a step of the means, and all of them together within half a step.

    Args:
        means (`torch.Tensor` of shape `(3,)`): Means to meet, in ratio units.
        blocks (`int`): Episodes.
        counted (`torch.BoolTensor` of shape `(steps,)`): Controllable steps of an episode; the others are dense.
        space ([`ActionSpace`]): The levels.

    Returns:
        `torch.LongTensor` of shape `(blocks, steps)`: Action ids.
    """
    low, high, share = neighbouring_levels(means[None].float(), space)
    each = int(counted.sum())
    turn = torch.arange(blocks * each, dtype=torch.float64)[:, None]
    half = 0.5 + TIE_MARGIN / (high - low).clamp(min=1e-6).double()
    is_high = torch.ceil(share.double() * (turn + 1) - half) > torch.ceil(share.double() * turn - half)
    corners = torch.tensor(list(product((False, True), repeat=len(AXES))))
    ids = closeness(torch.where(corners, high, low), space).argmax(dim=-1)
    schedule = torch.full((blocks, len(counted)), space.dense_id)
    schedule[:, counted] = ids[(is_high * torch.tensor([4, 2, 1])).sum(dim=-1)].view(blocks, each)
    return schedule


class RandomController(Controller):
    """Per row and episode, a random permutation of the right number of high and low levels of every axis.

    Args:
        seed (`int`, *optional*, defaults to 0): Seed of the controller's own generator.
    """

    def __init__(self, seed: int = 0):
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self, observation: Observation) -> torch.Tensor:
        targets = observation.require_targets()
        low, high, share = neighbouring_levels(targets, observation.action_space)
        length = observation.episode_length
        if "place" not in observation.state:
            noise = torch.rand(observation.rows, 3, length, generator=self.generator)
            observation.state["place"] = noise.argsort(dim=-1).to(targets.device)
        is_high = observation.state["place"][:, :, observation.step] < torch.round(share * length)
        return closeness(torch.where(is_high, high, low), observation.action_space)
