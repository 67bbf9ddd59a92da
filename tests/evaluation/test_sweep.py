# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Sweeps: their tables, how they are resumed, and which arguments they refuse."""

import dataclasses
import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sol_hf import ActionSpace, Budget, BudgetError, EntropyController
from sol_hf.controllers.fixed import fixed_schedule
from sol_hf.evaluation.policy_evaluation import evaluate_budgets
from sol_hf.evaluation.sweep.entries import SweepEntry, parse_entries
from sol_hf.evaluation.sweep.folder import SweepFolder
from sol_hf.evaluation.sweep.method import SWEEP_METHODS
from sol_hf.evaluation.sweep.methods.random import random_schedules
from sol_hf.evaluation.sweep.methods.step_by_step import StepByStep
from sol_hf.evaluation.sweep.sweep import PUBLISHED_GRID, Sweep, SweepConfig
from sol_hf.evaluation.sweep.table import SweepError, columns_of, read_table
from support.bases import tiny_base
from support.cases import AXES, SETTINGS, control


CONTEXT, STEPS, BLOCKS = 20, SETTINGS["episode_length"], 5
BUDGETS = ((0.5, 0.5, 8.0), (0.3, 1.0, 12.0), (0.9, 0.6, 4.0))
CONFIG = SweepConfig(
    controllers=("fixed", "policy", "random:5", "entropy", "drift", "oracle", "oracle:2"),
    budgets=BUDGETS,
    context_length=CONTEXT,
    seeds=(0, 3),
    batch_size=2,
    schedules_at_once=2,
)


SMALL = dataclasses.replace(
    CONFIG, controllers=("policy", "fixed", "random:3", "oracle"), budgets=BUDGETS[:2], seeds=(0,)
)


def model_of(family="llama"):
    """A policy that takes many different actions, on a tiny base in float64."""
    model = control(tiny_base(family, torch.float64))
    generator = torch.Generator().manual_seed(1)
    for parameter in model.policy.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype) * 0.3
    return model


def blocks_of(number=BLOCKS, length=CONTEXT + STEPS + 1) -> torch.Tensor:
    return torch.randint(3, 99, (number, length), generator=torch.Generator().manual_seed(4))


def timeless(table) -> list[dict]:
    """Rows without measured times."""
    return [{name: value for name, value in row.items() if name != "seconds"} for row in table]


def triple(row, prefix="") -> tuple[float, ...]:
    return tuple(row[f"{prefix}{axis}"] for axis in AXES)


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """A sweep's folder and table."""
    folder = tmp_path_factory.mktemp("swept")
    return folder, Sweep(model_of(), blocks_of(), CONFIG, folder).run()


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Table of a small finished sweep."""
    return Sweep(model_of(), blocks_of(), SMALL, tmp_path_factory.mktemp("small")).run()


def rows_of(table, controller) -> list[dict]:
    return [row for row in table if row["controller"] == controller]


def test_there_is_a_row_per_controller_budget_and_seed(swept):
    folder, table = swept
    names = ["policy", "fixed", "random:5", "random:5", "entropy", "drift", "oracle", "oracle:2"]
    assert len(table) == 1 + 3 * len(names)
    found = {(row["controller"], row["seed"], triple(row)) for row in table}
    seeds = {"random:5": (0, 3)}
    expected = {(name, seed, budget) for name in names for seed in seeds.get(name, (0,)) for budget in BUDGETS}
    assert found == expected | {("dense", 0, (1, 1, 16))}
    sweep_columns, block_columns, trial_columns = (list(columns_of(x, AXES)) for x in ("sweep", "blocks", "trials"))
    assert table.column_names == sweep_columns
    assert read_table(folder).to_dict() == table.to_dict()
    lines = (folder / "sweep.csv").read_text().splitlines()
    assert lines[0] == ",".join(sweep_columns) and len(lines) == 1 + len(table)
    blocks, trials = read_table(folder, "blocks"), read_table(folder, "trials")
    assert (blocks.column_names, trials.column_names) == (block_columns, trial_columns)
    assert len(blocks) == len(table) and len(trials) == 3 * 2 * 5


def test_policy_and_fixed_are_those_of_evaluate_budgets(swept):
    folder, table = swept
    found = evaluate_budgets(model_of(), blocks_of(), CONTEXT, BUDGETS, batch_size=2, dense=True)
    blocks = {(row["controller"], triple(row)): row for row in read_table(folder, "blocks")}
    for row, expected in zip(rows_of(table, "policy"), found, strict=True):
        assert triple(row) == expected.requested == triple(row, "target_")
        assert triple(row, "realised_") == pytest.approx(expected.realised, abs=1e-6)
        assert row["net_keep"] == pytest.approx(expected.net_keep, abs=1e-6)
        assert row["perplexity"] == pytest.approx(expected.perplexity, rel=1e-5)
        assert row["budget_error"] == pytest.approx(expected.budget_error, abs=1e-6)
        assert blocks["policy", triple(row)]["losses"] == pytest.approx(expected.losses, abs=1e-5)
    for row, expected in zip(rows_of(table, "fixed"), found, strict=True):
        assert triple(row, "realised_") == pytest.approx(expected.fixed_realised, abs=1e-6)
        assert row["perplexity"] == pytest.approx(expected.fixed_perplexity, rel=1e-5)
    (dense,) = rows_of(table, "dense")
    assert dense["perplexity"] == pytest.approx(found[0].dense_perplexity, rel=1e-5)
    assert dense["divergence"] == 0 == dense["refresh_overhead"]


def test_all_others_are_asked_for_what_the_policy_spent(swept):
    _, table = swept
    spent = {triple(row): triple(row, "realised_") for row in rows_of(table, "policy")}
    for row in table:
        if row["controller"] not in ("policy", "dense"):
            assert triple(row, "target_") == pytest.approx(spent[triple(row)], abs=1e-5)
            target = torch.tensor(triple(row, "target_")) / torch.tensor([1, 1, 16])
            assert row["net_keep"] == pytest.approx(float(target.mean()), abs=0.06)


def test_without_the_policy_others_run_at_the_budgets(tmp_path):
    config = dataclasses.replace(CONFIG, controllers=("fixed", "dense"))
    table = Sweep(model_of(), blocks_of(), config, tmp_path).run()
    for row in rows_of(table, "fixed"):
        assert triple(row, "target_") == pytest.approx(triple(row), abs=1e-6)
        assert triple(row, "realised_") == pytest.approx(triple(row), abs=0.1)


def test_the_figures_of_a_row_belong_together(swept):
    folder, table = swept
    for row, block in zip(table, read_table(folder, "blocks"), strict=True):
        losses = torch.tensor(block["losses"], dtype=torch.float64)
        assert row["log_perplexity"] == pytest.approx(float(losses.mean()))
        assert row["log_perplexity_error"] == pytest.approx(float(losses.std()) / BLOCKS**0.5)
        assert row["perplexity"] == pytest.approx(math.exp(row["log_perplexity"]))
        assert row["divergence"] == pytest.approx(sum(block["divergences"]) / BLOCKS)
        assert row["tokens"] == BLOCKS * STEPS and row["blocks"] == BLOCKS
        assert row["seconds"] > 0


def test_the_divergence_is_that_of_the_logits(swept):
    folder, _ = swept
    model, blocks = model_of(), blocks_of()
    found = next(row for row in read_table(folder, "blocks") if row["controller"] == "policy")
    options = dict(context_length=CONTEXT, return_logits=True)
    sparse = model.score(blocks, budget=Budget(*triple(found)), budget_mode="soft", **options).logits.log_softmax(-1)
    dense = model.score(blocks, **options).logits.log_softmax(-1)
    expected = (dense.exp() * (dense - sparse)).sum(-1).mean(-1)
    assert found["divergences"] == pytest.approx(expected.tolist(), abs=1e-5)


def test_entropy_is_the_controller_of_that_name(swept):
    folder, table = swept
    model, blocks = model_of(), blocks_of()
    for row in rows_of(table, "entropy"):
        targets = {axis: row[f"target_{axis}"] for axis in AXES}
        scored = model.score(
            blocks, context_length=CONTEXT, controller=EntropyController(), budget_mode="soft", **targets
        )
        assert row["log_perplexity"] == pytest.approx(-scored.logprobs.mean().item(), abs=1e-5)


def test_the_best_of_the_random_schedules_counts(swept):
    folder, table = swept
    trials = read_table(folder, "trials").to_list()
    fixed = {triple(row): row for row in rows_of(table, "fixed")}
    for row in rows_of(table, "random:5"):
        mine = [t["log_perplexity"] for t in trials if t["seed"] == row["seed"] and triple(t) == triple(row)]
        assert len(mine) == 5 and row["log_perplexity"] == pytest.approx(min(mine))
        assert triple(row, "realised_") == pytest.approx(triple(fixed[triple(row)], "realised_"))
    first, second = ([t["log_perplexity"] for t in trials if t["seed"] == seed] for seed in (0, 3))
    assert first != second and len(set(first)) > 5


def test_the_oracle_stays_closer_to_the_dense_model(swept):
    _, table = swept
    by_name = {name: sum(r["divergence"] for r in rows_of(table, name)) for name in ("oracle", "oracle:2", "fixed")}
    assert by_name["oracle"] < 0.9 * by_name["fixed"] and by_name["oracle:2"] < 0.9 * by_name["fixed"]


@settings(max_examples=50, deadline=None)
@given(st.data(), st.integers(1, 4), st.integers(1, 8), st.integers(0, 10**6))
def test_random_schedules_have_the_means_of_the_fixed_one(data, blocks, steps, seed):
    space = ActionSpace([0.2, 0.5, 1.0], [0.4, 1.0], [4, 8, 16])
    counted = torch.ones(steps, dtype=torch.bool)
    counted[: data.draw(st.integers(0, steps - 1))] = False
    means = torch.tensor([data.draw(st.floats(low, 1)) for low in (0.2, 0.4, 0.25)])
    fixed = fixed_schedule(means, blocks, counted, space)
    drawn = random_schedules(fixed, counted, space, 3, seed)
    assert drawn.shape == (blocks, 3, steps) and (drawn[:, :, ~counted] == space.dense_id).all()
    ordered = [space.ratios[x].sort(dim=-2).values for x in (drawn, fixed[:, None].expand_as(drawn))]
    torch.testing.assert_close(*ordered)
    assert torch.equal(drawn, random_schedules(fixed, counted, space, 3, seed))


@pytest.mark.parametrize("stop", ["fixed", "random", "oracle"])
def test_a_stopped_sweep_continues(small, tmp_path, monkeypatch, stop):
    def fail(self, targets, seed):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(SWEEP_METHODS[stop], "run", fail)
        Sweep(model_of(), blocks_of(), SMALL, tmp_path).run()
    done = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "parts").iterdir()}
    assert "policy-0-00000.safetensors" in done and not (tmp_path / "sweep.parquet").exists()
    with pytest.raises(SweepError, match="the sweep has not ended"):
        read_table(tmp_path)
    table = Sweep(model_of(), blocks_of(), SMALL, tmp_path).run()
    assert timeless(table) == timeless(small)
    assert all((tmp_path / "parts" / part).stat().st_mtime_ns == time for part, time in done.items())
    assert not list(tmp_path.rglob("*.partial"))


def test_a_finished_sweep_runs_nothing_again(tmp_path, monkeypatch):
    config = dataclasses.replace(CONFIG, controllers=("policy", "fixed"))
    table = Sweep(model_of(), blocks_of(), config, tmp_path).run()
    for method in (StepByStep, *(method for _, method in SWEEP_METHODS.items())):
        monkeypatch.setattr(method, "run", lambda *_: pytest.fail("run again"))
    assert Sweep(model_of(), blocks_of(), config, tmp_path).run().to_dict() == table.to_dict()


def test_a_damaged_part_is_made_again(tmp_path, caplog):
    config = dataclasses.replace(CONFIG, controllers=("policy", "fixed"))
    table = Sweep(model_of(), blocks_of(), config, tmp_path).run()
    part = tmp_path / "parts" / "fixed-0-00000.safetensors"
    part.write_bytes(part.read_bytes()[:-20])
    assert timeless(Sweep(model_of(), blocks_of(), config, tmp_path).run()) == timeless(table)


def test_a_damaged_table_is_named(tmp_path):
    config = dataclasses.replace(CONFIG, controllers=("fixed",))
    table = Sweep(model_of(), blocks_of(), config, tmp_path).run()
    path = tmp_path / "sweep.parquet"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(SweepError, match="sweep.parquet is damaged .* give the command of the sweep again"):
        read_table(tmp_path)
    Sweep(model_of(), blocks_of(), config, tmp_path).run()
    assert read_table(tmp_path).to_dict() == table.to_dict()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (dict(config=dataclasses.replace(CONFIG, hard=True)), "another hard:"),
        (dict(config=dataclasses.replace(CONFIG, budgets=BUDGETS[:2], seeds=(1,))), "another budgets, seeds:"),
        (dict(blocks=blocks_of(4)), "another blocks, text:"),
        (dict(model=control(tiny_base("llama", torch.float64))), "another policy:"),
        (dict(model=model_of("qwen3")), "another base"),
    ],
)
def test_the_folder_of_another_sweep_is_refused(swept, change, named):
    folder, _ = swept
    arguments = dict(model=model_of(), blocks=blocks_of(), config=CONFIG) | change
    with pytest.raises(SweepError, match=f"holds a sweep with {named}"):
        Sweep(**arguments, folder=folder)


def test_the_folder_of_a_sweep_with_another_horizon_is_refused(tmp_path):
    config, model = dataclasses.replace(CONFIG, controllers=("policy",), hard=True), model_of()
    Sweep(model, blocks_of(), config, tmp_path)
    model.generation_config.budget_horizon = "episode"
    with pytest.raises(SweepError, match="holds a sweep with another hard:"):
        Sweep(model, blocks_of(), config, tmp_path)
    Sweep(model, blocks_of(), config, tmp_path / "other")
    stored = json.loads((tmp_path / "other" / "settings.json").read_text())
    assert stored["hard"] is True, "as in folders from before there was a horizon, which kept every episode"


def test_a_folder_with_something_else_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(SweepError, match="is not empty and holds no sweep"):
        SweepFolder(tmp_path, {})


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            dict(controllers=("polcy",)),
            ValueError,
            "Unknown controller 'polcy': it must be one of .*oracle.* Did you mean 'policy'",
        ),
        (dict(controllers=("fixed", "random:some")), ValueError, "a whole number, at least 1"),
        (dict(controllers=("random:0",)), ValueError, "at least 1"),
        (dict(controllers=("entropy:3",)), ValueError, "`entropy` takes no number"),
        (dict(controllers=("fixed", "fixed")), ValueError, "Named twice: fixed"),
        (dict(controllers=("dense",)), ValueError, "no controller to run"),
        (dict(budgets=((0.1, 0.5, 8),)), BudgetError, "below the smallest level"),
        (dict(budgets=()), ValueError, "no budget"),
        (dict(budgets=(BUDGETS[0], BUDGETS[0])), ValueError, "A budget is named twice"),
        (dict(context_length=CONTEXT + 1), ValueError, f"a block has {CONTEXT + STEPS + 2} tokens"),
        (dict(seeds=()), ValueError, "at least one"),
        (dict(schedules_at_once=0), ValueError, "at least 1"),
    ],
)
def test_wrong_arguments_are_refused(change, error, message, tmp_path):
    with pytest.raises(error, match=message):
        Sweep(model_of(), blocks_of(), dataclasses.replace(CONFIG, **change), tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_names_of_entries():
    assert [str(x) for x in parse_entries(["fixed", " random:20", "policy", "oracle", "oracle:4"])] == [
        "policy",
        "fixed",
        "random:20",
        "oracle",
        "oracle:4",
    ]
    assert SweepEntry.parse("random") == SweepEntry("random", 1) and SweepEntry.parse("oracle:0").number == 0


def test_the_published_grid():
    assert len(set(PUBLISHED_GRID)) == 567
    assert (PUBLISHED_GRID[0], PUBLISHED_GRID[-1]) == ((0.15, 0.4, 5), (0.95, 1.0, 13))


def test_settings_are_readable(swept):
    written = json.loads((swept[0] / "settings.json").read_text())
    assert written["budgets"] == [list(budget) for budget in BUDGETS] and written["blocks"] == BLOCKS
