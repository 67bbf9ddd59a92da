# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The figures of a sweep show the numbers of its tables."""

import math

import matplotlib
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from sol_hf import plot_pareto, plot_random_search, plot_realised, save_figure
from sol_hf.figures.style import LOOKS, OTHER_LOOKS, STYLE, looks_of
from sol_hf.figures.sweep_figures import label_of
from sol_hf.figures.sweep_points import front_of, paired_gains, points_of
from support.cases import AXES


BUDGETS = [(0.3, 0.6, 8.0), (0.5, 0.7, 8.0), (0.8, 0.9, 12.0)]
LOSSES = {
    "policy": [3.0, 2.6, 2.7],
    "fixed": [3.1, 2.8, 2.5],
    "random:4": [3.15, 2.85, 2.52],
    "entropy": [3.2, 2.9, 2.6],
    "drift": [3.3, 3.0, 2.65],
}
MOVES = [-0.2, 0.0, 0.1, 0.1]
"""Added to the loss of every block, without changing the mean."""


def key(controller: str, number: int, seed: int = 0) -> dict:
    return {"controller": controller, "seed": seed} | dict(zip(AXES, BUDGETS[number], strict=True))


def sweep_row(controller: str, number: int, loss: float, seed: int = 0) -> dict:
    """A row whose controller spent a twentieth less than its target on every axis."""
    target = BUDGETS[number]
    row = key(controller, number, seed) | {"log_perplexity": loss, "log_perplexity_error": 0.1}
    row |= {f"target_{axis}": value for axis, value in zip(AXES, target, strict=True)}
    row |= {f"realised_{axis}": value * 0.95 for axis, value in zip(AXES, target, strict=True)}
    return row | {"net_keep": 0.95 * (target[0] + target[1] + target[2] / 16) / 3, "perplexity": math.exp(loss)}


@pytest.fixture
def rows():
    rows = [sweep_row(name, n, loss) for name, losses in LOSSES.items() for n, loss in enumerate(losses)]
    dense = sweep_row("dense", 0, 2.3) | dict(token_keep=1.0, mlp_keep=1.0, bits=16.0, net_keep=1.0)
    return [dense, *rows]


@pytest.fixture
def blocks():
    """The policy's gains differ from block to block by 0.1 at most, while its losses differ by much more."""
    table = []
    for name, losses in LOSSES.items():
        for n, loss in enumerate(losses):
            own = [loss + 10 * i + (move if name == "policy" else 0) for i, move in enumerate(MOVES, start=-2)]
            table.append(key(name, n) | {"losses": own})
    return table


@pytest.fixture
def trials():
    values = [(n, 3.2 - n / 4 + offset) for n in range(3) for offset in (-0.05, 0.0, 0.01, 0.04)]
    return [key("random:4", n) | {"trial": 0, "log_perplexity": value} for n, value in values]


def containers(axes) -> dict[str, list[tuple[float, float]]]:
    """Points with error bars by colour: `(x, y)` each."""
    found: dict[str, list[tuple[float, float]]] = {}
    for container in axes.containers:
        line = container.lines[0]
        found.setdefault(to_hex(line.get_color()), []).extend(zip(line.get_xdata(), line.get_ydata(), strict=True))
    return found


class TestNumbers:
    def test_seeds_are_averaged(self):
        found = points_of([sweep_row("random:4", 1, 2.8, 0), sweep_row("random:4", 1, 2.9, 1)], AXES)
        (point,) = found["random:4"]
        assert (point.budget, point.log_perplexity) == (BUDGETS[1], pytest.approx(2.85))

    def test_the_front_has_what_nothing_cheaper_beats(self, rows):
        found = points_of(rows, AXES)
        assert [point.log_perplexity for point in front_of(found["policy"])] == [3.0, 2.6]
        assert [point.log_perplexity for point in front_of(found["fixed"])] == [3.1, 2.8, 2.5]

    def test_gains_are_paired_by_block(self, blocks):
        gains = paired_gains(blocks, AXES)
        mean, error = gains["policy", BUDGETS[0]]
        spread = math.sqrt(sum(move**2 for move in MOVES) / 3 / 4)
        assert (mean, error) == (pytest.approx(0.1), pytest.approx(spread))
        assert gains["drift", BUDGETS[2]] == (pytest.approx(-0.15), pytest.approx(0, abs=1e-12))
        assert not any(name == "fixed" for name, _ in gains)


class TestPareto:
    def test_points_are_those_of_the_table(self, rows):
        top, _ = plot_pareto(rows).axes
        found = containers(top)
        for name, losses in LOSSES.items():
            own = [row for row in rows if row["controller"] == name]
            expected = [x for row, loss in zip(own, losses, strict=True) for x in (row["net_keep"], math.exp(loss))]
            points = found[looks_of([name])[name].color.lower()]
            assert [x for point in points for x in point] == pytest.approx(expected)

    def test_fronts_are_joined_and_points_behind_them_hollow(self, rows):
        top, _ = plot_pareto(rows).axes
        fronts = {line.get_label(): line for line in top.lines if not line.get_label().startswith("_")}
        assert list(fronts) == ["policy", "fixed", "random, best of 4", "entropy", "drift", "dense"]
        assert list(fronts["policy"].get_ydata()) == pytest.approx([math.exp(3.0), math.exp(2.6)])
        behind = [c.lines[0] for c in top.containers if to_hex(c.lines[0].get_markerfacecolor()) == "#ffffff"]
        assert [line.get_ydata()[0] for line in behind] == pytest.approx([math.exp(2.7)])
        assert list(fronts["dense"].get_ydata()) == pytest.approx([math.exp(2.3)] * 2)

    def test_bars_are_standard_errors(self, rows):
        top, _ = plot_pareto(rows).axes
        bars = top.containers[0].lines[2][0].get_segments()[0]
        assert [y for _, y in bars] == pytest.approx([math.exp(2.9), math.exp(3.1)])

    def test_gains_over_fixed_are_below(self, rows, blocks):
        _, bottom = plot_pareto(rows, blocks).axes
        gains = containers(bottom)[LOOKS["policy"].color.lower()]
        assert [gain for _, gain in gains] == pytest.approx([0.1, 0.2, -0.2])
        bars = bottom.containers[0].lines[2][0].get_segments()[0]
        spread = math.sqrt(sum(move**2 for move in MOVES) / 3 / 4)
        assert [y for _, y in bars] == pytest.approx([0.1 - spread, 0.1 + spread])
        unpaired = containers(plot_pareto(rows).axes[1])[LOOKS["policy"].color.lower()]
        assert [gain for _, gain in unpaired] == pytest.approx([0.1, 0.2, -0.2])

    def test_without_the_fixed_schedule_there_is_one_panel(self, rows):
        figure = plot_pareto([row for row in rows if row["controller"] != "fixed"])
        assert len(figure.axes) == 1 and "net keep" in figure.axes[0].get_xlabel()


def test_realised_has_a_panel_per_axis(rows):
    figure = plot_realised(rows)
    assert [axes.get_title() for axes in figure.axes] == list(AXES)
    for axes, axis in zip(figure.axes, AXES, strict=True):
        diagonal, *lines = axes.lines
        assert diagonal.get_slope() == 1
        assert len(lines) == 5  # all but dense
        for line in lines:
            asked = [budget[AXES.index(axis)] for budget in BUDGETS]
            assert list(line.get_xdata()) == pytest.approx(asked)
            assert list(line.get_ydata()) == pytest.approx([0.95 * value for value in asked])
        assert axes.get_xlim() == axes.get_ylim()


class TestRandomSearch:
    def test_violins_span_the_trials(self, rows, trials):
        (axes,) = plot_random_search(rows, trials).axes
        assert len(axes.collections) == 3
        for body in axes.collections:
            heights = body.get_paths()[0].vertices[:, 1]
            assert (heights.min(), heights.max()) == pytest.approx((-0.05, 0.04))

    def test_marks_are_relative_to_the_mean_of_the_trials(self, rows, trials):
        (axes,) = plot_random_search(rows, trials).axes
        lines = {line.get_label(): list(line.get_ydata()) for line in axes.lines if line.get_marker() != "None"}
        assert list(lines) == ["best of 4 random", "policy", "fixed", "entropy", "drift"]
        assert lines.pop("best of 4 random") == pytest.approx([-0.05] * 3)
        for name, values in lines.items():
            assert values == pytest.approx([loss - (3.2 - n / 4) for n, loss in enumerate(LOSSES[name])])

    def test_budgets_are_in_the_order_of_what_was_spent(self, rows, trials):
        (axes,) = plot_random_search(rows, trials[::-1]).axes
        ticks = [label.get_text() for label in axes.get_xticklabels()]
        assert ticks == ["0.3\n0.6\n8", "0.5\n0.7\n8", "0.8\n0.9\n12"]

    def test_one_trial_is_no_violin(self, rows, trials):
        with pytest.raises(ValueError, match=r"budget \(0.3, 0.6, 8.0\) has one: sweep with `random:100`"):
            plot_random_search(rows, trials[3:])


@pytest.mark.parametrize("plot", [plot_pareto, plot_realised, lambda rows: plot_random_search(rows, [])])
def test_an_empty_table_is_refused(plot):
    with pytest.raises(ValueError, match="The table `sweep` has no rows, so there is nothing to draw"):
        plot([])


@pytest.mark.parametrize("plot, column", [(plot_pareto, "net_keep"), (plot_realised, "realised_bits")])
def test_a_missing_column_is_named(rows, plot, column):
    del rows[3][column]
    with pytest.raises(ValueError, match=f"The table `sweep` lacks `{column}`"):
        plot(rows)


def test_missing_columns_of_the_other_tables_are_named(rows, blocks, trials):
    del blocks[0]["losses"], trials[0]["log_perplexity"]
    with pytest.raises(ValueError, match="The table `blocks` lacks `losses`"):
        plot_pareto(rows, blocks)
    with pytest.raises(ValueError, match="The table `trials` lacks `log_perplexity`"):
        plot_random_search(rows, trials)
    with pytest.raises(ValueError, match="The table `trials` has no rows"):
        plot_random_search(rows, [])


class TestStyle:
    def test_every_controller_looks_different(self):
        names = [*LOOKS, "mine", "oracle:4", "yours"]
        looks = looks_of([*names, "mine"])
        assert [looks[name] for name in LOOKS] == list(LOOKS.values())
        assert looks_of(["random:9"]) == {"random:9": LOOKS["random"]}
        assert [looks[name] for name in ("oracle:4", "mine", "yours")] == list(OTHER_LOOKS[:3])
        assert list(looks)[:2] == ["policy", "fixed"]
        assert len({look.color for look in looks.values()}) == len({look.marker for look in looks.values()}) == 10

    def test_labels_say_what_the_number_means(self):
        labels = [label_of(name) for name in ("policy", "random:20", "oracle", "oracle:4", "mine:3")]
        assert labels == ["policy", "random, best of 20", "oracle", "oracle, 4 later steps", "mine:3"]

    def test_figures_are_written_as_png_and_svg_and_always_the_same(self, rows, tmp_path):
        first = save_figure(plot_realised(rows), tmp_path / "new" / "v1.0")
        assert [path.name for path in first] == ["v1.0.png", "v1.0.svg"]
        assert first[0].read_bytes().startswith(b"\x89PNG") and b"<svg" in first[1].read_bytes()
        again = save_figure(plot_realised(rows), tmp_path / "again")
        assert [path.read_bytes() for path in first] == [path.read_bytes() for path in again]

    def test_matplotlib_is_left_as_it_was(self, rows, tmp_path):
        before = dict(matplotlib.rcParams)
        figure = plot_pareto(rows)
        save_figure(figure, tmp_path / "pareto")
        assert isinstance(figure, Figure) and dict(matplotlib.rcParams) == before
        assert figure.axes[0].yaxis.label.get_fontsize() == STYLE["font.size"]
