# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Costs, evaluations and sweeps of a policy with a fourth axis."""

import json

import pytest
import torch

from sol_hf import BudgetError, Controller, evaluate_budgets, format_summary, format_table, summarize_sweep, to_rows
from sol_hf.budget.axes import AXES
from sol_hf.controllers.registry import CONTROLLERS, register_controller
from sol_hf.costs.axis_costs import AXIS_COSTS, AxisCost
from sol_hf.costs.compute_costs import ComputeCosts
from sol_hf.evaluation.kv_pollution import impulse_responses
from sol_hf.evaluation.policy_evaluation import BUDGETS, budgets_within, check_budgets
from sol_hf.evaluation.sweep.entries import parse_entries
from sol_hf.evaluation.sweep.method import SWEEP_METHODS
from sol_hf.evaluation.sweep.methods.random import random_schedules
from sol_hf.evaluation.sweep.sweep import Sweep, SweepConfig
from sol_hf.evaluation.sweep.table import axes_of, columns_of, key_of, read_table
from support.cases import sol_model
from support.extra_axis import four_axes
from support.fourth_axis_runs import NAMES, four_axis_model, fourth_axis


CONTEXT, STEPS, BLOCKS = 20, 6, 4
WANTED = ((0.5, 0.7, 8.0, 0.7), (0.3, 0.9, 12.0, 1.0))


def blocks_of(number: int = BLOCKS) -> torch.Tensor:
    return torch.randint(3, 99, (number, CONTEXT + STEPS + 1), generator=torch.Generator().manual_seed(4))


class Cheapest(Controller):
    """Always takes the action of the least mean ratio."""

    def __call__(self, observation):
        return -observation.action_space.ratios.mean(dim=-1).expand(observation.rows, -1)


@pytest.fixture(scope="module")
def evaluated():
    with fourth_axis():
        found = evaluate_budgets(four_axis_model(), blocks_of(), CONTEXT, WANTED)
        return found, to_rows(found), format_table(found), found[0].net_keep


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """Folder of a sweep that ended while the axis was registered, and its summary as JSON holds it."""
    folder = tmp_path_factory.mktemp("four")
    config = SweepConfig(("policy", "fixed", "random:3", "drift", "oracle", "cheapest"), WANTED, CONTEXT)
    with fourth_axis():
        register_controller("cheapest", lambda model, number: Cheapest())
        try:
            Sweep(four_axis_model(), blocks_of(), config, folder).run()
        finally:
            CONTROLLERS.unregister("cheapest")
        return folder, json.loads(json.dumps(summarize_sweep(read_table(folder), read_table(folder, "blocks"))))


class TestBudgets:
    def test_published_budgets_leave_the_axis_dense(self, mlp_noise):
        found = budgets_within(four_axes())
        assert {budget[3] for budget in found} == {1.0} and len(found) == len(BUDGETS)
        assert found[0] == (0.2, 0.5, 6, 1.0)
        assert budgets_within(four_axes(), [(0.5, 0.7, 8, 0.1)]) == [(0.5, 0.7, 8, 0.5)]

    def test_targets_have_a_column_per_axis(self, mlp_noise):
        assert check_budgets(WANTED, four_axes()).tolist() == [
            pytest.approx([0.5, 0.7, 0.5, 0.7]),
            pytest.approx([0.3, 0.9, 0.75, 1.0]),
        ]

    def test_a_budget_of_another_length_is_refused(self, mlp_noise):
        with pytest.raises(ValueError, match=r"one number per axis \(token_keep, mlp_keep, bits, mlp_noise\)"):
            check_budgets([(0.5, 0.7, 8)], four_axes())
        with pytest.raises(ValueError, match="one number per axis"):
            budgets_within(four_axes(), [(0.5, 0.7)])
        with pytest.raises(BudgetError, match="`mlp_noise`=0.4 is below the smallest level"):
            check_budgets([(0.5, 0.7, 8, 0.4)], four_axes())


class TestEvaluation:
    def test_what_was_spent_has_a_number_per_axis(self, evaluated):
        (first, second), _, _, net_keep = evaluated
        assert first.axes == NAMES and first.requested == WANTED[0]
        for numbers in (first.realised, first.fixed_realised, first.mean_overshoot, first.worst_overshoot):
            assert len(numbers) == 4
        assert first.fixed_realised == pytest.approx(first.realised, abs=0.5)
        ratios = [first.realised[0], first.realised[1], first.realised[2] / 16, first.realised[3]]
        assert net_keep == pytest.approx(sum(ratios) / 4)

    def test_rows_and_table_have_the_axis(self, evaluated):
        found, rows, table, _ = evaluated
        assert [row["mlp_noise"] for row in rows] == [0.7, 1.0]
        assert rows[0]["realised_mlp_noise"] == found[0].realised[3]
        assert table.splitlines()[2].startswith("| 0.5 / 0.7 / 8 / 0.7 | ")


class TestSweep:
    def test_tables_have_the_columns_of_the_axes(self, swept):
        folder, _ = swept
        for name in ("sweep", "blocks", "trials"):
            table = read_table(folder, name)
            assert table.column_names == list(columns_of(name, NAMES))
            assert table.column_names[:6] == list(key_of(NAMES))
        assert axes_of(read_table(folder).column_names) == NAMES and "mlp_noise" not in AXES
        rows = [row for row in read_table(folder) if row["controller"] == "policy"]
        assert [tuple(row[axis] for axis in NAMES) for row in rows] == list(WANTED)

    def test_every_controller_is_run_at_what_the_policy_spent(self, swept):
        rows = list(read_table(swept[0]))
        spent = {row["token_keep"]: row["realised_mlp_noise"] for row in rows if row["controller"] == "policy"}
        others = [row for row in rows if row["controller"] not in ("policy", "dense")]
        assert len(others) == 2 * 5
        for row in others:
            assert row["target_mlp_noise"] == pytest.approx(spent[row["token_keep"]], abs=1e-6)
        dense = next(row for row in rows if row["controller"] == "dense")
        assert (dense["mlp_noise"], dense["target_mlp_noise"], dense["realised_mlp_noise"]) == (1, 1, 1)

    def test_a_registered_controller_is_run_step_by_step(self, swept):
        rows = [row for row in read_table(swept[0]) if row["controller"] == "cheapest"]
        assert [row["realised_mlp_noise"] for row in rows] == [0.5, 1.0]  # the second budget leaves this axis dense
        assert [row["realised_token_keep"] for row in rows] == pytest.approx([0.2, 0.2])

    def test_the_policy_alone_pays_for_the_policy(self, swept):
        rows = {row["controller"]: row for row in read_table(swept[0]) if row["token_keep"] == 0.5}
        model = sol_model()
        policy = ComputeCosts.of(model, CONTEXT).policy_bytes
        assert rows["cheapest"]["bytes_per_token"] < rows["policy"]["bytes_per_token"] - 0.5 * policy

    def test_the_summary_names_the_axis(self, swept):
        _, summary = swept
        own = summary["controllers"]["policy"]
        assert list(own["budget_error"]) == list(NAMES)
        assert set(own["front"][0]) == {"net_keep", *NAMES, "log_perplexity"}
        assert "mlp_noise" in summary["policy_against"]["cheapest"]["best"]
        text = format_summary(summary)
        errors = [line.split(" | ")[7] for line in text.splitlines()[3:] if line.startswith("| `")]
        assert errors and all(error.count("/") == 3 for error in errors)

    def test_a_random_schedule_keeps_the_means_of_every_axis(self, mlp_noise):
        space = four_axes()
        fixed = torch.randint(len(space), (3, STEPS), generator=torch.Generator().manual_seed(1))
        drawn = random_schedules(fixed, torch.ones(STEPS, dtype=torch.bool), space, 5, seed=2)
        ordered = [space.ratios[x].sort(dim=-2).values for x in (drawn, fixed[:, None].expand_as(drawn))]
        torch.testing.assert_close(*ordered)
        assert not torch.equal(drawn[:, 0], drawn[:, 1])


def test_a_registered_method_takes_the_place_of_step_by_step():
    class Nothing(SWEEP_METHODS["fixed"]):
        number, least = "number of nothings", 2

    SWEEP_METHODS.register("nothing", Nothing)
    try:
        (entry,) = parse_entries(["nothing"])
        assert (entry.method, str(entry), entry.number) == (Nothing, "nothing:2", 2)
        with pytest.raises(ValueError, match="the number of nothings of `nothing` is a whole number, at least 2"):
            parse_entries(["nothing:1"])
    finally:
        SWEEP_METHODS.unregister("nothing")
    with pytest.raises(ValueError, match="Unknown controller 'nothing'"):
        parse_entries(["nothing"])


def test_a_number_goes_to_the_controller():
    register_controller("picky", lambda model, number: Cheapest(), number="taste")
    try:
        assert [str(entry) for entry in parse_entries(["picky", "picky:3"])] == ["picky", "picky:3"]
        with pytest.raises(ValueError, match="the taste of `picky` is a whole number"):
            parse_entries(["picky:x"])
    finally:
        CONTROLLERS.unregister("picky")


class TestCosts:
    def test_an_axis_without_an_entry_saves_nothing(self):
        with fourth_axis():
            model = four_axis_model()
            costs, space = ComputeCosts.of(model, CONTEXT), model.action_space
        action = space.index(1.0, 1.0, 16, 0.5)
        assert float(costs.bytes[action]) == costs.dense_bytes and float(costs.flops[action]) == costs.dense_flops

    def test_an_entry_lowers_the_counts_of_every_action(self):
        class Half(AxisCost):
            def at(self, level):
                return lambda step: step.times(mlp_input_weights=level, mlp_last_weights=level)

        with fourth_axis():
            model = four_axis_model()
            space, plain = model.action_space, ComputeCosts.of(model, CONTEXT)
            AXIS_COSTS.register("mlp_noise", Half)
            try:
                costs = ComputeCosts.of(model, CONTEXT)
            finally:
                AXIS_COSTS.unregister("mlp_noise")
        mlp = 3 * 32 * 64 * 2
        saved = (costs.dense_bytes - costs.bytes)[space.index(1.0, 1.0, 16, 0.5)]
        assert float(saved) == pytest.approx(8 * mlp / 2)
        both = (costs.dense_bytes - costs.bytes)[space.index(1.0, 0.5, 16, 0.5)]
        left = (2 / 3 * 0.5 + 1 / 3) * 0.5  # a third of the MLP does not take the hidden state
        assert float(both) == pytest.approx(8 * mlp * (1 - left))
        assert torch.equal(costs.bytes[space.ids_of(torch.tensor([0, 0, 0, 1]))], plain.bytes[1])

    def test_only_dense_on_all_axes_needs_no_refresh(self):
        with fourth_axis():
            model = four_axis_model()
            costs, space = ComputeCosts.of(model, CONTEXT), model.action_space
        actions = torch.full((2, STEPS), space.dense_id)
        assert costs.per_token(actions, with_policy=False)["refresh_overhead"] == 0
        actions[0, 1] = space.index(1.0, 1.0, 16, 0.5)
        assert costs.per_token(actions, with_policy=False)["refresh_overhead"] == 0.5


def test_an_impulse_response_names_the_axis():
    with fourth_axis():
        (found,) = impulse_responses(
            four_axis_model(), blocks_of(2), CONTEXT, [(1.0, 1.0, 16, 0.5)], begin=1, length=2, kv_refresh=[False]
        )
    rows = found.to_rows()
    assert found.axes == NAMES and rows[0]["mlp_noise"] == 0.5
    assert rows[1]["divergence"] > 1e-3 and rows[5]["divergence"] == 0


COLUMNS_BEFORE = """controller seed token_keep mlp_keep bits target_token_keep target_mlp_keep target_bits
    realised_token_keep realised_mlp_keep realised_bits net_keep perplexity log_perplexity log_perplexity_error
    divergence budget_error refresh_overhead blocks tokens bytes_per_token flops_per_token nominal_bytes_per_token
    dense_bytes_per_token dense_flops_per_token seconds""".split()


def test_tables_of_the_published_axes_are_as_they_were(tmp_path):
    table = Sweep(sol_model(), blocks_of(), SweepConfig(("fixed",), ((0.5, 0.7, 8.0),), CONTEXT), tmp_path).run()
    assert table.column_names == COLUMNS_BEFORE
    assert axes_of(COLUMNS_BEFORE) == NAMES[:3]
    assert sorted(path.name for path in (tmp_path / "parts").iterdir()) == [
        "dense.safetensors",
        "fixed-0-00000.safetensors",
    ]
