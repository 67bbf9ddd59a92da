# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Action scores after the processors."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LogitsProcessor, TemperatureLogitsWarper, TopKLogitsWarper

from sol_hf import (
    ActionProcessor,
    ActionProcessorList,
    ActionSpace,
    AxisBiasProcessor,
    HardBudgetProcessor,
    Observation,
    PinnedAxesProcessor,
)
from sol_hf.budget.ledger import BudgetLedger
from sol_hf.controllers import hard_budget
from sol_hf.controllers.action_processor import restrict
from support.extra_axis import four_axes


SPACE = ActionSpace([0.2, 0.6, 1.0], [0.5, 1.0], [4, 8, 16])
NONE_YET = torch.empty(1, 0, dtype=torch.long)


def observe(targets, remaining: float, spent=(), space: ActionSpace = SPACE) -> Observation:
    """One row before a step, with `spent` levels `(token_keep, mlp_keep, bits_ratio)` behind it in the episode."""
    ledger = BudgetLedger(1, space)
    for levels in spent:
        ledger.record(torch.tensor([levels]), torch.tensor([True]))
    return Observation(
        hidden_state=torch.zeros(1, 4),
        token_embedding=torch.zeros(1, 4),
        previous_action=torch.tensor([len(space)]),
        controllable=torch.tensor([True]),
        remaining=torch.tensor([remaining]),
        step=len(spent),
        total_step=len(spent),
        episode_length=len(spent) + int(remaining),
        targets=None if targets is None else torch.tensor([targets]),
        ledger=ledger,
        action_space=space,
        state={},
        page_fill=torch.tensor([1.0]),
    )


def allowed(processor, observation) -> set[tuple]:
    """Actions that a processor leaves possible; fails if it changes the score of any of them."""
    scores = torch.randn(1, len(observation.action_space))
    edited = processor(NONE_YET, scores, observation)
    kept = edited[0] > float("-inf")
    assert torch.equal(edited[0][kept], scores[0][kept])
    return {observation.action_space.table[i] for i in kept.nonzero().flatten().tolist()}


def grid(*levels) -> set[tuple]:
    return set(ActionSpace(*levels).table)


class TestHardBudget:
    def test_at_first_everything_is_within_reach(self):
        assert allowed(HardBudgetProcessor(), observe([0.6, 0.75, 0.625], remaining=8)) == set(SPACE.table)

    def test_the_running_mean_may_overshoot_by_one_step(self):
        # token_keep after a dense step: .6 * 1 + 1 - 1 = .6 is the most that the running sum allows.
        observation = observe([0.6, 0.9, 0.9], remaining=8, spent=[(1.0, 0.5, 0.25)])
        assert allowed(HardBudgetProcessor(), observation) == grid([0.2, 0.6], [0.5, 1.0], [4, 8, 16])

    def test_the_end_of_the_episode_must_stay_within_reach(self):
        # Two steps left, the last can cost .2 at least: this one may cost 2 * .5 - .2 = .8 at most.
        observation = observe([0.5, 1.0, 1.0], remaining=2)
        assert {action[0] for action in allowed(HardBudgetProcessor(), observation)} == {0.2, 0.6}

    def test_the_last_step_takes_what_is_left(self):
        observation = observe([0.6, 0.75, 0.625], remaining=1, spent=[(0.2, 0.5, 0.5)])
        assert allowed(HardBudgetProcessor(), observation) == grid([0.2, 0.6, 1.0], [0.5, 1.0], [4, 8])

    def test_the_cheapest_action_is_always_possible(self):
        dear = [(1.0, 1.0, 1.0)] * 5
        observation = observe([0.2, 0.5, 0.25], remaining=3, spent=dear)
        assert allowed(HardBudgetProcessor(), observation) == {(0.2, 0.5, 4)}

    @pytest.mark.parametrize("target", [1.0, 0.999999])
    def test_a_target_at_the_largest_level_holds_the_axis_there(self, target):
        observation = observe([target, 0.75, 0.625], remaining=8)
        assert {action[0] for action in allowed(HardBudgetProcessor(), observation)} == {1.0}

    def test_a_target_above_the_largest_level_holds_the_axis_there(self):
        space = ActionSpace([0.2, 0.6], [0.5, 1.0], [4, 16])
        observation = observe([0.9, 0.75, 0.625], remaining=8, space=space)
        assert {action[0] for action in allowed(HardBudgetProcessor(), observation)} == {0.6}

    @pytest.mark.parametrize("largest", [0.9, 0.7, 0.3])
    def test_an_axis_held_at_its_largest_level_stays_there_through_a_long_episode(self, largest):
        # The level is no binary fraction, so its float32 sum drifts away from steps * level.
        space = ActionSpace([0.1, largest], [1.0], [16])
        observation = observe([largest, 1.0, 1.0], remaining=500, space=space)
        for step in range(400):
            assert allowed(HardBudgetProcessor(), observation) == {(largest, 1.0, 16)}, step
            observation.ledger.record(torch.tensor([[largest, 1.0, 1.0]]), torch.tensor([True]))

    def test_rows_have_their_own_budgets(self):
        one, other = observe([0.2, 0.5, 0.25], remaining=8), observe([1.0, 1.0, 1.0], remaining=8)
        both = Observation(
            **{
                **vars(one),
                "targets": torch.cat([one.targets, other.targets]),
                "ledger": BudgetLedger(2, SPACE),
                "remaining": torch.tensor([8.0, 8.0]),
            }
        )
        edited = HardBudgetProcessor()(NONE_YET, torch.zeros(2, len(SPACE)), both)
        kept = [[SPACE.table[i] for i in (row == 0).nonzero().flatten().tolist()] for row in edited]
        assert kept == [[(0.2, 0.5, 4)], [(1.0, 1.0, 16)]]

    def test_needs_a_budget(self):
        with pytest.raises(ValueError, match="needs a budget"):
            HardBudgetProcessor()(NONE_YET, torch.zeros(1, len(SPACE)), observe(None, remaining=8))


class TestPinnedAxes:
    @pytest.mark.parametrize(
        ("pinned", "expected"),
        [
            ((False, False, False), set(SPACE.table)),
            ((True, False, False), grid([1.0], [0.5, 1.0], [4, 8, 16])),
            ((False, True, True), grid([0.2, 0.6, 1.0], [1.0], [16])),
            ((True, True, True), {(1.0, 1.0, 16)}),
        ],
    )
    def test_pinned_axes_keep_their_largest_level_only(self, pinned, expected):
        assert allowed(PinnedAxesProcessor(pinned), observe(None, remaining=8)) == expected


class TestAxisBias:
    def test_the_published_formula(self):
        processor = AxisBiasProcessor(token_keep=1.0, mlp_keep=2.0, bits=4.0)
        for action, penalty in zip(SPACE.table, processor.penalties(SPACE).tolist(), strict=True):
            token_keep, mlp_keep, bits = action
            expected = (token_keep - 0.2) / 0.8 + 2 * (mlp_keep - 0.5) / 0.5 + 4 * (bits - 4) / 12
            assert penalty == pytest.approx(expected, abs=1e-5)

    def test_it_is_subtracted(self):
        scores, processor = torch.randn(1, len(SPACE)), AxisBiasProcessor(bits=3.0)
        edited = processor(NONE_YET, scores, observe(None, remaining=8))
        torch.testing.assert_close(edited, scores - processor.penalties(SPACE))

    def test_positive_favours_cheaper_actions_and_negative_dearer_ones(self):
        observation, scores = observe(None, remaining=8), torch.zeros(1, len(SPACE))
        cheap = AxisBiasProcessor(1.0, 1.0, 1.0)(NONE_YET, scores, observation).argmax().item()
        dear = AxisBiasProcessor(-1.0, -1.0, -1.0)(NONE_YET, scores, observation).argmax().item()
        assert SPACE.table[cheap] == (0.2, 0.5, 4)
        assert SPACE.table[dear] == (1.0, 1.0, 16)

    def test_an_axis_of_one_level_has_no_penalty(self):
        assert AxisBiasProcessor(bits=5.0).penalties(ActionSpace([0.5, 1.0], [1.0], [16])).tolist() == [0, 0]

    def test_repr(self):
        assert repr(AxisBiasProcessor(0.5, 0.0, 2)) == "AxisBiasProcessor(token_keep=0.5, mlp_keep=0.0, bits=2)"


@pytest.mark.usefixtures("mlp_noise")
class TestFourAxes:
    def test_a_hard_budget_rules_out_levels_of_the_added_axis(self):
        space, targets = four_axes(), [1.0, 1.0, 1.0, 0.7]
        spent = [(1.0, 1.0, 1.0, 1.0)]
        # after a dense step the running sum allows .7 * 1 + 1 - 1 = .7
        actions = allowed(HardBudgetProcessor(), observe(targets, 8, spent, space))
        assert actions == {(1.0, 1.0, 16, 0.5)}
        assert allowed(HardBudgetProcessor(), observe(targets, 8, (), space)) == {
            (1.0, 1.0, 16, 0.5),
            (1.0, 1.0, 16, 1.0),
        }

    def test_it_can_be_pinned(self):
        kept = allowed(PinnedAxesProcessor((False, True, True, True)), observe(None, 8, (), four_axes()))
        assert kept == {(keep, 1.0, 16, 1.0) for keep in (0.2, 0.6, 1.0)}

    def test_it_can_have_a_bias(self):
        space, processor = four_axes(), AxisBiasProcessor(bits=2.0, mlp_noise=3.0)
        expected = [2 * (bits - 4) / 12 + 3 * (noise - 0.5) / 0.5 for _, _, bits, noise in space.table]
        torch.testing.assert_close(processor.penalties(space), torch.tensor(expected))
        assert repr(processor) == "AxisBiasProcessor(token_keep=0.0, mlp_keep=0.0, bits=2.0, mlp_noise=3.0)"
        assert torch.equal(
            AxisBiasProcessor(bits=2.0).penalties(space)[0::2], AxisBiasProcessor(bits=2.0).penalties(SPACE)
        )

    def test_a_bias_on_an_axis_that_is_not_there_is_refused(self):
        with pytest.raises(ValueError, match="bias for mlp_noise, but the axes of the action space are token_keep"):
            AxisBiasProcessor(mlp_noise=3.0).penalties(SPACE)
        with pytest.raises(ValueError, match="Unknown axis 'mlp_noize'.*Did you mean 'mlp_noise'"):
            AxisBiasProcessor(mlp_noize=3.0)


class TestList:
    def test_processors_of_transformers_work_beside_ours(self):
        observation = observe([1.0, 1.0, 1.0], remaining=8)
        processors = ActionProcessorList(
            [TemperatureLogitsWarper(2.0), AxisBiasProcessor(bits=1.0), TopKLogitsWarper(3)]
        )
        scores = torch.randn(1, len(SPACE))
        edited = processors(NONE_YET, scores, observation=observation)
        expected = scores / 2 - AxisBiasProcessor(bits=1.0).penalties(SPACE)
        top = expected.topk(3).indices
        assert torch.equal((edited > float("-inf")).nonzero()[:, 1], top[0].sort().values)
        torch.testing.assert_close(edited.gather(1, top), expected.gather(1, top))

    def test_they_run_in_order_and_see_the_actions_so_far(self):
        seen = []

        class Note(ActionProcessor):
            def __init__(self, name):
                self.name = name

            def __call__(self, action_ids, scores, observation):
                seen.append((self.name, action_ids.tolist(), observation.step))
                return scores + 1

        actions, scores = torch.tensor([[3, 4]]), torch.zeros(1, len(SPACE))
        observation = observe(None, remaining=6, spent=[(1.0, 1.0, 1.0)] * 2)
        edited = ActionProcessorList([Note("a"), Note("b")])(actions, scores, observation=observation)
        assert seen == [("a", [[3, 4]], 2), ("b", [[3, 4]], 2)]
        assert edited.unique().tolist() == [2]

    def test_processors_are_logits_processors(self):
        assert issubclass(ActionProcessor, LogitsProcessor)
        with pytest.raises(NotImplementedError):
            ActionProcessor()(NONE_YET, torch.zeros(1, 1), observe(None, remaining=1))


KEEP, SUMS = st.floats(0.0625, 1.0, width=32), st.floats(0.0, 16.0, width=32)


@settings(max_examples=60, deadline=None)
@given(
    targets=st.lists(KEEP, min_size=6, max_size=6),
    sums=st.lists(SUMS, min_size=6, max_size=6),
    counts=st.lists(st.integers(0, 16), min_size=2, max_size=2),
    left=st.lists(st.integers(1, 16), min_size=2, max_size=2),
    held=st.lists(st.booleans(), min_size=6, max_size=6),
    holds=st.booleans(),
    ruled_out=st.sets(st.integers(0, len(SPACE) - 1)),
    seed=st.integers(0, 99),
)
def test_numpy_allows_and_observes_what_torch_does(targets, sums, counts, left, held, holds, ruled_out, seed):
    ledger = BudgetLedger(2, SPACE)
    ledger.episode_sums, ledger.episode_counts = torch.tensor(sums).view(2, 3), torch.tensor(counts).float()
    ledger.held_counts = torch.tensor(held).view(2, 3) * ledger.episode_counts[:, None] if holds else None
    observation = replace(
        observe([1, 1, 1], remaining=1.0),
        targets=torch.tensor(targets).view(2, 3),
        ledger=ledger,
        remaining=torch.tensor(left).float(),
        held=torch.tensor(held).view(2, 3) if holds else None,
        previous_action=torch.zeros(2, dtype=torch.long),
    )
    torch.manual_seed(seed)
    scores = torch.randn(2, len(SPACE))
    scores[0, list(ruled_out)] = float("-inf")
    bounds = HardBudgetProcessor().bounds(observation)
    allowed = hard_budget.within(bounds, SPACE)
    assert torch.equal(allowed, hard_budget._within_on_device(*bounds, SPACE))
    found, expected = (restrict(x, allowed) for x in (scores, scores.double()))
    assert torch.equal(found.double(), expected) and found.data_ptr() != scores.data_ptr()
    inputs = 0.25, torch.tensor([True, False]), observation.targets
    assert torch.equal(ledger._scalars_by_numpy(*inputs), ledger._scalars_by_torch(*inputs))
