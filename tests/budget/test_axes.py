# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Axes and their registry, and what an added axis does to spaces, budgets and the ledger."""

import math
import pickle
from dataclasses import replace

import pytest
import torch

from sol_hf import ActionSpace, Budget, BudgetError, register_axis
from sol_hf.budget.axes import AXES, BITS, MLP_KEEP, PUBLISHED_AXES, TOKEN_KEEP, axes_named
from sol_hf.budget.calibration import budget_for, check_calibration, point_keys
from sol_hf.budget.ledger import BudgetLedger
from sol_hf.budget.scalars import ScalarColumns
from support.extra_axis import MLP_NOISE, four_axes, registered


class TestAxis:
    @pytest.mark.parametrize("name", ["", "mlp noise", "2bits", "mlp-keep"])
    def test_a_name_must_be_a_keyword(self, name):
        with pytest.raises(ValueError, match="is used as a keyword"):
            replace(MLP_NOISE, name=name)

    @pytest.mark.parametrize(("dense", "scale"), [(2.0, 1.0), (0.0, 1.0), (-1.0, 1.0), (17.0, 16.0)])
    def test_the_dense_value_must_be_a_ratio(self, dense, scale):
        with pytest.raises(ValueError, match=r"dense value of `mlp_noise` must be in \(0, 1\] in ratio units"):
            replace(MLP_NOISE, dense=dense, scale=scale)

    def test_intervals_as_people_write_them(self):
        assert [axis.interval for axis in PUBLISHED_AXES] == ["(0, 1]", "(0, 1]", "2..16"]
        assert replace(MLP_NOISE, lowest=0.5, includes_lowest=True).interval == "[0.5, 1]"

    def test_which_numbers_are_values(self):
        assert [MLP_NOISE.contains(x) for x in (0.0, 1e-9, 1.0, 1.01, math.nan, math.inf)] == [
            False,
            True,
            True,
            False,
            False,
            False,
        ]
        assert BITS.contains(2) and BITS.contains(8.5) and not BITS.contains(1.99)
        with pytest.raises(BudgetError, match=r"`mlp_noise` must lie in \(0, 1\], got 0.0"):
            MLP_NOISE.check_values([0.5, 0.0])

    @pytest.mark.parametrize(
        ("axis", "levels", "message"),
        [
            (MLP_NOISE, [], "`mlp_noise` needs at least one level"),
            (MLP_NOISE, [0.5, 0.5], "`mlp_noise` has a repeated level"),
            (MLP_NOISE, [0.5, 2.0], "`mlp_noise` must lie in"),
            (BITS, [4, 8.5], "`bits` must be whole numbers"),
        ],
    )
    def test_levels_that_cannot_be(self, axis, levels, message):
        with pytest.raises(ValueError, match=message):
            axis.check_levels(levels)

    def test_default_levels_are_levels_and_end_dense(self):
        for axis in (*PUBLISHED_AXES, MLP_NOISE):
            axis.check_levels(axis.default_levels)
            assert max(axis.default_levels) == axis.dense
            axis.check_values(axis.budget_range)

    def test_short_names_of_levels(self):
        assert (TOKEN_KEEP.tag(0.5), MLP_KEEP.tag(0.05), BITS.tag(8), MLP_NOISE.tag(1.0)) == (
            "k050",
            "s005",
            "q08",
            "n100",
        )


class TestRegistry:
    def test_the_published_axes_come_first(self):
        assert PUBLISHED_AXES == (TOKEN_KEEP, MLP_KEEP, BITS)
        with registered():
            assert list(AXES) == ["token_keep", "mlp_keep", "bits", "neuron_keep", "mlp_noise"]
        assert list(AXES) == ["token_keep", "mlp_keep", "bits", "neuron_keep"]

    def test_registering_returns_the_axis_and_a_second_time_changes_nothing(self, mlp_noise):
        assert register_axis(mlp_noise) is mlp_noise
        assert AXES["mlp_noise"] is mlp_noise

    def test_a_name_is_taken_once(self, mlp_noise):
        with pytest.raises(ValueError, match="The axis 'mlp_noise' exists already"):
            register_axis(replace(mlp_noise, letter="z"))
        with pytest.raises(ValueError, match="The axis 'bits' exists already"):
            register_axis(replace(mlp_noise, name="bits"))

    def test_axes_by_name_in_the_order_of_the_names(self, mlp_noise):
        assert axes_named(["mlp_noise", "bits"]) == (mlp_noise, BITS)
        with pytest.raises(ValueError, match="Unknown axis 'mlp_nose'.*Did you mean 'mlp_noise'"):
            axes_named(["mlp_nose"])


@pytest.mark.usefixtures("mlp_noise")
class TestSpaceOfFourAxes:
    def test_the_added_axis_is_the_last_column_and_varies_fastest(self):
        space = ActionSpace([0.2, 1.0], [1.0], [8, 16], mlp_noise=[0.5, 1.0])
        assert space.axis_names == ("token_keep", "mlp_keep", "bits", "mlp_noise")
        assert space.table[:3] == ((0.2, 1.0, 8, 0.5), (0.2, 1.0, 8, 1.0), (0.2, 1.0, 16, 0.5))
        assert (len(space), space.dense_id, space.level_counts) == (8, 7, (2, 1, 2, 2))
        assert space.dense == (1.0, 1.0, 16.0, 1.0)
        assert space.tag(0) == "k020-s100-q08-n050"
        assert space.index(0.2, 1.0, 16, mlp_noise=0.5) == space.index(0.2, 1.0, 16, 0.5) == 2
        assert eval(repr(space), {"ActionSpace": ActionSpace}) == space

    def test_it_differs_from_the_space_without_it(self):
        assert four_axes() != ActionSpace.of({k: v for k, v in four_axes().levels.items() if k != "mlp_noise"})

    def test_it_differs_from_a_space_with_its_columns_in_another_order(self):
        with registered(replace(MLP_NOISE, name="head_keep", letter="h")):
            further: dict[str, list] = {"mlp_noise": [0.5, 1.0], "head_keep": [0.5, 1.0]}
            swapped = dict(reversed(further.items()))
            published: dict[str, list] = {"token_keep": [1.0], "mlp_keep": [1.0], "bits": [16]}
            assert ActionSpace.of(published | further) == ActionSpace.of(published | further)
            assert ActionSpace.of(published | further) != ActionSpace.of(published | swapped)

    def test_ids_and_level_indices_are_inverse(self):
        ids = torch.arange(len(four_axes()))
        indices = four_axes().level_indices(ids)
        assert torch.equal(four_axes().ids_of(indices), ids)
        columns = four_axes().by_axis(four_axes().values[ids])
        assert torch.equal(columns["mlp_noise"], torch.tensor([0.5, 1.0])[indices[:, 3]])

    def test_a_space_without_levels_of_an_added_axis_does_not_have_it(self):
        assert ActionSpace([1.0], [1.0], [16]).axis_names == ("token_keep", "mlp_keep", "bits")


def test_an_axis_that_is_not_registered_is_refused_by_space_and_budget():
    with pytest.raises(ValueError, match="Unknown axis 'mlp_noise'"):
        ActionSpace([1.0], [1.0], [16], mlp_noise=[0.5])
    with pytest.raises(ValueError, match="Unknown axis 'mlp_noise'"):
        Budget(mlp_noise=0.5)


def test_a_misspelt_axis_without_a_target_is_refused():
    with pytest.raises(ValueError, match="Unknown axis 'token_kep'.*Did you mean 'token_keep'"):
        Budget(token_kep=None)


@pytest.mark.usefixtures("mlp_noise")
class TestBudgetOfFourAxes:
    def test_it_has_a_target_by_name(self):
        budget = Budget(token_keep=0.5, mlp_noise=[0.5, 0.75])
        assert (budget.mlp_noise, budget.rows, budget.bits) == ((0.5, 0.75), 2, None)
        assert budget.controlled == {"token_keep", "mlp_noise"} and not budget.is_dense
        assert repr(budget) == "Budget(token_keep=0.5, mlp_noise=(0.5, 0.75))"
        assert pickle.loads(pickle.dumps(budget)) == budget
        assert Budget(mlp_noise=1.0).is_dense and Budget(mlp_noise=1.0).leaves_dense("mlp_noise")

    def test_targets_are_columns_of_the_space(self):
        targets = Budget(bits=8, mlp_noise=[0.5, 0.75]).targets(4, space=four_axes())
        expected = torch.tensor([[1, 1, 0.5, 0.5]] * 2 + [[1, 1, 0.5, 0.75]] * 2)
        torch.testing.assert_close(targets, expected)
        torch.testing.assert_close(Budget().targets(1, space=four_axes()), torch.ones(1, 4))

    def test_a_space_that_lacks_the_axis_cannot_meet_it(self):
        with pytest.raises(BudgetError, match="no axis `mlp_noise`: its axes are token_keep, mlp_keep, bits"):
            Budget(mlp_noise=0.75).check(ActionSpace([1.0], [1.0], [16]))
        Budget(mlp_noise=0.75).check(four_axes())

    def test_what_no_schedule_can_meet(self):
        with pytest.raises(BudgetError, match="`mlp_noise`=0.4 is below the smallest level"):
            Budget(mlp_noise=0.4).check(four_axes())
        with pytest.raises(BudgetError, match="`mlp_noise` is not set, so it would stay dense"):
            Budget(bits=8).check(ActionSpace([1.0], [1.0], [8, 16], mlp_noise=[0.5, 0.7]))


@pytest.mark.usefixtures("mlp_noise")
class TestLedgerOfFourAxes:
    def test_sums_and_scalars_have_a_column_for_it(self):
        ledger = BudgetLedger(2, four_axes())
        ledger.record(torch.tensor([[0.2, 0.5, 0.25, 0.5], [1.0, 1.0, 1.0, 1.0]]), torch.tensor([True, False]))
        assert ledger.episode_sums.shape == ledger.total_sums.shape == (2, 4)
        assert ledger.total_means()[1].tolist() == [1, 1, 1, 1]
        targets = torch.tensor([[0.5, 0.6, 0.75, 0.8]]).expand(2, 4)
        scalars = ledger.scalars(1, 4, torch.tensor([True, False]), targets)
        expected = [[0.5, 1, 0.5, 0.6, 0.75, 0.8, -0.3, -0.1, -0.5, -0.3], [0.5, 0, 0.5, 0.6, 0.75, 0.8, 0, 0, 0, 0]]
        torch.testing.assert_close(scalars, torch.tensor(expected))

    def test_scalars_stand_where_their_columns_say(self):
        columns, ledger = ScalarColumns(4), BudgetLedger(1, four_axes())
        ledger.record(torch.full((1, 4), 0.5), torch.tensor([True]))
        targets = torch.tensor([[0.5, 0.6, 0.75, 0.8]])
        scalars = ledger.scalars(2, 4, torch.tensor([True]), targets)
        assert scalars.shape[-1] == columns.page_fill == 10
        assert torch.equal(scalars[:, columns.targets], targets)
        assert torch.equal(scalars[:, columns.drift], 0.5 - targets)
        assert scalars[:, columns.progress].tolist() == [[0.75]]


def test_the_published_axes_have_the_published_eight_scalars():
    columns = ScalarColumns(3)
    assert (columns.progress, columns.targets, columns.drift) == (slice(0, 1), slice(2, 5), slice(5, 8))
    assert columns.page_fill == 8


def test_a_mean_is_divided_by_the_largest_level_in_ratio_units():
    with registered(replace(MLP_NOISE, dense=8.0, scale=8.0, mean_over_largest=True)):
        space = ActionSpace([1.0], [0.4, 0.8], [16], mlp_noise=[2.0, 4.0])
        assert space.mean_divisors == (1.0, 0.8, 1.0, 0.5)
        ledger = BudgetLedger(1, space)
        ledger.record(torch.tensor([[1.0, 0.4, 1.0, 0.25]]), torch.tensor([True]))
        scalars = ledger.scalars(0, 4, torch.tensor([True]), torch.zeros(1, 4))
        torch.testing.assert_close(scalars[0, ScalarColumns(4).drift], torch.tensor([1.0, 0.5, 1.0, 0.5]))


@pytest.mark.usefixtures("mlp_noise")
class TestCalibrationOfFourAxes:
    first = dict(net_keep=0.5, token_keep=0.2, mlp_keep=0.5, bits=8, mlp_noise=0.5, log_perplexity=3.0)
    second = dict(net_keep=0.8, token_keep=0.6, mlp_keep=0.7, bits=10, mlp_noise=0.75, log_perplexity=2.0)

    def test_its_points_have_the_axes_of_the_space(self):
        assert point_keys(four_axes()) == tuple(self.first)
        check_calibration([self.first, self.second], four_axes())
        published = ActionSpace([0.2, 1.0], [0.5, 1.0], [8, 16])
        with pytest.raises(ValueError, match="has the keys net_keep, token_keep, mlp_keep, bits, log_perplexity, got"):
            check_calibration([self.first], published)
        with pytest.raises(ValueError, match="has the keys .* mlp_noise, log_perplexity, got"):
            check_calibration([{k: v for k, v in self.first.items() if k != "mlp_noise"}], four_axes())

    def test_a_budget_is_read_off_for_every_axis(self):
        points = [dict(sorted(point.items())) for point in (self.first, self.second)]  # as a file has them
        assert budget_for(0.5, points) == Budget(0.2, 0.5, 8, mlp_noise=0.5)
        between, above = budget_for(0.65, points), budget_for([0.9, 1.0], points)
        assert between.mlp_noise == pytest.approx(0.625) and between.bits == pytest.approx(9)
        assert above.mlp_noise == pytest.approx((0.875, 1.0)) and above.token_keep == pytest.approx((0.8, 1.0))
