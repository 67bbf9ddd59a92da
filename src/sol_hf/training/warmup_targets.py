# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Inputs and targets of the supervised start: observations of a policy, and the levels that it should take there.

At first, observations are synthetic: measured hidden states, with a history of the target levels. Later, some are
taken from the policy's own episodes ([`run_on_policy`]). The policy predicts the cost of a step less well than the
allocation that sets its targets, and gets states that do not occur in the measurements. It would therefore miss its
budgets. [`BudgetCorrection`] estimates the error from the policy's own episodes, and corrects the mean of the
allocation.

Both kinds of episodes are under the budget of [`BudgetStates`], by default as `generate` keeps it over the generation:
the levels to choose are those for what the bank asks, among those that it allows.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import dropout
from tqdm.auto import tqdm

from ..budget.action_space import ActionSpace
from ..controllers.hard_budget import within
from ..controllers.policy import PolicyController
from ..episodes.cost_model import Allocation, SelectedRows, fit_cost_model, level_costs
from ..episodes.counterfactuals import Counterfactuals, Probes
from ..episodes.rollouts import Rollouts, prefill, roll_out
from ..episodes.step_inputs import MeasuredSteps, StepRows
from ..modeling_sol import SOLForCausalLM
from ..modeling_sol_policy import SOLPolicyModel
from .budget_states import BudgetStates
from .warmup_progress import FitState


JITTER = 2
"""Largest number of levels by which a disturbed action of a synthetic history differs."""
UNLIMITED_SHARE = 0.15
"""Share of budgets that have the largest level as the target of an axis."""
PASSES, ROWS_PER_STEP = 20, 1024
"""How often the rows of a cost model are drawn, at most, and how many in a step."""
MOST_STEPS = 600
RIDGE = 1.0
"""Weight of the squared coefficients in the fit of a [`BudgetCorrection`]."""
RULED_OUT = -1e4
"""Score of what a budget does not allow: its probability is exactly 0."""
KNOTS = 32
"""Budgets of an axis at which prices are told; not its ends, where any price from some number on does."""


@dataclass(frozen=True)
class PolicyInputs:
    """Inputs of a policy for some episodes, see [`SOLPolicyModel.forward`], and what a hard budget allows."""

    hidden_states: torch.Tensor
    token_embeddings: torch.Tensor
    scalars: torch.Tensor
    previous_actions: torch.Tensor
    bounds: torch.Tensor | None = None

    def map(self, function: Callable[..., torch.Tensor], *others: "PolicyInputs") -> "PolicyInputs":
        """What a function makes of every tensor, together with those of `others`."""
        every = [vars(inputs) for inputs in (self, *others)]
        made: dict[str, Any] = {
            name: None if x is None else function(*(own[name] for own in every)) for name, x in every[0].items()
        }
        return PolicyInputs(**made)


@dataclass(frozen=True)
class OnPolicyEpisodes:
    """Episodes of a policy on measured blocks.

    Args:
        rollouts ([`Rollouts`]): Observations, actions and budgets.
        blocks (`torch.LongTensor` of shape `(episodes,)`): Index of the block of every episode.
        starts (`torch.LongTensor` of shape `(episodes,)`): Index of the first measured step of every episode.
    """

    rollouts: Rollouts
    blocks: torch.Tensor
    starts: torch.Tensor

    def spent(self, space: ActionSpace) -> torch.Tensor:
        """Mean levels of every episode, of shape `(episodes, axes)` in ratio units."""
        return space.ratios[self.rollouts.actions].mean(dim=1)

    def are_free(self) -> torch.Tensor:
        """Whether an episode could spend what it was asked to, `(episodes, axes)`: not where it began without savings,
        so that limits may have ruled out what the policy chose."""
        targets, asked = self.rollouts.targets, self.rollouts.wanted
        return torch.ones_like(targets, dtype=torch.bool) if self.rollouts.asked is None else asked > targets


class BudgetCorrection:
    """The mean to request so that a budget is spent: the budget minus a polynomial of degree 2 in all axes.

    The polynomial of an axis is multiplied by a factor that is 0 at both ends of that axis, where there is no choice.

    Args:
        lowest (`torch.Tensor` of shape `(axes,)`): Smallest levels, in ratio units.
        highest (`torch.Tensor` of shape `(axes,)`): Largest levels.
    """

    def __init__(self, lowest: torch.Tensor, highest: torch.Tensor):
        self.lowest, self.range = lowest, (highest - lowest).clamp(min=1e-9)
        axes = len(lowest)
        self.pairs = torch.triu_indices(axes, axes)
        self.weights = torch.zeros(axes, 1 + axes + self.pairs.shape[1], dtype=torch.float64)

    def _features(self, budgets: torch.Tensor) -> torch.Tensor:
        share = ((budgets - self.lowest) / self.range).clamp(0, 1).double()
        products = (share[:, :, None] * share[:, None, :])[:, *self.pairs]
        polynomial = torch.cat([torch.ones_like(share[:, :1]), share, products], dim=-1)
        inside = (8 * share * (1 - share)).clamp(max=1)
        return inside[:, :, None] * polynomial[:, None, :]

    def __call__(self, budgets: torch.Tensor) -> torch.Tensor:
        """Means to request, of shape `(episodes, axes)`, for budgets of the same shape, in ratio units."""
        return budgets - (self._features(budgets) * self.weights).sum(dim=-1).to(budgets)

    def update(self, budgets: torch.Tensor, spent: torch.Tensor, counted: torch.Tensor | None = None) -> torch.Tensor:
        """Fit the error that remains with the current correction, and add it to the correction.

        Args:
            budgets (`torch.Tensor` of shape `(episodes, axes)`): In ratio units.
            spent (`torch.Tensor` of shape `(episodes, axes)`): Mean levels of the episodes, in ratio units.
            counted (`torch.BoolTensor` of shape `(episodes, axes)`, *optional*): Errors to use; all by default.

        Returns:
            `torch.Tensor` of shape `(axes,)`: Mean error before the update.
        """
        used = torch.ones_like(budgets) if counted is None else counted
        errors = (spent - budgets).double() * used
        features = self._features(budgets) * used[..., None]
        for axis in range(len(self.lowest)):
            x = features[:, axis]
            gram = x.T @ x + RIDGE * torch.eye(x.shape[1], dtype=x.dtype)
            self.weights[axis] += torch.linalg.solve(gram, x.T @ errors[:, axis])
        return errors.sum(dim=0) / used.sum(dim=0).clamp(min=1)


class WarmupTargets:
    """Draws episodes on measured blocks, with the levels of the allocation as targets.

    Args:
        model ([`SOLForCausalLM`]): Its embeddings, action space and episode length are used.
        measured ([`Counterfactuals`]): Steps of many blocks.
        probes ([`Probes`]): The measured probes.
        context_length (`int`): Tokens of a block before the first measured step.
        episodes (`int`): Episodes of an update.
        cost_models (`int`): Number of cost models, at least 2. Each estimates the blocks that it was not fitted to.
        stored ([`FitState`]): Keeps the estimates of the cost models that are fitted already.
        states ([`BudgetStates`]): How the budgets of the episodes are kept.
    """

    def __init__(
        self,
        model: SOLForCausalLM,
        measured: Counterfactuals,
        probes: Probes,
        context_length: int,
        episodes: int,
        cost_models: int,
        stored: FitState,
        states: BudgetStates,
    ):
        self.states, self.space = states, states.space
        self.steps, self.episodes = states.steps, episodes
        rule, counts = model.config.selection_rule, context_length + 1 + torch.arange(measured.tokens.shape[1])
        self.page_fill = rule.page_fill(counts)
        places = (counts - 1) % rule.page_size if model.config.observe_page_fill else torch.zeros_like(counts)
        self.measured = MeasuredSteps(measured, model.base.get_input_embeddings())
        expected = self._expected(measured.divergence, places, cost_models, model.policy.device, stored)
        self.costs = level_costs(expected, probes, self.space)
        self.allocation = Allocation([table.flatten(0, 1) for table in self.costs], self.space)
        self.lowest, self.highest = self.space.min_ratio(), self.space.max_ratio()
        self.correction = BudgetCorrection(self.lowest, self.highest)
        self.on_policy: OnPolicyEpisodes | None = None
        self.practice_rounds = 0

    def _expected(
        self, divergence: torch.Tensor, places: torch.Tensor, cost_models: int, device: torch.device, stored: FitState
    ) -> torch.Tensor:
        """Expected costs of the probes `(blocks, steps, probes)`, by cost models that are fitted to dense and sparse
        states.

        A model that was fitted to a block would predict its costs better than those of new text. So every block is
        estimated by the one model that was not fitted to it.
        """
        inputs, costs = StepRows(self.measured, device), divergence.float().flatten(0, 1)
        blocks, length = divergence.shape[:2]
        places = places.repeat(2 * blocks)
        fold_of_step = (torch.arange(blocks) % cost_models).repeat_interleave(length)
        steps, batch_size = _cost_model_steps(2 * len(costs) * (cost_models - 1) // cost_models)
        found = stored.read("expected") or {"expected": torch.zeros_like(costs), "folds": torch.tensor(0)}
        expected, done = found["expected"], int(found["folds"])
        with tqdm(total=steps * cost_models, initial=steps * done, desc="Cost models") as bar:
            for fold in range(done, cost_models):
                mine = fold_of_step == fold
                fit = {"steps": steps, "batch_size": batch_size, "advance": bar.update}
                fitted, loss = fit_cost_model(inputs, places, costs.repeat(2, 1), mine.repeat(2), seed=fold, **fit)
                rows = mine.nonzero().squeeze(1)
                expected[mine] = fitted.costs(SelectedRows(inputs, rows), places[rows]).cpu()
                stored.write("expected", {"expected": expected, "folds": torch.tensor(fold + 1)})
                bar.set_postfix(held_out_loss=f"{loss:.3f}")
        return expected.view(blocks, length, -1)

    def draw_budgets(self, episodes: int) -> torch.Tensor:
        """Budgets `(episodes, axes)` in ratio units: uniform over the range of levels, and for a share of the entries
        the largest level."""
        shape = (episodes, len(self.space.axes))
        even = self.lowest + (self.highest - self.lowest) * torch.rand(shape)
        return torch.where(torch.rand(shape) < UNLIMITED_SHARE, self.highest, even)

    def add_on_policy(self, episodes: OnPolicyEpisodes) -> torch.Tensor:
        """Also draw from these episodes from now on, and update the correction from the means that they spent.

        Returns:
            `torch.Tensor` of shape `(axes,)`: Mean of spent level minus budget, in ratio units.
        """
        self.on_policy = episodes
        self.practice_rounds += 1
        asked, spent = episodes.rollouts.wanted, episodes.spent(self.space)
        return self.correction.update(asked, spent, episodes.are_free())

    def restore(self, episodes: tuple[Rollouts, torch.Tensor, torch.Tensor], rounds: int) -> None:
        """Take up the episodes of the last round of an earlier run; the correction is restored apart."""
        self.on_policy, self.practice_rounds = OnPolicyEpisodes(*episodes), rounds

    def loss(self, policy: SOLPolicyModel) -> torch.Tensor:
        """Cross-entropy of the policy's levels, summed over the axes, on newly drawn episodes and budgets."""
        inputs, wanted = self._synthetic()
        if self.on_policy is not None:
            own, also = self._recorded(self.on_policy)
            inputs = inputs.map(lambda *both: torch.cat(both), own)
            wanted = [torch.cat(pair) for pair in zip(wanted, also, strict=True)]
        inputs = inputs.map(lambda x: x.to(policy.device))
        hidden, embeddings = dropout(inputs.hidden_states.float(), 0.1), dropout(inputs.token_embeddings.float(), 0.1)
        scores = policy(hidden, embeddings, inputs.scalars, inputs.previous_actions).logits
        if inputs.bounds is not None:
            scores = scores.masked_fill(~within(inputs.bounds.unbind(dim=2), self.space), RULED_OUT)
        marginals = level_logprobs(scores.log_softmax(dim=-1), self.space)
        losses = [-(w.to(own) * own).sum(-1).mean() for w, own in zip(wanted, marginals, strict=True)]
        return torch.stack(losses).sum()

    def _synthetic(self) -> tuple[PolicyInputs, list[torch.Tensor]]:
        measured = self.measured
        block = torch.randint(measured.blocks, (self.episodes, 1))
        start = torch.randint(measured.length - self.steps + 1, (self.episodes, 1))
        where = block.expand(-1, self.steps), start + torch.arange(self.steps)
        begin = self.states.begin(self.draw_budgets(self.episodes))
        scores, levels = self._wanted(where, begin.asked)
        is_dense = torch.rand(self.episodes, self.steps, 1) < 0.5
        mixed = torch.where(is_dense, measured.dense(*where), measured.sparse(*where))
        seen = self.states.walk(begin, self._disturbed(levels), self.page_fill[where[1]])
        return PolicyInputs(mixed, measured.embeddings(*where), *seen), self._probabilities(scores, seen.bounds)

    def _recorded(self, own: OnPolicyEpisodes) -> tuple[PolicyInputs, list[torch.Tensor]]:
        some = torch.randint(len(own.blocks), (self.episodes,))
        steps = own.starts[some, None] + torch.arange(self.steps)
        where = own.blocks[some, None].expand_as(steps), steps
        rollouts = own.rollouts
        scores, _ = self._wanted(where, rollouts.wanted[some])
        hidden = rollouts.hidden_states[some].to(torch.bfloat16)
        scalars, previous = rollouts.scalars[some], rollouts.previous_actions[some]
        bounds = None if rollouts.bounds is None else rollouts.bounds[some]
        inputs = PolicyInputs(hidden, self.measured.embeddings(*where), scalars, previous, bounds)
        return inputs, self._probabilities(scores, bounds)

    def _wanted(self, where: tuple, budgets: torch.Tensor) -> tuple[list[torch.Tensor], torch.Tensor]:
        """Scores `(episodes, steps, levels)` of the levels of every axis, whose softmax is the target, and indices of
        the best levels `(episodes, steps, axes)`."""
        prices, wanted, best = self.allocation.prices_for(self.correction(budgets)), [], []
        for axis, (costs, levels) in enumerate(zip(self.costs, self.allocation.levels, strict=True)):
            price = prices[:, axis, None, None]
            total = costs[where] + price * levels
            distinct = levels.unique()
            gap = distinct[1] - distinct[0] if len(distinct) > 1 else 1.0
            wanted.append(-total / (price * gap + 1e-4))
            best.append(total.argmin(dim=-1))
        return wanted, torch.stack(best, dim=-1)

    def _probabilities(self, scores: list[torch.Tensor], bounds: torch.Tensor | None) -> list[torch.Tensor]:
        """Target probabilities of the levels of every axis: 0 for those that a budget does not allow."""
        if bounds is not None:
            allowed = self.states.allowed_levels(bounds)
            scores = [own.masked_fill(~levels, -torch.inf) for own, levels in zip(scores, allowed, strict=True)]
        return [own.softmax(dim=-1) for own in scores]

    def _disturbed(self, levels: torch.Tensor) -> torch.Tensor:
        """Indices of levels, of which one in ten is changed."""
        drawn = levels + torch.randint(-JITTER, JITTER + 1, levels.shape)
        drawn = drawn.clamp(min=0).minimum(torch.tensor(self.space.level_counts) - 1)
        return torch.where(torch.rand(levels.shape) < 0.1, drawn, levels)

    def prices(self) -> dict[str, list[list[float]]]:
        """What one more unit of an axis is worth: per axis pairs of a budget, in ratio units, and of a price, in nats
        per step and unit of ratio, at which the allocation spends this budget."""
        share = ((torch.arange(KNOTS) + 0.5) / KNOTS)[:, None]
        budgets = self.lowest + (self.highest - self.lowest) * share
        columns = zip(budgets.unbind(dim=1), self.allocation.prices_for(budgets).unbind(dim=1), strict=True)
        pairs = [torch.stack(pair, dim=1).tolist() for pair in columns]
        return dict(zip(self.space.axis_names, pairs, strict=True))


def _cost_model_steps(rows: int) -> tuple[int, int]:
    """Steps of the fit of a cost model, and rows in each: every row is drawn some times, unless there are many."""
    batch_size = min(ROWS_PER_STEP, max(rows, 1))
    return min(MOST_STEPS, math.ceil(PASSES * rows / batch_size)), batch_size


def level_logprobs(logprobs: torch.Tensor, space: ActionSpace) -> list[torch.Tensor]:
    """Log-probabilities of the levels of every axis, from those of the actions `(..., n_actions)`.

    Returns:
        Per axis a `torch.Tensor` of shape `(..., levels)`.
    """
    counts = space.level_counts
    joint, first = logprobs.unflatten(-1, counts), logprobs.dim() - 1
    marginals = []
    for axis in range(len(counts)):
        others = [first + other for other in range(len(counts)) if other != axis]
        marginals.append(joint.logsumexp(others))
    return marginals


def run_on_policy(
    model: SOLForCausalLM,
    blocks: torch.Tensor,
    context_length: int,
    budgets: torch.Tensor,
    states: BudgetStates,
    batch_size: int = 64,
) -> OnPolicyEpisodes:
    """Run an episode of the policy of `model` per budget, on measured blocks that are drawn at random.

    Args:
        model ([`SOLForCausalLM`]): Its policy chooses the action of the highest score among those that are allowed, as
            in `generate`. An axis that a budget leaves dense stays dense.
        blocks (`torch.LongTensor` of shape `(blocks, context + measured steps + 1)`): Token ids.
        context_length (`int`): Tokens before the first measured step.
        budgets (`torch.Tensor` of shape `(episodes, axes)`): In ratio units. Up to eight budgets use the same
            block.
        states ([`BudgetStates`]): How the budgets are kept.
        batch_size (`int`, *optional*, defaults to 64): Episodes that run at the same time; they begin at the same
            step.
    """
    steps, device = model.config.episode_length, model.device
    measured = blocks.shape[1] - context_length - 1
    controller = PolicyController(model.policy.eval())
    parts, chosen, starts = [], [], []
    for wanted in budgets.split(batch_size):
        together = next(number for number in (8, 4, 2, 1) if len(wanted) % number == 0)
        start = int(torch.randint(measured - steps + 1, ()))
        block = torch.randint(len(blocks), (len(wanted) // together,))
        tokens = blocks[block, : context_length + start + steps + 1].to(device)
        prefix = prefill(model, tokens, context_length + start)
        begin, limits = states.begin(wanted), states.processors(wanted)
        balance = None if begin.balance is None else begin.balance.to(device)
        played = roll_out(model, prefix, tokens, wanted.to(device), controller, limits, balance)
        parts.append(played.to("cpu"))
        chosen.append(block.repeat_interleave(together))
        starts.append(torch.full((len(wanted),), start))
    return OnPolicyEpisodes(Rollouts.concatenate(parts), torch.cat(chosen), torch.cat(starts))
