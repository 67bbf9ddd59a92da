# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Figures of a policy with a fourth axis."""

import pytest

from sol_hf import ActionMap, plot_action_map, plot_pareto, plot_random_search, plot_realised, render_action_map
from sol_hf.figures.action_map import Token, compute_of
from sol_hf.figures.axis_labels import level_text, ratio_terms
from sol_hf.figures.sweep_points import paired_gains
from support.extra_axis import FOUR_LEVELS


NAMES = tuple(FOUR_LEVELS)
BUDGETS = [(0.3, 0.6, 8.0, 0.5), (0.3, 0.6, 8.0, 1.0)]


def row_of(controller: str, budget: tuple[float, ...], loss: float) -> dict:
    row = {"controller": controller, "seed": 0, "log_perplexity": loss, "log_perplexity_error": 0.1}
    row |= {name: value for name, value in zip(NAMES, budget, strict=True)}
    row |= {f"{kind}_{name}": row[name] for kind in ("target", "realised") for name in NAMES}
    return row | {"net_keep": (budget[0] + budget[1] + budget[2] / 16 + budget[3]) / 4}


@pytest.fixture
def rows() -> list[dict]:
    return [
        row_of(name, budget, 3 - n / 4) for name in ("policy", "fixed", "mine") for n, budget in enumerate(BUDGETS)
    ]


@pytest.mark.parametrize("is_registered", [False, True])
def test_realised_has_four_panels(rows, is_registered, request):
    if is_registered:
        request.getfixturevalue("mlp_noise")
    figure = plot_realised(rows)
    assert [axes.get_title() for axes in figure.axes] == list(NAMES)
    assert [list(line.get_xdata()) for line in figure.axes[3].lines[1:]] == [[0.5, 1.0]] * 3


def test_budgets_that_differ_on_the_fourth_axis_are_two_points(rows):
    top, bottom = plot_pareto(rows).axes
    assert len(top.containers) == 6
    assert bottom.get_xlabel() == "net keep: mean of token_keep, mlp_keep, bits / 16 and mlp_noise, as spent"
    assert [text.get_text() for text in top.get_legend().get_texts()] == ["policy", "fixed", "mine"]
    blocks = [
        {key: row[key] for key in ("controller", "seed", *NAMES)} | {"losses": [row["log_perplexity"]] * 2}
        for row in rows
    ]
    assert set(paired_gains(blocks, NAMES)) == {(name, budget) for name in ("policy", "mine") for budget in BUDGETS}


def test_random_search_names_four_numbers(rows):
    trials = [
        dict(zip(NAMES, budget, strict=True)) | {"log_perplexity": 3 + n / 10} for budget in BUDGETS for n in range(3)
    ]
    (axes,) = plot_random_search(rows, trials).axes
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0.3\n0.6\n8\n0.5", "0.3\n0.6\n8\n1"]
    assert axes.get_xlabel() == "budget: token_keep, mlp_keep, bits, mlp_noise"


def test_an_action_map_shows_the_axis(mlp_noise):
    cheap, dense = (0.2, 0.5, 4.0, 0.5), (1.0, 1.0, 16.0, 1.0)
    tokens = (Token("a", cheap, -0.5, NAMES), Token("b", dense, -0.1, NAMES))
    found = ActionMap("base", "policy", cheap, cheap, "before", tokens, NAMES)
    assert compute_of(cheap, NAMES) == pytest.approx(0.3625) == tokens[0].compute
    assert tokens[0].tooltip.startswith("token_keep 0.20, mlp_keep 0.50, bits 4, mlp_noise 0.50: compute 0.36")
    assert found.spending.endswith("mlp_noise 0.5 of 0.5") and found.scale == (0.35, 1.0)
    assert "mean of token_keep, mlp_keep, bits / 16, mlp_noise." in render_action_map(found)
    assert plot_action_map(found).axes


def test_labels_of_axes(mlp_noise):
    assert ratio_terms(NAMES) == "token_keep, mlp_keep, bits / 16, mlp_noise"
    assert (level_text("bits", 8.0), level_text("mlp_noise", 0.5)) == ("bits 8", "mlp_noise 0.50")
    assert level_text("not_registered", 0.5) == "not_registered 0.50"
