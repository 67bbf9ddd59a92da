# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""What a policy is taught from measured steps: the observations it will have, and the levels it should take there.

Observations are imagined at first, out of measured steps and the teacher's levels. Then they also come from the
policy's own episodes ([`practise`]), which show what it spends: it sees a step's cost less sharply than its teacher,
and after a history that its teacher has not seen, so that it would miss its budgets. [`BudgetCorrection`] finds by how
much, and asks the teacher for another mean.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch.nn.functional import dropout

from ..budget.action_space import AXES, AXIS_SCALE, ActionSpace
from ..budget.ledger import BudgetLedger
from ..controllers.policy import PolicyController
from ..episodes.cost_model import Allocation, fit_cost_model, level_costs
from ..episodes.counterfactuals import Counterfactuals, Probes
from ..episodes.rollouts import Rollouts, prefill, roll_out
from ..modeling_sol import SOLForCausalLM
from ..modeling_sol_policy import SOLPolicyModel


JITTER = 2
"""Levels by which a disturbed action of the history differs at most."""
AT_MOST = 0.15
"""Share of budgets that leave an axis alone."""
RIDGE = 1.0


class Seen(NamedTuple):
    """Inputs of a policy for some episodes; see [`SOLPolicyModel.forward`]."""

    hidden_states: torch.Tensor
    token_embeddings: torch.Tensor
    scalars: torch.Tensor
    previous_actions: torch.Tensor


@dataclass(frozen=True)
class Practice:
    """Episodes that a policy has played on measured blocks.

    Args:
        rollouts ([`Rollouts`]): What it saw and did.
        blocks (`torch.LongTensor` of shape `(episodes,)`): Which blocks.
        starts (`torch.LongTensor` of shape `(episodes,)`): Measured steps before the first one of an episode.
    """

    rollouts: Rollouts
    blocks: torch.Tensor
    starts: torch.Tensor

    def spent(self, space: ActionSpace) -> torch.Tensor:
        """Mean of every episode, `(episodes, 3)` in ratio units."""
        return space.ratios[self.rollouts.actions].mean(dim=1)


class BudgetCorrection:
    """What to ask for so that a given mean is spent: a second-degree polynomial of the budget.

    It vanishes at both ends of an axis, where nothing is left to choose.

    Args:
        lowest (`torch.Tensor` of shape `(3,)`): Smallest levels, in ratio units.
        highest (`torch.Tensor` of shape `(3,)`): Largest levels.
    """

    def __init__(self, lowest: torch.Tensor, highest: torch.Tensor):
        self.lowest, self.range = lowest, (highest - lowest).clamp(min=1e-9)
        self.weights = torch.zeros(3, 10, dtype=torch.float64)

    def _features(self, budgets: torch.Tensor) -> torch.Tensor:
        share = ((budgets - self.lowest) / self.range).clamp(0, 1).double()
        products = (share[:, :, None] * share[:, None, :])[:, *torch.triu_indices(3, 3)]
        polynomial = torch.cat([torch.ones_like(share[:, :1]), share, products], dim=-1)
        inside = (8 * share * (1 - share)).clamp(max=1)
        return inside[:, :, None] * polynomial[:, None, :]

    def __call__(self, budgets: torch.Tensor) -> torch.Tensor:
        """Means to ask the teacher for, `(episodes, 3)`, at budgets `(episodes, 3)`."""
        return budgets - (self._features(budgets) * self.weights).sum(dim=-1).to(budgets)

    def learn(self, budgets: torch.Tensor, spent: torch.Tensor) -> torch.Tensor:
        """Add what the means that were spent say; returns the mean error `(3,)` before."""
        errors, features = (spent - budgets).double(), self._features(budgets)
        for axis in range(3):
            x = features[:, axis]
            gram = x.T @ x + RIDGE * torch.eye(x.shape[1], dtype=x.dtype)
            self.weights[axis] += torch.linalg.solve(gram, x.T @ errors[:, axis])
        return errors.mean(dim=0)


class Lesson:
    """Episodes on measured blocks, with the levels that the teacher would take there.

    Args:
        model ([`SOLForCausalLM`]): Gives embeddings, action space and length of an episode.
        measured ([`Counterfactuals`]): Steps of many blocks.
        probes ([`Probes`]): What was measured.
        context_length (`int`): Tokens of a block before the first measured step.
        episodes (`int`): Episodes of an update.
        cost_models (`int`): Cost models, each for the blocks that the others have learned from; at least 2.
    """

    def __init__(
        self,
        model: SOLForCausalLM,
        measured: Counterfactuals,
        probes: Probes,
        context_length: int,
        episodes: int,
        cost_models: int,
    ):
        self.space, self.steps, self.episodes = model.action_space, model.config.episode_length, episodes
        rule, counts = model.config.selection_rule, context_length + 1 + torch.arange(measured.tokens.shape[1])
        self.page_fill = rule.page_fill(counts)
        places = (counts - 1) % rule.page_size if model.config.observe_page_fill else torch.zeros_like(counts)
        embed = model.base.get_input_embeddings()
        with torch.no_grad():
            self.embeddings = embed(measured.tokens.to(embed.weight.device)).to("cpu", torch.bfloat16)
        self.dense = measured.hidden_states.to(torch.bfloat16)
        after = [self.dense[:, :1], measured.next_states[:, :-1].to(torch.bfloat16)]
        self.sparse = torch.cat(after, dim=1)  # the state that a cheap step left
        self.costs = level_costs(self._expected(measured, places, cost_models), probes, self.space)
        self.allocation = Allocation([table.flatten(0, 1) for table in self.costs], self.space)
        self.lowest = torch.tensor([min(self.space.levels[a]) / s for a, s in zip(AXES, AXIS_SCALE, strict=True)])
        self.highest = torch.tensor([max(self.space.levels[a]) / s for a, s in zip(AXES, AXIS_SCALE, strict=True)])
        self.correction = BudgetCorrection(self.lowest, self.highest)
        self.practice: Practice | None = None

    def _expected(self, measured: Counterfactuals, places: torch.Tensor, cost_models: int) -> torch.Tensor:
        """Expected costs of the probes `(blocks, steps, probes)`, by cost models that see either state of the LM.

        A model that has learned a block's own costs by heart would be surer of them than anyone can be of new text.
        So every block is estimated by the one model that has not seen it.
        """
        states = [torch.cat([x, self.embeddings], dim=-1).float().flatten(0, 1) for x in (self.dense, self.sparse)]
        inputs, costs = torch.cat(states), measured.divergence.float().flatten(0, 1)
        blocks, length = measured.tokens.shape
        places = places.repeat(2 * blocks)
        fold_of_step = (torch.arange(blocks) % cost_models).repeat_interleave(length)
        expected = torch.zeros_like(costs)
        for fold in range(cost_models):
            mine = fold_of_step == fold
            fitted, _ = fit_cost_model(inputs, places, costs.repeat(2, 1), mine.repeat(2), seed=fold)
            expected[mine] = fitted.costs(inputs[: len(costs)][mine], places[: len(costs)][mine])
        return expected.view(blocks, length, -1)

    def draw_budgets(self, episodes: int) -> torch.Tensor:
        """Budgets `(episodes, 3)` in ratio units: even over the levels, some of them leave an axis alone."""
        even = self.lowest + (self.highest - self.lowest) * torch.rand(episodes, 3)
        return torch.where(torch.rand(episodes, 3) < AT_MOST, self.highest, even)

    def learn_from(self, practice: Practice) -> torch.Tensor:
        """Use these episodes from now on, and correct for what they spent; returns their mean error `(3,)`."""
        self.practice = practice
        return self.correction.learn(practice.rollouts.targets, practice.spent(self.space))

    def loss(self, policy: SOLPolicyModel) -> torch.Tensor:
        """Cross-entropy of the policy's levels, summed over the axes, on fresh episodes and budgets."""
        seen, wanted = self._imagined()
        if self.practice is not None:
            played, also = self._practised(self.practice)
            seen = Seen(*(torch.cat(pair) for pair in zip(seen, played, strict=True)))
            wanted = [torch.cat(pair) for pair in zip(wanted, also, strict=True)]
        hidden, embeddings = dropout(seen.hidden_states.float(), 0.1), dropout(seen.token_embeddings.float(), 0.1)
        logits = policy(hidden, embeddings, seen.scalars, seen.previous_actions).logits.log_softmax(dim=-1)
        joint = logits.unflatten(-1, [len(table) for table in self.allocation.levels])
        others = (3, 4), (2, 4), (2, 3)
        return -sum((w * joint.logsumexp(o)).sum(-1).mean() for w, o in zip(wanted, others, strict=True))

    def _imagined(self) -> tuple[Seen, list[torch.Tensor]]:
        blocks, length = self.dense.shape[:2]
        block = torch.randint(blocks, (self.episodes, 1))
        where = block, torch.randint(length - self.steps + 1, (self.episodes, 1)) + torch.arange(self.steps)
        budgets = self.draw_budgets(self.episodes)
        wanted, levels = self._wanted(where, budgets)
        mixed = torch.where(torch.rand(self.episodes, self.steps, 1) < 0.5, self.dense[where], self.sparse[where])
        scalars, previous = self._history(levels, budgets)
        scalars = torch.cat([scalars, self.page_fill[where[1], None]], dim=-1)
        return Seen(mixed, self.embeddings[where], scalars, previous), wanted

    def _practised(self, practice: Practice) -> tuple[Seen, list[torch.Tensor]]:
        some = torch.randint(len(practice.blocks), (self.episodes,))
        where = practice.blocks[some, None], practice.starts[some, None] + torch.arange(self.steps)
        played = practice.rollouts
        wanted, _ = self._wanted(where, played.targets[some])
        hidden = played.hidden_states[some].to(self.dense.dtype)
        return Seen(hidden, self.embeddings[where], played.scalars[some], played.previous_actions[some]), wanted

    def _wanted(self, where: tuple, budgets: torch.Tensor) -> tuple[list[torch.Tensor], torch.Tensor]:
        """Per axis the probabilities `(episodes, steps, levels)`; and the best levels `(episodes, steps, 3)`."""
        prices, wanted, best = self.allocation.prices_for(self.correction(budgets)), [], []
        for axis, (costs, levels) in enumerate(zip(self.costs, self.allocation.levels, strict=True)):
            price = prices[:, axis, None, None]
            total = costs[where] + price * levels
            gap = levels[1] - levels[0] if len(levels) > 1 else 1.0
            wanted.append((-total / (price * gap + 1e-4)).softmax(dim=-1))
            best.append(total.argmin(dim=-1))
        return wanted, torch.stack(best, dim=-1)

    def _history(self, levels: torch.Tensor, budgets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Scalars and previous actions of episodes that took these levels, one in ten of them disturbed."""
        sizes = [len(table) for table in self.allocation.levels]
        drawn = levels + torch.randint(-JITTER, JITTER + 1, levels.shape)
        drawn = drawn.clamp(min=0).minimum(torch.tensor(sizes) - 1)
        taken = torch.where(torch.rand(levels.shape) < 0.1, drawn, levels)
        actions = (taken[..., 0] * sizes[1] + taken[..., 1]) * sizes[2] + taken[..., 2]
        ledger, counted = BudgetLedger(len(levels), self.space), torch.ones(len(levels), dtype=torch.bool)
        scalars, previous = [], [torch.full((len(levels),), len(self.space))]
        for step in range(self.steps):
            scalars.append(ledger.scalars(step, self.steps, counted, budgets))
            ledger.record(self.space.ratios[actions[:, step]], counted)
            previous.append(actions[:, step])
        return torch.stack(scalars, dim=1), torch.stack(previous[:-1], dim=1)


def practise(
    model: SOLForCausalLM, blocks: torch.Tensor, context_length: int, budgets: torch.Tensor, batch_size: int = 64
) -> Practice:
    """Let the policy of `model` play an episode per budget, on measured blocks that are drawn at random.

    Args:
        model ([`SOLForCausalLM`]): Its policy always takes what it likes best, as it does in `generate`.
        blocks (`torch.LongTensor` of shape `(blocks, context + measured steps + 1)`): Token ids.
        context_length (`int`): Tokens before the first measured step.
        budgets (`torch.Tensor` of shape `(episodes, 3)`): In ratio units; up to four share a block.
        batch_size (`int`, *optional*, defaults to 64): Episodes that run at the same time, from the same step on.
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
        parts.append(roll_out(model, prefix, tokens, wanted.to(device), controller).to("cpu"))
        chosen.append(block.repeat_interleave(together))
        starts.append(torch.full((len(wanted),), start))
    return Practice(Rollouts.concatenate(parts), torch.cat(chosen), torch.cat(starts))
