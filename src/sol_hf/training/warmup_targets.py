# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Inputs and targets of the supervised start: observations of a policy, and the levels that it should take there.

At first, observations are synthetic: measured hidden states, with a history of the target levels. Later, some are
taken from the policy's own episodes ([`run_on_policy`]). The policy predicts the cost of a step less well than the
allocation that sets its targets, and gets states that do not occur in the measurements. It would therefore miss its
budgets. [`BudgetCorrection`] estimates the error from the policy's own episodes, and corrects the mean of the
allocation.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch.nn.functional import dropout
from tqdm.auto import tqdm

from ..budget.action_space import ActionSpace
from ..budget.ledger import BudgetLedger
from ..controllers.policy import PolicyController
from ..controllers.processors import ActionProcessorList, budget_processors
from ..episodes.block_runner import left_dense
from ..episodes.cost_model import Allocation, SelectedRows, fit_cost_model, level_costs
from ..episodes.counterfactuals import Counterfactuals, Probes
from ..episodes.rollouts import Rollouts, prefill, roll_out
from ..episodes.step_inputs import MeasuredSteps, StepRows
from ..episodes.step_settings import StepSettings
from ..modeling_sol import SOLForCausalLM
from ..modeling_sol_policy import SOLPolicyModel
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


class PolicyInputs(NamedTuple):
    """Inputs of a policy for some episodes; see [`SOLPolicyModel.forward`]."""

    hidden_states: torch.Tensor
    token_embeddings: torch.Tensor
    scalars: torch.Tensor
    previous_actions: torch.Tensor


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

    def update(self, budgets: torch.Tensor, spent: torch.Tensor) -> torch.Tensor:
        """Fit the error that remains with the current correction, and add it to the correction.

        Args:
            budgets (`torch.Tensor` of shape `(episodes, axes)`): In ratio units.
            spent (`torch.Tensor` of shape `(episodes, axes)`): Mean levels of the episodes, in ratio units.

        Returns:
            `torch.Tensor` of shape `(axes,)`: Mean error before the update.
        """
        errors, features = (spent - budgets).double(), self._features(budgets)
        for axis in range(len(self.lowest)):
            x = features[:, axis]
            gram = x.T @ x + RIDGE * torch.eye(x.shape[1], dtype=x.dtype)
            self.weights[axis] += torch.linalg.solve(gram, x.T @ errors[:, axis])
        return errors.mean(dim=0)


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
    ):
        self.space = StepSettings.of(model).space
        self.steps, self.episodes = model.config.episode_length, episodes
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
        return self.correction.update(episodes.rollouts.targets, episodes.spent(self.space))

    def restore(self, episodes: tuple[Rollouts, torch.Tensor, torch.Tensor], rounds: int) -> None:
        """Take up the episodes of the last round of an earlier run; the correction is restored apart."""
        self.on_policy, self.practice_rounds = OnPolicyEpisodes(*episodes), rounds

    def loss(self, policy: SOLPolicyModel) -> torch.Tensor:
        """Cross-entropy of the policy's levels, summed over the axes, on newly drawn episodes and budgets."""
        device = policy.device
        inputs, wanted = self._synthetic()
        if self.on_policy is not None:
            own, also = self._recorded(self.on_policy)
            inputs = PolicyInputs(*(torch.cat(pair) for pair in zip(inputs, own, strict=True)))
            wanted = [torch.cat(pair) for pair in zip(wanted, also, strict=True)]
        inputs = PolicyInputs(*(tensor.to(device) for tensor in inputs))
        wanted = [tensor.to(device) for tensor in wanted]
        hidden, embeddings = dropout(inputs.hidden_states.float(), 0.1), dropout(inputs.token_embeddings.float(), 0.1)
        logits = policy(hidden, embeddings, inputs.scalars, inputs.previous_actions).logits.log_softmax(dim=-1)
        marginals = level_logprobs(logits, self.space)
        losses = [-(w * own).sum(-1).mean() for w, own in zip(wanted, marginals, strict=True)]
        return torch.stack(losses).sum()

    def _synthetic(self) -> tuple[PolicyInputs, list[torch.Tensor]]:
        measured = self.measured
        block = torch.randint(measured.blocks, (self.episodes, 1))
        start = torch.randint(measured.length - self.steps + 1, (self.episodes, 1))
        where = block.expand(-1, self.steps), start + torch.arange(self.steps)
        budgets = self.draw_budgets(self.episodes)
        wanted, levels = self._wanted(where, budgets)
        is_dense = torch.rand(self.episodes, self.steps, 1) < 0.5
        mixed = torch.where(is_dense, measured.dense(*where), measured.sparse(*where))
        scalars, previous = self._history(levels, budgets)
        scalars = torch.cat([scalars, self.page_fill[where[1], None]], dim=-1)
        return PolicyInputs(mixed, measured.embeddings(*where), scalars, previous), wanted

    def _recorded(self, own: OnPolicyEpisodes) -> tuple[PolicyInputs, list[torch.Tensor]]:
        some = torch.randint(len(own.blocks), (self.episodes,))
        steps = own.starts[some, None] + torch.arange(self.steps)
        where = own.blocks[some, None].expand_as(steps), steps
        rollouts = own.rollouts
        wanted, _ = self._wanted(where, rollouts.targets[some])
        hidden = rollouts.hidden_states[some].to(torch.bfloat16)
        scalars, previous = rollouts.scalars[some], rollouts.previous_actions[some]
        return PolicyInputs(hidden, self.measured.embeddings(*where), scalars, previous), wanted

    def _wanted(self, where: tuple, budgets: torch.Tensor) -> tuple[list[torch.Tensor], torch.Tensor]:
        """Target probabilities of every axis `(episodes, steps, levels)`, and indices of the best levels `(episodes,
        steps, axes)`."""
        prices, wanted, best = self.allocation.prices_for(self.correction(budgets)), [], []
        for axis, (costs, levels) in enumerate(zip(self.costs, self.allocation.levels, strict=True)):
            price = prices[:, axis, None, None]
            total = costs[where] + price * levels
            distinct = levels.unique()
            gap = distinct[1] - distinct[0] if len(distinct) > 1 else 1.0
            wanted.append((-total / (price * gap + 1e-4)).softmax(dim=-1))
            best.append(total.argmin(dim=-1))
        return wanted, torch.stack(best, dim=-1)

    def _history(self, levels: torch.Tensor, budgets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Scalars and previous actions of episodes with these levels, of which one in ten is disturbed."""
        drawn = levels + torch.randint(-JITTER, JITTER + 1, levels.shape)
        drawn = drawn.clamp(min=0).minimum(torch.tensor(self.space.level_counts) - 1)
        actions = self.space.ids_of(torch.where(torch.rand(levels.shape) < 0.1, drawn, levels))
        ledger, counted = BudgetLedger(len(levels), self.space), torch.ones(len(levels), dtype=torch.bool)
        scalars, previous = [], [torch.full((len(levels),), len(self.space))]
        for step in range(self.steps):
            scalars.append(ledger.scalars(step, self.steps, counted, budgets))
            ledger.record(self.space.ratios[actions[:, step]], counted)
            previous.append(actions[:, step])
        return torch.stack(scalars, dim=1), torch.stack(previous[:-1], dim=1)


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
    model: SOLForCausalLM, blocks: torch.Tensor, context_length: int, budgets: torch.Tensor, batch_size: int = 64
) -> OnPolicyEpisodes:
    """Run an episode of the policy of `model` per budget, on measured blocks that are drawn at random.

    Args:
        model ([`SOLForCausalLM`]): Its policy chooses the action of the highest score, as in `generate` in soft mode.
            An axis that a budget leaves dense stays dense.
        blocks (`torch.LongTensor` of shape `(blocks, context + measured steps + 1)`): Token ids.
        context_length (`int`): Tokens before the first measured step.
        budgets (`torch.Tensor` of shape `(episodes, axes)`): In ratio units. Up to four budgets use the same
            block.
        batch_size (`int`, *optional*, defaults to 64): Episodes that run at the same time; they begin at the same
            step.
    """
    steps, device = model.config.episode_length, model.base.device
    measured = blocks.shape[1] - context_length - 1
    controller = PolicyController(model.policy.eval())
    parts, chosen, starts = [], [], []
    for wanted in budgets.split(batch_size):
        together = next(number for number in (4, 2, 1) if len(wanted) % number == 0)
        start = int(torch.randint(measured - steps + 1, ()))
        block = torch.randint(len(blocks), (len(wanted) // together,))
        tokens = blocks[block, : context_length + start + steps + 1].to(device)
        prefix = prefill(model, tokens, context_length + start)
        held = ActionProcessorList(budget_processors(left_dense(wanted, StepSettings.of(model).space), hard=False))
        parts.append(roll_out(model, prefix, tokens, wanted.to(device), controller, held).to("cpu"))
        chosen.append(block.repeat_interleave(together))
        starts.append(torch.full((len(wanted),), start))
    return OnPolicyEpisodes(Rollouts.concatenate(parts), torch.cat(chosen), torch.cat(starts))
