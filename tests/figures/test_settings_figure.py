# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The figure of settings shows the figures of the table."""

from dataclasses import replace

import pytest

from sol_hf.evaluation.settings import SettingQuality
from sol_hf.figures.settings_figure import plot_settings


def result(divergence: float, share: float, **setting) -> SettingQuality:
    return SettingQuality(setting, (divergence, divergence / 10), (0.0, 0.1), 0.9, share)


def test_settings_that_differ_in_numbers_are_one_line():
    table = [
        result(0.4, 0.9, token_keep=0.2),
        result(0.2, 0.8, token_keep=0.3),
        result(0.1, 0.9, token_keep=0.2, anchor_pages=True),
        result(0.0, 1.0, token_keep=1.0),
    ]
    axes = plot_settings(table).axes[0]
    lines = {container.get_label(): container.lines[0].get_xydata().tolist() for container in axes.containers}
    assert lines == {"token_keep": [[0.8, 0.2], [0.9, 0.4]], "token_keep (anchor_pages)": [[0.9, 0.1]]}
    assert axes.get_yscale() == "log"


def test_nothing_to_draw_is_said():
    with pytest.raises(ValueError, match="No setting differs from the base"):
        plot_settings([result(0.0, 1.0, token_keep=1.0)])


def test_times_get_a_panel_of_their_own():
    table = [
        replace(result(0.4, 0.9, token_keep=0.2), time_share=1.1),
        replace(result(0.1, 0.8, token_keep=0.2, anchor_pages=True), time_share=0.7),
    ]
    by_bytes, by_time = plot_settings(table).axes
    assert [[line.get_xydata().tolist() for line in drawn.lines[:1]] for drawn in by_time.containers] == [
        [[[1.1, 0.4]]],
        [[[0.7, 0.1]]],
    ]
    assert "bytes" in by_bytes.get_xlabel() and "time" in by_time.get_xlabel()
    assert [text.get_text() for text in by_time.texts] == ["0.2", "0.2"]


def test_published_axes_alone_are_dashed():
    table = [result(0.4, 0.9, mlp_keep=0.5), result(0.1, 0.9, mlp_keep=0.9, neuron_keep=0.7)]
    published, other = (container.lines[0] for container in plot_settings(table).axes[0].containers)
    assert published.get_linestyle() == "--" and other.get_linestyle() == "-"


def test_numbers_are_on_the_side_where_nothing_else_is():
    table = [
        result(0.4, 0.2, bits=4),
        result(0.10, 0.60, mlp_keep=0.5),
        result(0.11, 0.65, mlp_keep=0.7, neuron_keep=0.6),
        result(0.01, 0.99, token_keep=0.2),
    ]
    sides = {text.get_text(): text.get_ha() for text in plot_settings(table).axes[0].texts}
    assert sides == {"4": "left", "0.5": "right", "0.7, 0.6": "left", "0.2": "right"}
