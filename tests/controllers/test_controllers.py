# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Actions of controllers for given observations: schedules, random mixtures, the levels around a target."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sol_hf import (
    ActionSpace,
    Controller,
    FixedController,
    PolicyController,
    RandomController,
    ScheduleController,
    SOLConfig,
    SOLPolicyModel,
)
from sol_hf.budget.ledger import BudgetLedger
from sol_hf.controllers.fixed import fixed_schedule
from sol_hf.controllers.levels import closeness, neighbouring_levels
from support.extra_axis import four_axes
from support.observations import SPACE, observe


def test_an_observation_knows_its_rows_and_needs_its_targets():
    assert observe(rows=3).rows == 3
    with pytest.raises(ValueError, match="needs a budget"):
        observe().require_targets()
    with pytest.raises(ValueError, match="needs a budget"):
        _ = observe().scalars


def test_the_scalars_are_those_of_the_ledger_and_the_fill_of_the_page():
    targets = torch.tensor([[0.5, 0.4, 0.75]])
    space = ActionSpace([0.2, 1.0], [0.4, 0.8], [8, 16])
    observation = observe(1, space, targets, step=1, length=8)
    observation.ledger.record(torch.tensor([[0.2, 0.4, 1.0]]), torch.tensor([True]))
    expected = torch.tensor([[2 / 8, 1, 0.5, 0.4, 0.75, 0.2 - 0.5, 0.4 / 0.8 - 0.4, 1.0 - 0.75, 0.5]])
    torch.testing.assert_close(observation.scalars, expected)


def test_the_base_class_leaves_the_scores_to_others():
    with pytest.raises(NotImplementedError):
        Controller()(observe())
    assert Controller.needs_budget


def test_closeness_ranks_by_distance():
    scores = closeness(torch.tensor([[0.6, 1.0, 0.5]]), SPACE)
    exact, near, far = SPACE.index(0.6, 1.0, 8), SPACE.index(0.6, 1.0, 4), SPACE.index(0.2, 0.5, 16)
    assert scores.shape == (1, len(SPACE))
    assert scores.argmax() == exact
    torch.testing.assert_close(scores[0, [exact, near, far]], torch.tensor([0.0, -0.25, -1.4]), atol=1e-6, rtol=0)


class TestSchedule:
    def test_plays_its_steps_and_rows(self):
        schedule = torch.randint(len(SPACE), (5, 2))
        controller = ScheduleController(schedule)
        for step in range(5):
            scores = controller(observe(step=step))
            assert scores.shape == (2, len(SPACE))
            assert torch.equal(scores.argmax(-1), schedule[step])

    def test_one_column_serves_all_rows(self):
        scores = ScheduleController([[3], [7]])(observe(rows=4, step=1))
        assert scores.argmax(-1).tolist() == [7] * 4

    def test_counts_the_steps_of_the_generation_and_not_of_the_episode(self):
        controller = ScheduleController([[1], [2], [3]])
        assert controller(observe(step=0, total_step=2)).argmax(-1).tolist() == [3, 3]

    def test_an_action_that_is_ruled_out_gives_way_to_its_nearest_neighbour(self):
        scheduled = SPACE.index(0.6, 1.0, 16)
        scores = ScheduleController([[scheduled]])(observe(rows=1)).clone()
        scores[0, scheduled] = float("-inf")
        assert scores.argmax().item() in (SPACE.index(0.2, 1.0, 16), SPACE.index(1.0, 1.0, 16))

    def test_needs_no_budget(self):
        assert not ScheduleController.needs_budget

    def test_its_end_is_an_error(self):
        with pytest.raises(ValueError, match="has 2 steps, but step 3 was reached"):
            ScheduleController([[1], [2]])(observe(step=2))

    def test_other_rows_are_an_error(self):
        with pytest.raises(ValueError, match="has 2 rows, but the input has 3"):
            ScheduleController([[1, 2]])(observe(rows=3))

    @pytest.mark.parametrize("action", [-1, len(SPACE)])
    def test_an_unknown_action_is_an_error_from_the_start(self, action):
        with pytest.raises(ValueError, match=f"outside of 0..{len(SPACE) - 1}"):
            ScheduleController([[0], [action]])(observe())

    @pytest.mark.parametrize("schedule", [[1, 2], torch.zeros(2, 2), torch.zeros(1, 1, 1, dtype=torch.long)])
    def test_other_shapes_and_types_are_an_error(self, schedule):
        with pytest.raises(ValueError, match=r"action ids of shape \(steps, rows\)"):
            ScheduleController(schedule)


class TestNeighbouringLevels:
    @settings(max_examples=200, deadline=None)
    @given(
        percents=st.lists(st.integers(1, 100), min_size=1, max_size=6, unique=True),
        bits=st.lists(st.integers(2, 16), min_size=1, max_size=6, unique=True),
        targets=st.lists(st.floats(0.01, 1.0), min_size=1, max_size=4),
    )
    def test_they_enclose_the_target_and_their_mix_meets_it(self, percents, bits, targets):
        space = ActionSpace([p / 100 for p in percents], [p / 100 for p in reversed(percents)], bits)
        wanted = torch.tensor(targets)[:, None].expand(-1, 3)
        low, high, share = neighbouring_levels(wanted, space)
        for column in range(3):
            levels = sorted(space.ratios[:, column].unique().tolist())
            for row, target in enumerate(wanted[:, column].tolist()):
                below = [level for level in levels if level <= target + 1e-6] or levels[:1]
                above = [level for level in levels if level >= target - 1e-6] or levels[-1:]
                found = (low[row, column].item(), high[row, column].item())
                if target <= levels[-1] and target >= levels[0]:
                    assert found == (below[-1], below[-1] if below[-1] >= target - 1e-6 else above[0])
                    mixed = found[0] + share[row, column].item() * (found[1] - found[0])
                    assert mixed == pytest.approx(target, abs=1e-4)
                else:
                    edge = levels[0] if target < levels[0] else levels[-1]
                    assert found[0] == edge
                assert 0 <= share[row, column] <= 1

    def test_exact_values(self):
        low, high, share = neighbouring_levels(torch.tensor([[0.5, 1.0, 0.375], [0.2, 0.6, 1.0]]), SPACE)
        torch.testing.assert_close(low, torch.tensor([[0.2, 1.0, 0.25], [0.2, 0.5, 1.0]]))
        torch.testing.assert_close(high, torch.tensor([[0.6, 1.0, 0.5], [0.2, 1.0, 1.0]]))
        torch.testing.assert_close(share, torch.tensor([[0.75, 0.0, 0.5], [0.0, 0.2, 0.0]]))

    def test_targets_outside_of_the_levels_take_the_edge(self):
        space = ActionSpace([0.4, 0.6], [1.0], [16])
        low, high, share = neighbouring_levels(torch.tensor([[0.3, 1.0, 1.0], [0.9, 1.0, 1.0]]), space)
        torch.testing.assert_close(low[:, 0], torch.tensor([0.4, 0.6]))
        torch.testing.assert_close(high[:, 0], torch.tensor([0.4, 0.6]))
        assert share.tolist() == [[0, 0, 0], [0, 0, 0]]


class TestRandom:
    def episode(self, controller, targets, length=16, rows=6, space=SPACE):
        """Actions `(rows, steps)` of one episode."""
        state: dict = {}
        steps = [controller(observe(rows, space, targets, step=n, length=length, state=state)) for n in range(length)]
        return torch.stack([scores.argmax(-1) for scores in steps], dim=1)

    @settings(max_examples=40, deadline=None)
    @given(length=st.integers(1, 20), bits=st.floats(4, 16), keep=st.floats(0.2, 1.0), mlp=st.floats(0.5, 1.0))
    def test_the_right_number_of_high_and_low_levels(self, length, bits, keep, mlp):
        targets = torch.tensor([[keep, mlp, bits / 16]]).expand(6, 3)
        low, high, share = neighbouring_levels(targets, SPACE)
        ratios = SPACE.ratios[self.episode(RandomController(), targets, length)]
        assert ((ratios == low[:, None]) | (ratios == high[:, None])).all()
        number = (ratios == high[:, None]).sum(1)
        assert torch.equal(number, torch.where(high > low, torch.round(share * length).long(), length))
        off = (ratios.mean(1) - targets).abs()
        assert (off <= (high - low) / (2 * length) + 1e-5).all()

    def test_axes_rows_and_episodes_are_permuted_on_their_own(self):
        targets, controller = torch.tensor([[0.4, 0.75, 0.375]]).expand(6, 3), RandomController(seed=1)
        first, second = (SPACE.ratios[self.episode(controller, targets)] for _ in range(2))
        assert not torch.equal(first, second)
        assert len({tuple(row.flatten().tolist()) for row in first}) == 6
        above = first > first.amin(1, keepdim=True)
        assert not torch.equal(above[..., 0], above[..., 1])

    def test_a_seed_makes_it_repeatable_and_global_randomness_untouched(self):
        targets = torch.tensor([[0.4, 0.75, 0.375]]).expand(6, 3)
        one = self.episode(RandomController(seed=5), targets)
        torch.rand(3)
        assert torch.equal(one, self.episode(RandomController(seed=5), targets))
        assert not torch.equal(one, self.episode(RandomController(seed=6), targets))
        observation, state = observe(targets=targets[:2]), torch.get_rng_state()
        RandomController(seed=5)(observation)
        assert torch.equal(torch.get_rng_state(), state)

    def test_needs_a_budget(self):
        with pytest.raises(ValueError, match="needs a budget"):
            RandomController()(observe())


class TestFixed:
    rows, steps = 5, 12

    def levels(self, controller, targets, space=SPACE) -> torch.Tensor:
        """Levels `(steps, rows, axes)` in ratio units, of rows with the same targets."""
        shared = torch.tensor([targets]).expand(self.rows, -1)
        steps = [controller(observe(self.rows, space, shared, step=step, length=16)) for step in range(self.steps)]
        return torch.stack([space.ratios[scores.argmax(-1)] for scores in steps])

    @pytest.mark.parametrize("carry", [None, ("mlp_keep", "bits")])
    @pytest.mark.parametrize("targets", [(0.37, 0.61, 0.42), (0.9, 0.95, 0.3), (0.25, 0.5, 0.8)])
    def test_the_rows_of_the_upper_level_are_the_published_ones(self, carry, targets):
        levels = self.levels(FixedController(carry), targets)
        low, high, share = (x[0] for x in neighbouring_levels(torch.tensor([targets]), SPACE))
        total = share * self.rows
        for step in range(self.steps):
            dealt = torch.round(total * step)
            hands = torch.cat([torch.round(total[:1]), (torch.round(total * (step + 1)) - dealt)[1:]])
            begins = [step, hands[0] + dealt[1], hands[0] + step]
            for column, begin in enumerate(begins):
                upper = {int(begin + place) % self.rows for place in range(int(hands[column]))}
                expected = [high[column] if row in upper else low[column] for row in range(self.rows)]
                torch.testing.assert_close(levels[step, :, column], torch.stack(expected))

    def test_an_unknown_axis_is_refused(self, mlp_noise):
        with pytest.raises(ValueError, match="Unknown axis 'mlp_kept'.*Did you mean 'mlp_keep'"):
            FixedController(carry=("mlp_kept",))
        controller = FixedController(carry=("mlp_noise",))
        with pytest.raises(ValueError, match="names mlp_noise, but the axes of the action space are token_keep"):
            controller(observe(targets=torch.ones(2, 3)))


@pytest.mark.usefixtures("mlp_noise")
class TestFourAxes:
    targets = (0.37, 0.61, 0.42, 0.83)

    def test_the_scalars_have_ten_numbers_and_the_fill_of_the_page(self):
        observation = observe(2, four_axes(), torch.tensor([self.targets] * 2))
        assert observation.scalars.shape == (2, 11)
        assert torch.equal(observation.scalars[:, 2:6], observation.targets)
        assert observation.scalars[:, 10].tolist() == [0.5, 0.5]
        with pytest.raises(ValueError, match="pass `token_keep`, `mlp_keep`, `bits`, `mlp_noise` or `budget`"):
            observe(space=four_axes()).require_targets()

    def test_fixed_meets_the_target_of_an_added_axis_and_leaves_the_published_ones_alone(self):
        levels = TestFixed().levels(FixedController(), self.targets, four_axes())
        assert torch.equal(levels[..., :3], TestFixed().levels(FixedController(), self.targets[:3]))
        # the rounding of all steps together is half a row's upper level at the most, where the remainder is carried
        spread = torch.tensor([0.5, 0.5, 0.5])
        off = (levels.mean(dim=(0, 1)) - torch.tensor(self.targets))[1:].abs()
        assert (off <= spread / (2 * TestFixed.rows * TestFixed.steps) + 1e-6).all()
        by_row = levels[..., 3].mean(dim=0)
        assert (by_row - self.targets[3]).abs().max() < 0.1, "every row gets about as many upper levels"

    def test_fixed_with_every_axis_carried_meets_every_target(self):
        controller = FixedController(carry=four_axes().axis_names)
        levels = TestFixed().levels(controller, self.targets, four_axes())
        off = (levels.mean(dim=(0, 1)) - torch.tensor(self.targets)).abs()
        assert (off <= torch.tensor([0.4, 0.5, 0.5, 0.5]) / (2 * TestFixed.rows * TestFixed.steps) + 1e-6).all()

    def test_the_schedule_of_many_episodes_meets_every_target(self):
        space, counted = four_axes(), torch.tensor([False] * 2 + [True] * 6)
        schedule = fixed_schedule(torch.tensor(self.targets), 7, counted, space)
        assert (schedule[:, :2] == space.dense_id).all()
        levels = space.ratios[schedule[:, 2:]]
        off = (levels.mean(dim=(0, 1)) - torch.tensor(self.targets)).abs()
        assert (off <= torch.tensor([0.4, 0.5, 0.5, 0.5]) / (2 * 7 * 6) + 1e-6).all()
        assert levels[..., 3].unique().tolist() == [0.5, 1.0]

    def test_random_meets_every_target(self):
        space, targets = four_axes(), torch.tensor([self.targets]).expand(6, 4)
        actions = TestRandom().episode(RandomController(), targets, rows=6, space=space)
        off = (space.ratios[actions].mean(1) - targets).abs()
        assert (off <= torch.tensor([0.4, 0.5, 0.5, 0.5]) / 32 + 1e-5).all()
        upper = space.ratios[actions] > torch.tensor([0.2, 0.5, 0.25, 0.5])
        assert not torch.equal(upper[..., 1], upper[..., 3]), "axes are permuted on their own"


class TestPolicy:
    @torch.no_grad()
    def test_steps_of_an_episode_are_the_sequence_pass(self):
        config = SOLConfig(
            **{axis: list(levels) for axis, levels in SPACE.levels.items()},
            episode_length=5,
            policy_hidden_size=16,
            policy_num_heads=2,
            base_hidden_size=6,
            base_embedding_size=5,
        )
        policy = SOLPolicyModel(config).eval()
        for parameter in policy.parameters():
            parameter.normal_(std=0.3)
        controller, state, seen, scores = PolicyController(policy), {}, [], []
        ledger = BudgetLedger(2, SPACE)
        for step in range(5):
            previous = torch.full((2,), len(SPACE)) if step == 0 else scores[-1].argmax(-1)
            targets = torch.tensor([[0.5, 0.7, 0.5]]).expand(2, 3)
            seen.append(
                observe(targets=targets, step=step, length=5, state=state, previous_action=previous, ledger=ledger)
            )
            scores.append(controller(seen[-1]))
            ledger = BudgetLedger(2, SPACE)
            ledger.record(SPACE.ratios[scores[-1].argmax(-1)], torch.tensor([True, step % 2 == 0]))
        whole = policy(
            hidden_states=torch.stack([o.hidden_state for o in seen], 1),
            token_embeddings=torch.stack([o.token_embedding for o in seen], 1),
            scalars=torch.stack([o.scalars for o in seen], 1),
            previous_actions=torch.stack([o.previous_action for o in seen], 1),
        ).logits
        torch.testing.assert_close(torch.stack(scores, 1), whole, atol=1e-5, rtol=1e-5)
        assert scores[0].dtype == torch.float32
        assert set(state) == {"cache"}
