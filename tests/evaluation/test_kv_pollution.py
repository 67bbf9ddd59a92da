# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The impulse response of KV pollution on tiny bases, and the figure of it."""

import pytest
import torch
from matplotlib.colors import to_hex

from sol_hf import ImpulseResponse, ScheduleController, impulse_responses, plot_impulse_responses
from support.cases import ACTIONS, FIRST_CONTROLLABLE, prompts, sol_model


CONTEXT, STEPS, BEGIN, LENGTH = 12, 20, 1, 2
"""Episodes have 6 steps: the disturbed steps 1 and 2 are refreshed before step 6."""


@pytest.fixture(scope="module")
def model():
    return sol_model()


@pytest.fixture(scope="module")
def blocks():
    return prompts(rows=5, length=CONTEXT + STEPS + 1)


@pytest.fixture(scope="module")
def responses(model, blocks):
    return impulse_responses(model, blocks, CONTEXT, [ACTIONS["cheapest"]], BEGIN, LENGTH, batch_size=2)


def response(divergence, damage=None, begin=1, length=2, refresh_every=None) -> ImpulseResponse:
    divergence = torch.tensor(divergence)
    damage = divergence if damage is None else torch.tensor(damage)
    return ImpulseResponse((0.2, 0.4, 3.0), begin, length, refresh_every, divergence, damage)


def test_dense_steps_do_no_damage(model, blocks):
    for found in impulse_responses(model, blocks, CONTEXT, [ACTIONS["dense"]], BEGIN, LENGTH):
        assert found.divergence.shape == found.damage.shape == (5, STEPS)
        assert not found.divergence.any() and not found.damage.any()


def test_the_disturbed_steps_and_those_after_them_are_damaged(responses):
    without, _ = responses
    assert not without.divergence[:, :BEGIN].any() and not without.damage[:, :BEGIN].any()
    assert (without.divergence[:, BEGIN : BEGIN + LENGTH] > 0).all()
    assert (without.divergence[:, BEGIN + LENGTH :] > 0).all() and without.refreshes == ()


def test_a_refresh_ends_the_damage(responses):
    without, refreshed = responses
    assert refreshed.refreshes == (6,) and refreshed.refresh_every == 6
    torch.testing.assert_close(refreshed.divergence[:, :6], without.divergence[:, :6], rtol=0, atol=0)
    assert refreshed.divergence[:, 6:].max() < 1e-9 < 1e-4 < without.divergence[:, 6:].mean()
    assert refreshed.damage[:, 6:].abs().max() < 1e-6


def test_a_disturbance_over_two_episodes_is_refreshed_twice(model, blocks):
    (found,) = impulse_responses(model, blocks, CONTEXT, [ACTIONS["cheapest"]], 4, 4, kv_refresh=[True])
    assert found.refreshes == (6, 12)
    assert (found.divergence[:, 8:12] > 1e-9).all() and found.divergence[:, 12:].max() < 1e-9


def test_it_is_the_difference_of_two_scores(model, blocks, responses):
    space = model.action_space
    schedule = torch.full((STEPS, 1), space.dense_id)
    options = dict(context_length=CONTEXT, return_logits=True, kv_refresh=False)
    dense = model.score(blocks, controller=ScheduleController(schedule), **options)
    schedule[BEGIN : BEGIN + LENGTH] = space.index(*ACTIONS["cheapest"])
    disturbed = model.score(blocks, controller=ScheduleController(schedule), **options)
    expected, found = (x.logits.double().log_softmax(-1) for x in (dense, disturbed))
    divergence = (expected.exp() * (expected - found)).sum(-1)
    torch.testing.assert_close(responses[0].divergence.double(), divergence, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(responses[0].damage, dense.logprobs - disturbed.logprobs, rtol=1e-3, atol=1e-5)


def test_several_actions_and_the_order_of_the_responses(model, blocks):
    actions = [ACTIONS["bits"], ACTIONS["mlp_keep"]]
    found = impulse_responses(model, blocks[:2], CONTEXT, actions, BEGIN, LENGTH)
    assert [(x.action, x.refresh_every) for x in found] == [(a, r) for a in actions for r in (None, 6)]


def test_summaries():
    found = response([[0.0, 4.0, 2.0, 0.6, 0.4, 0.02], [0.0, 2.0, 4.0, 0.8, 0.4, 0.02]])
    assert found.end == 3 and found.steps == 6
    assert found.aftermath == pytest.approx((3.0, (0.7 + 0.4 + 0.02) / 3), abs=1e-6)
    assert [found.lasting(share) for share in (0.3, 0.2, 0.01, 0.001)] == [0, 1, 2, None]
    assert response([[0.0, 1.0, 1.0]] * 2, refresh_every=6).refreshes == ()


def test_rows_have_mean_and_standard_error():
    found = response([[0.0, 4.0, 2.0, 0.5], [0.0, 2.0, 2.0, 0.3]], [[0.0, 1.0, 3.0, 1.0], [0.0, 1.0, 1.0, -1.0]])
    rows = found.to_rows()
    assert [row["step"] for row in rows] == [0, 1, 2, 3] and [row["disturbed"] for row in rows] == [
        False,
        True,
        True,
        False,
    ]
    assert rows[1] == {
        **dict(token_keep=0.2, mlp_keep=0.4, bits=3.0, kv_refresh=False, step=1, disturbed=True, blocks=2),
        **dict(divergence=3.0, divergence_error=pytest.approx(1.0), damage=1.0, damage_error=0.0),
    }
    assert (rows[3]["damage"], rows[3]["damage_error"]) == (0.0, pytest.approx(1.0))


@pytest.mark.parametrize(
    "changed, message",
    [
        (dict(actions=[]), "at least one action"),
        (dict(actions=[(0.3, 0.4, 3)]), "0.3 is not a level of `token_keep`"),
        (dict(begin=19, length=2), r"need.* 35 tokens at least"),
        (dict(length=0), "`length` \\(0\\) must be at least 1"),
        (dict(context_length=3), f"more than {FIRST_CONTROLLABLE - 1} keys"),
        (dict(blocks=prompts(rows=1, length=33)), "2 blocks or more, got 1"),
    ],
)
def test_wrong_input_is_refused(model, blocks, changed, message):
    given = dict(blocks=blocks, context_length=CONTEXT, actions=[ACTIONS["bits"]], begin=BEGIN, length=LENGTH)
    with pytest.raises(ValueError, match=message):
        impulse_responses(model, **(given | changed))


class TestFigure:
    def test_lines_are_means_from_the_first_disturbed_step(self, responses):
        figure = plot_impulse_responses(responses)
        for axes, name in zip(figure.axes, ("divergence", "damage"), strict=True):
            lines = [line for line in axes.lines if line.get_marker() == "."]
            assert [line.get_linestyle() for line in lines] == ["-", "--"]
            for line, found in zip(lines, responses, strict=True):
                assert list(line.get_xdata()) == list(range(BEGIN, STEPS))
                means = getattr(found, name).double().mean(dim=0)[BEGIN:]
                assert torch.tensor(line.get_ydata()).nan_to_num().tolist() == pytest.approx(means.tolist())

    def test_bands_are_standard_errors(self):
        divergence = [[0.0, 4.0, 2.0, 0.5], [0.0, 2.0, 2.0, 0.3]]
        top = plot_impulse_responses([response(divergence)]).axes[0]
        (band,) = top.collections
        corners = band.get_paths()[0].vertices
        assert {round(float(y), 6) for x, y in corners if x == 3} == {0.3, 0.5}

    def test_disturbed_steps_are_shaded_and_refreshes_marked(self, responses):
        top = plot_impulse_responses(responses).axes[0]
        (shade,) = top.patches
        assert (shade.get_x(), shade.get_width()) == (BEGIN - 0.5, LENGTH)
        assert [line.get_xdata()[0] for line in top.lines if line.get_linestyle() == ":"] == [5.5]

    def test_the_legend_names_actions_and_refresh(self, responses):
        (legend,) = plot_impulse_responses(responses).legends
        names = ["token_keep 0.2, mlp_keep 0.4, bits 3", "without KV refresh", "with KV refresh"]
        assert [text.get_text() for text in legend.get_texts()] == names
        (legend,) = plot_impulse_responses(responses[:1]).legends
        assert [text.get_text() for text in legend.get_texts()] == names[:2]

    def test_actions_have_colours_of_their_own(self, model, blocks):
        actions = [ACTIONS["bits"], ACTIONS["mlp_keep"]]
        figure = plot_impulse_responses(impulse_responses(model, blocks[:2], CONTEXT, actions, BEGIN, LENGTH))
        colours = [to_hex(line.get_color()) for line in figure.axes[0].lines if line.get_marker() == "."]
        assert colours[0] == colours[1] != colours[2] == colours[3]

    def test_zeros_are_left_out_of_the_logarithm(self, model, blocks):
        dense = impulse_responses(model, blocks, CONTEXT, [ACTIONS["dense"]], BEGIN, LENGTH)
        lines = [line for line in plot_impulse_responses(dense).axes[0].lines if line.get_marker() == "."]
        assert len(lines) == 2 and all(torch.tensor(line.get_ydata()).isnan().all() for line in lines)

    def test_nothing_to_draw_or_different_steps_are_refused(self, responses):
        with pytest.raises(ValueError, match="no impulse response to draw"):
            plot_impulse_responses([])
        with pytest.raises(ValueError, match="differ in their steps"):
            plot_impulse_responses([*responses, response([[0.0, 1.0, 1.0]] * 2)])
