# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""`fixed:place`: levels by the place in a page, from measured costs, in `generate` and in evaluations."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sol_hf import SOLConfig, SOLForCausalLM, evaluate_budgets, make_controller
from sol_hf.budget.place_costs import PlaceCosts, levels_by_place
from sol_hf.controllers.names import parse_controller
from sol_hf.controllers.place import PlaceController
from sol_hf.evaluation.places import measure_places, place_schedule, places_of
from sol_hf.evaluation.sweep.entries import parse_entries
from support.bases import tiny_base
from support.cases import SETTINGS, control, prompts


PAGE = 4
RUN = dict(max_new_tokens=24, do_sample=False, return_dict_in_generate=True, pad_token_id=0)


@pytest.fixture
def model():
    return control(tiny_base("llama"), page_size=PAGE)


def dear_first(space) -> PlaceCosts:
    """The first place of a page is ten times as dear as the others."""
    factors = (10.0, 1.0, 1.0, 1.0)
    tables = (
        [[factor * (1 - x / max(levels)) for x in levels] for factor in factors] for levels in space.levels.values()
    )
    return PlaceCosts(dict(zip(space.axis_names, tables, strict=True)))


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 3), st.integers(2, 4), st.integers(0, 10**6), st.floats(0, 1))
def test_no_other_levels_with_these_means_cost_less(places, size, seed, share):
    generator = torch.Generator().manual_seed(seed)
    levels = torch.randperm(8, generator=generator)[:size].double().add(1) / 8
    costs = torch.rand(places, size, generator=generator, dtype=torch.float64)
    mean = float(levels.min() + share * (levels.max() - levels.min()))
    low, high, part = levels_by_place(costs, levels, mean)
    assert float((low + part * (high - low)).mean()) == pytest.approx(mean, abs=1e-9)
    assert ((part > 0) <= (high > low)).all() and int((part > 0).sum()) <= 1
    at = [{float(level): float(costs[p][(levels <= level)].min()) for level in levels} for p in range(places)]
    spent = sum(
        (1 - s) * at[p][float(a)] + s * at[p][float(b)]
        for p, (a, b, s) in enumerate(zip(low, high, part, strict=True))
    )
    for other in itertools.product(levels.tolist(), repeat=places):
        if sum(other) / places <= mean + 1e-12:
            assert spent <= sum(at[p][level] for p, level in enumerate(other)) + 1e-9


@pytest.mark.parametrize("budget_mode", ["hard", "soft"])
def test_a_generation_spends_on_the_dear_place(model, budget_mode):
    model.config.place_costs = dear_first(model.action_space).to_json()
    controller = make_controller("fixed:place", model)
    ids = prompts(2, 13)
    output = model.generate(ids, token_keep=0.5, bits=8, controller=controller, budget_mode=budget_mode, **RUN)
    keep = model.action_space.values[output.actions][..., 0]
    place = (ids.shape[1] - 1 + torch.arange(keep.shape[1])) % PAGE
    assert (keep[:, place == 0] == 1).all() and keep[:, place != 0].mean() < 0.4
    assert output.realised[:, 0].tolist() == pytest.approx([0.5, 0.5], abs=0.02)
    assert torch.equal(
        output.actions[:1],
        model.generate(ids[:1], token_keep=0.5, bits=8, controller=controller, budget_mode=budget_mode, **RUN).actions,
    )


def test_the_schedule_of_an_evaluation_meets_its_means_and_is_the_controller(model):
    space, costs = model.action_space, dear_first(model.action_space)
    counted, places = torch.ones(3, 8, dtype=torch.bool), places_of((9, 10, 11), 8, PAGE)
    means = torch.tensor([0.45, 0.7, 0.5])
    ratios = space.ratios[place_schedule(costs, means, counted, places, space)]
    assert (ratios.mean(dim=(0, 1)) - means).abs().max() <= 0.5 / 24 + 1e-6
    assert (ratios[places == 0][:, 0] == 1).all()
    low, high, share = PlaceController(costs).plan(means[None], space)
    mixed = low + share * (high - low)
    assert mixed.mean(dim=2)[0].tolist() == pytest.approx(means.tolist(), abs=1e-6)


def test_costs_are_measured_stored_and_used_by_evaluations(model, tmp_path):
    length = SETTINGS["episode_length"]
    blocks = torch.randint(3, 99, (3, 20 + 2 * length + 1), generator=torch.Generator().manual_seed(4))
    costs = measure_places(model, blocks, 20)
    assert costs.places == PAGE and all(row[-1] == 0 for table in costs.costs.values() for row in table)
    model.config.place_costs = costs.to_json()
    model.save_pretrained(tmp_path)
    loaded = SOLForCausalLM.from_pretrained(tmp_path, base=model.base)
    assert loaded.config.place_costs == costs.to_json()
    budgets = [(0.5, 0.6, 8.0)]
    (stored,) = evaluate_budgets(loaded, blocks, 20, budgets, others=("fixed:place",))
    model.config.place_costs = None
    (measured,) = evaluate_budgets(model, blocks, 20, budgets, others=("fixed:place",))
    assert stored.others[0].realised == pytest.approx(stored.realised, abs=0.2)
    assert stored.others[0].losses == pytest.approx(measured.others[0].losses, abs=1e-4)  # of the same texts
    assert stored.others[0].losses != stored.fixed_losses


def test_with_a_criterion_that_chooses_tokens_it_is_the_fixed_schedule():
    model = control(tiny_base("llama"), criterion="sketch")
    output, fixed = (
        model.generate(prompts(1), token_keep=0.5, controller=make_controller(name, model), **RUN)
        for name in ("fixed:place", "fixed")
    )
    assert torch.equal(output.actions, fixed.actions)


def test_without_costs_the_error_says_how_to_measure_them(model):
    with pytest.raises(ValueError, match=r"`fixed:place` needs the costs.*measure_places.py POLICY TEXTS --save"):
        make_controller("fixed:place", model)


def test_the_name_has_a_colon_and_takes_no_number():
    assert parse_controller("fixed:place") == ("fixed:place", 0)
    assert [str(entry) for entry in parse_entries(["fixed:place", "fixed"])] == ["fixed:place", "fixed"]
    with pytest.raises(ValueError, match="`fixed` takes no number"):
        parse_controller("fixed:3")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda costs: costs.pop("bits"), "names the axes token_keep, mlp_keep, bits"),
        (lambda costs: costs.update(bits=[[1.0]]), r"of `bits` are 4 lists \(`page_size`\) of 3 numbers"),
        (lambda costs: costs["bits"][0].__setitem__(0, -1.0), "0 or more"),
        (lambda costs: costs["bits"][0].__setitem__(0, "x"), "numbers, 0 or more"),
    ],
)
def test_costs_that_do_not_fit_are_refused(change, message):
    levels = dict(token_keep=[0.2, 1.0], mlp_keep=[0.5, 1.0], bits=[4, 8, 16])
    costs = {axis: [[0.1] * len(own) for _ in range(PAGE)] for axis, own in levels.items()}
    SOLConfig(**levels, page_size=PAGE, place_costs=costs)
    change(costs)
    with pytest.raises(ValueError, match=message):
        SOLConfig(**levels, page_size=PAGE, place_costs=costs)
