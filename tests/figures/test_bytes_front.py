# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The figure of several sweeps shows what their controllers lost, against the bytes that they read."""

import pytest

from sol_hf import plot_bytes_front
from sol_hf.cli import figures
from sol_hf.figures.bytes_front import BytesPoint, bytes_points
from support.cases import AXES


def row(controller: str, budget: tuple[float, ...], read: float, divergence: float, seed: int = 0) -> dict:
    numbers = {"bytes_per_token": read, "dense_bytes_per_token": 200.0, "divergence": divergence}
    return {"controller": controller, "seed": seed} | dict(zip(AXES, budget, strict=True)) | numbers


@pytest.fixture
def rows():
    low, high, worse = (0.3, 0.6, 8.0), (0.5, 0.7, 8.0), (0.8, 0.9, 8.0)
    return [
        row("dense", (1.0, 1.0, 16.0), 200, 0),
        row("policy", high, 100, 0.1),
        row("policy", low, 50, 0.3),
        row("policy", worse, 120, 0.2),
        row("fixed", low, 40, 0.4, seed=0),
        row("fixed", low, 60, 0.6, seed=1),
    ]


def test_points_are_means_over_seeds_by_bytes(rows):
    found = bytes_points(rows)
    assert found["policy"] == [BytesPoint(0.25, 0.3), BytesPoint(0.5, 0.1), BytesPoint(0.6, 0.2)]
    assert found["fixed"] == [BytesPoint(0.25, 0.5)] and set(found) == {"policy", "fixed"}


def test_only_the_front_is_connected_and_dense_is_at_all_bytes(rows):
    (axes,) = plot_bytes_front({"mine": rows, "other": rows[:2]}).axes
    lines = {line.get_label(): line for line in axes.get_lines() if not line.get_label().startswith("_")}
    assert list(lines) == ["mine, policy", "mine, fixed", "other, policy", "dense"]
    assert lines["mine, policy"].get_xydata().tolist() == [[0.25, 0.3], [0.5, 0.1]]
    assert lines["dense"].get_xydata().tolist() == [[1, 0]]
    assert lines["mine, policy"].get_color() == lines["mine, fixed"].get_color() != lines["other, policy"].get_color()
    assert axes.get_ylim()[0] == 0 and axes.get_xscale() == "log"


def test_what_cannot_be_drawn_is_said(rows, capsys):
    with pytest.raises(ValueError, match="at least one sweep"):
        plot_bytes_front({})
    del rows[1]["divergence"]
    with pytest.raises(ValueError, match="lacks `divergence`"):
        plot_bytes_front({"mine": rows})
    with pytest.raises(SystemExit):
        figures.main(["--bytes-front", "runs", "--out", "here"])
    assert "'runs' is no NAME=FOLDER" in capsys.readouterr().err
