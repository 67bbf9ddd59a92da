# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The table of actions and the budgets over it."""

import math

import pytest
import torch

from sol_hf import ActionSpace, Budget, BudgetError


SMALL = dict(token_keep=[0.2, 1.0], mlp_keep=[0.6, 0.8, 1.0], bits=[8, 16])


def small() -> ActionSpace:
    return ActionSpace(**SMALL)


def test_table_is_row_major():
    assert small().table == (
        (0.2, 0.6, 8),
        (0.2, 0.6, 16),
        (0.2, 0.8, 8),
        (0.2, 0.8, 16),
        (0.2, 1.0, 8),
        (0.2, 1.0, 16),
        (1.0, 0.6, 8),
        (1.0, 0.6, 16),
        (1.0, 0.8, 8),
        (1.0, 0.8, 16),
        (1.0, 1.0, 8),
        (1.0, 1.0, 16),
    )


def test_published_grid_has_1560_actions():
    space = ActionSpace([k / 10 for k in range(1, 11)], [m / 100 for m in range(40, 101, 5)], list(range(5, 17)))
    assert len(space) == 1560
    assert space.dense_id == 1559
    assert space.tag(0) == "k010-s040-q05"
    assert space.tag(1559) == "k100-s100-q16"


def test_values_and_ratios():
    space = small()
    assert space.values.dtype == space.ratios.dtype == torch.float32
    assert torch.equal(space.values, torch.tensor(space.table, dtype=torch.float32))
    assert torch.equal(space.ratios, space.values / torch.tensor([1.0, 1.0, 16.0]))
    assert space.min_ratio().tolist() == pytest.approx([0.2, 0.6, 0.5])
    assert space.max_ratio().tolist() == [1.0, 1.0, 1.0]


def test_index_inverts_the_table():
    space = small()
    assert [space.index(*action) for action in space.table] == list(range(len(space)))


def test_index_of_a_level_that_is_none_names_the_axis():
    with pytest.raises(ValueError, match=r"0\.7 is not a level of `mlp_keep`.*\[0\.6, 0\.8, 1\.0\]"):
        small().index(0.2, 0.7, 8)


@pytest.mark.parametrize(
    ("levels", "dense_id"),
    [
        (([0.5, 1.0], [0.5, 1.0], [8, 16]), 7),
        (([1.0, 0.5], [1.0, 0.5], [16, 8]), 0),
        (([0.5, 1.0], [0.5, 0.9], [8, 16]), 7),  # no (1, 1, 16): the largest level of every axis
        (([0.9, 0.5], [0.5, 1.0], [8, 16]), 3),
    ],
)
def test_dense_id(levels, dense_id):
    assert ActionSpace(*levels).dense_id == dense_id


@pytest.mark.parametrize("action", range(12))
def test_tag_names_the_levels(action):
    token_keep, mlp_keep, bits = small().table[action]
    tag = small().tag(action)
    parts = [int(part[1:]) for part in tag.split("-")]
    assert [part[0] for part in tag.split("-")] == ["k", "s", "q"]
    assert parts == [round(100 * token_keep), round(100 * mlp_keep), bits]


def test_tables_are_copied_to_a_device_once():
    space = small()
    device = torch.device("cpu")
    assert torch.equal(space.ratios_on(device), space.ratios)
    assert torch.equal(space.values_on(device), space.values)
    assert space.ratios_on(device) is space.ratios_on(device)
    assert space.values_on(device) is not space.ratios_on(device)


def test_equality_and_hash_go_by_the_table():
    assert small() == small()
    assert hash(small()) == hash(small())
    assert small() != ActionSpace([0.2, 1.0], [0.6, 0.8, 1.0], [9, 16])
    assert small() != small().table


def test_repr_evaluates_to_the_same_space():
    assert eval(repr(small()), {"ActionSpace": ActionSpace}) == small()


@pytest.mark.parametrize("axis", ["token_keep", "mlp_keep", "bits"])
@pytest.mark.parametrize(
    ("levels", "message"),
    [
        ([], "needs at least one level"),
        ([0.5, 0.5], "repeated level"),
        ([0.0], "must lie in"),
        ([-0.1], "must lie in"),
        ([17], "must lie in"),
        ([math.nan], "must lie in"),
        ([math.inf], "must lie in"),
    ],
)
def test_malformed_levels_are_refused(axis, levels, message):
    with pytest.raises(ValueError, match=rf"`{axis}`.*{message}"):
        ActionSpace(**{**SMALL, axis: levels})


def test_bits_must_be_whole():
    with pytest.raises(ValueError, match="whole numbers"):
        ActionSpace([1.0], [1.0], [8.5, 16])


@pytest.mark.parametrize("bits", [[2], [16]])
def test_bits_include_both_ends(bits):
    assert ActionSpace([1.0], [1.0], bits).table[0][2] == bits[0]


@pytest.mark.parametrize("axis", ["token_keep", "mlp_keep", "bits"])
@pytest.mark.parametrize("value", [0, -1, 16.5, math.nan, math.inf, "half", True, [], [0.5, None], [[0.5]], object()])
def test_malformed_budget(axis, value):
    with pytest.raises(BudgetError, match=f"`{axis}`"):
        Budget(**{axis: value})


def test_budget_error_is_a_value_error():
    assert issubclass(BudgetError, ValueError)


@pytest.mark.parametrize("axis", ["token_keep", "mlp_keep"])
def test_fractions_above_one_are_refused(axis):
    with pytest.raises(BudgetError, match=rf"`{axis}` must lie in \(0, 1\], got 1.5"):
        Budget(**{axis: 1.5})


@pytest.mark.parametrize("given", [[0.5], (0.5,), torch.tensor(0.5), torch.tensor([0.5]), 0.5])
def test_one_number_however_it_comes(given):
    budget = Budget(token_keep=given)
    assert budget == Budget(token_keep=0.5)
    assert hash(budget) == hash(Budget(token_keep=0.5))
    assert budget.rows is None


@pytest.mark.parametrize("given", [[8, 12], (8, 12), torch.tensor([8, 12])])
def test_a_number_per_row(given):
    budget = Budget(token_keep=0.5, bits=given)
    assert budget.rows == 2
    assert budget == Budget(token_keep=0.5, bits=(8, 12))


def test_axes_must_agree_on_the_rows():
    with pytest.raises(BudgetError, match=r"different numbers of rows: \[2, 3\]"):
        Budget(token_keep=[0.5, 0.6], bits=[8, 9, 10])


def test_budget_is_frozen():
    with pytest.raises(AttributeError):
        Budget(token_keep=0.5).token_keep = 1.0


@pytest.mark.parametrize(
    ("budget", "controlled", "is_dense"),
    [
        (Budget(), set(), True),
        (Budget(1, 1.0, 16), {"token_keep", "mlp_keep", "bits"}, True),
        (Budget(bits=16), {"bits"}, True),
        (Budget(bits=[16, 8]), {"bits"}, False),
        (Budget(token_keep=0.99), {"token_keep"}, False),
    ],
)
def test_controlled_and_dense(budget, controlled, is_dense):
    assert budget.controlled == controlled
    assert budget.is_dense is is_dense


def test_check_accepts_what_a_schedule_can_meet():
    budget = Budget(token_keep=[0.2, 1.0], bits=8)
    assert budget.check(small()) is None
    assert budget.check(small(), rows=2) is None


def test_check_names_the_axis_below_the_smallest_level():
    with pytest.raises(BudgetError, match=r"`mlp_keep`=0\.5 is below the smallest level of the action space, 0\.6"):
        Budget(mlp_keep=[0.9, 0.5]).check(small())


def test_check_refuses_an_unset_axis_that_cannot_stay_dense():
    space = ActionSpace([0.2, 1.0], [0.6, 1.0], [4, 8])
    with pytest.raises(BudgetError, match=r"`bits` is not set.*largest level of the action space is 8"):
        Budget(token_keep=0.5).check(space)
    assert Budget(token_keep=0.5, bits=8).check(space) is None


def test_check_compares_the_rows():
    with pytest.raises(BudgetError, match="2 rows, but the input has 3"):
        Budget(bits=[8, 9]).check(small(), rows=3)


def test_targets_are_in_ratio_units_and_dense_where_unset():
    targets = Budget(mlp_keep=0.7, bits=[8, 12]).targets(2)
    torch.testing.assert_close(targets, torch.tensor([[1.0, 0.7, 0.5], [1.0, 0.7, 0.75]]))


def test_targets_are_repeated_row_by_row():
    targets = Budget(token_keep=[0.2, 0.4]).targets(6)
    torch.testing.assert_close(targets[:, 0], torch.tensor([0.2, 0.2, 0.2, 0.4, 0.4, 0.4]))
    with pytest.raises(BudgetError, match="2 rows, but the input has 3"):
        Budget(token_keep=[0.2, 0.4]).targets(3)
