# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Summaries of sweeps, against a table whose numbers are computed by hand."""

import json
import math

import numpy as np
import pytest

from sol_hf.evaluation.sweep.summary import compare, format_summary, gap_closed, summarize_sweep
from sol_hf.evaluation.sweep.table import columns_of, key_of, make_table
from support.cases import AXES


FIRST, SECOND = (0.2, 0.5, 6.0), (0.5, 0.7, 8.0)
LOSSES = {
    ("policy", FIRST): [3.0, 3.2, 3.1, 3.3],
    ("policy", SECOND): [2.6, 2.8, 2.7, 2.9],
    ("fixed", FIRST): [3.3, 3.4, 3.6, 3.3],  # .25 worse
    ("fixed", SECOND): [2.5, 2.8, 2.6, 2.7],  # .1 better
    ("oracle", FIRST): [2.9, 3.0, 3.0, 3.1],
    ("oracle", SECOND): [2.5, 2.6, 2.5, 2.8],
    ("dense", (1.0, 1.0, 16.0)): [2.3, 2.5, 2.4, 2.6],
}
NET_KEEP = {FIRST: 0.4, SECOND: 0.6, (1.0, 1.0, 16.0): 1.0}
DIVERGENCE = {"policy": 0.3, "fixed": 0.4, "oracle": 0.2, "dense": 0.0}


def tables(leave_out=()):
    """The tables `sweep` and `blocks`."""
    rows, blocks = [], []
    for (name, budget), losses in LOSSES.items():
        if name in leave_out:
            continue
        key = dict(zip(key_of(AXES), (name, 0, *budget), strict=True))
        mean = float(np.mean(losses))
        row = dict.fromkeys(columns_of("sweep", AXES), 0.0) | key | {f"target_{axis}": key[axis] for axis in AXES}
        off = 0.1 if name == "policy" else 0.0
        row |= {f"realised_{axis}": key[axis] + off * (1 if budget == FIRST else -2) for axis in AXES}
        row |= dict(net_keep=NET_KEEP[budget], log_perplexity=mean, perplexity=math.exp(mean), blocks=4, tokens=64)
        row |= dict(divergence=DIVERGENCE[name], bytes_per_token=2e9, flops_per_token=3e9)
        rows.append(row)
        blocks.append(key | {"losses": losses, "divergences": [DIVERGENCE[name]] * 4})
    return make_table("sweep", rows, AXES), make_table("blocks", blocks, AXES)


@pytest.fixture(scope="module")
def summary():
    return summarize_sweep(*tables())


def test_fronts_and_hypervolumes(summary):
    worst = 3.4
    assert summary["reference"] == {"net_keep": 1.0, "log_perplexity": pytest.approx(worst)}
    policy = summary["controllers"]["policy"]
    assert [(point["net_keep"], point["bits"]) for point in policy["front"]] == [(0.4, 6.0), (0.6, 8.0)]
    assert policy["hypervolume"] == pytest.approx(0.6 * (worst - 3.15) + 0.4 * (3.15 - 2.75))
    assert summary["controllers"]["fixed"]["hypervolume"] == pytest.approx(0.4 * (worst - 2.65))


def test_budget_errors_are_per_axis(summary):
    for axis in AXES:
        assert summary["controllers"]["policy"]["budget_error"][axis] == pytest.approx(0.15)
        assert summary["controllers"]["fixed"]["budget_error"][axis] == 0


def test_gains_wins_and_extremes(summary):
    against = summary["policy_against"]["fixed"]
    assert against["comparisons"] == 2
    assert against["gain"] == pytest.approx((0.25 - 0.1) / 2) and against["win_rate"] == 0.5
    low, high = against["gain_interval"]
    assert low < against["gain"] < high
    assert against["best"] == dict(zip(AXES, FIRST, strict=True)) | {"net_keep": 0.4, "gain": pytest.approx(0.25)}
    assert against["worst"]["gain"] == pytest.approx(-0.1) and against["worst"]["bits"] == 8.0
    assert summary["policy_against"]["oracle"]["win_rate"] == 0


def test_the_interval_is_that_of_all_resamples():
    """Two blocks can be drawn in three ways: both (half of the time), the first twice, the second twice."""
    rows = [
        dict(zip(AXES, FIRST, strict=True)) | dict(net_keep=0.4, losses=np.array(x)) for x in ([1.0, 1.0], [0.9, 1.4])
    ]
    found = compare(rows[:1], rows[1:], AXES)
    assert found["gain"] == pytest.approx(0.15) and found["win_rate"] == 1
    assert found["gain_interval"] == pytest.approx([-0.1, 0.4]) and found["win_rate_interval"] == [0, 1]


def test_a_tie_is_no_win():
    row = dict(zip(AXES, FIRST, strict=True)) | dict(net_keep=0.4, losses=np.array([1.0, 2.0]))
    found = compare([row], [row], AXES)
    assert found["win_rate"] == 0 and found["win_rate_interval"] == [0, 0] and found["tie_rate"] == 1
    better = row | dict(losses=np.array([1.1, 2.1]), token_keep=0.5)
    half = compare([row, row | dict(token_keep=0.5)], [row, better], AXES)
    assert half["win_rate"] == 0.5 and half["tie_rate"] == 0.5


def test_the_table_names_ties():
    rows, blocks = tables()
    of_policy = {key: blocks[0][key] for key in ("losses", "divergences")}
    same = [dict(row) | (of_policy if row["controller"] == "fixed" else {}) for row in blocks]
    text = format_summary(summarize_sweep(rows, make_table("blocks", same, AXES)))
    assert "| 50% [50%, 50%], ties 50% |" in text.splitlines()[4]


def test_blocks_of_one_document_are_drawn_together():
    """Of two documents, both are drawn half of the time, each of them twice a quarter of the time."""
    losses = [np.array(x) for x in ([1.0, 1.0, 1.0], [0.9, 0.9, 1.4])]
    rows = [dict(zip(AXES, FIRST, strict=True)) | dict(net_keep=0.4, losses=x) for x in losses]
    apart, together = (
        compare([rows[0] | dict(documents=documents)], rows[1:], AXES) for documents in (None, [5, 5, 2])
    )
    assert apart["gain"] == together["gain"] == pytest.approx(0.2 / 3)
    assert together["gain_interval"] == pytest.approx([-0.1, 0.4])
    assert apart["gain_interval"] == pytest.approx([-0.1, 0.4])
    long = [row | dict(losses=np.repeat(row["losses"], 20)) for row in rows]
    apart, together = (compare([long[0] | dict(documents=d)], long[1:], AXES) for d in (None, [5] * 40 + [2] * 20))
    assert together["gain_interval"] == pytest.approx([-0.1, 0.4])  # as wide as two texts allow
    assert apart["gain_interval"][1] - apart["gain_interval"][0] < 0.15


def test_the_share_of_the_gap(summary):
    closed = summary["gap_closed"]["oracle"]
    assert closed["divergence"] == {
        "gap": pytest.approx(0.2),
        "share": pytest.approx(0.5),
        "interval": pytest.approx([0.5, 0.5]),
    }
    gap = (3.4 + 2.65) / 2 - (3.0 + 2.6) / 2
    assert closed["log_perplexity"]["gap"] == pytest.approx(gap)
    assert closed["log_perplexity"]["share"] == pytest.approx(0.075 / gap)


def test_there_is_no_share_without_a_gap():
    fixed = [dict(losses=np.array([1.0, 1.2]), divergences=np.array([0.1, 0.1]))]
    worse = [dict(losses=np.array([1.1, 1.3]), divergences=np.array([0.1, 0.1]))]
    assert "share" not in gap_closed(worse, fixed, worse)["log_perplexity"]
    assert "share" not in gap_closed(fixed, fixed, fixed)["divergence"]


def test_it_is_json_and_a_table(summary):
    assert json.loads(json.dumps(summary)) == summary
    lines = format_summary(summary).splitlines()
    assert len({line.count("|") for line in lines[:6]}) == 1
    assert lines[2].startswith("| `dense` | 1.000 |") and lines[3].startswith("| `policy` | 0.500 |")
    assert "| 0.150 / 0.150 / 0.15 | – | – |" in lines[3] and "+0.0750 [" in lines[4] and "| 50% [" in lines[4]
    text = "\n".join(lines)
    assert "closes 50% [50%, 50%] of the 0.2000 nats of divergence that lie between `fixed` and `oracle`" in text
    assert "best budget against `fixed` is (0.2, 0.5, 6): +0.2500" in text and "2 budgets, 4 blocks, 64 tokens" in text


def test_a_sweep_without_policy_has_no_comparison():
    summary = summarize_sweep(*tables(leave_out=("policy",)))
    assert "policy_against" not in summary and "gap_closed" not in summary
    assert "| `fixed` |" in format_summary(summary)
