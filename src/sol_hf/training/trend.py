# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Running means of noisy metrics, in which the progress of a training can be seen.

Budgets and texts are drawn anew for every batch, so the reward of a batch says little. The running means are computed
from the log history, which a checkpoint has, so that a resumed run logs the same.
"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import islice


WINDOW = 50
"""Log entries in a running mean."""
WATCHED = ("task_reward", "net_keep", "budget_error")
"""Metrics of the rollouts (`sol/task_reward`, ...) that show how a training goes: trends, and the progress bar."""
TRENDS = {f"trend/{name}": f"sol/{name}" for name in WATCHED}
"""Running means by name, and the metrics that they are of."""


def trends(now: Mapping[str, Sequence[float]], history: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The running means of a log entry.

    Args:
        now (`Mapping[str, Sequence[float]]`): Values since the last entry, by metric.
        history (`Sequence[Mapping[str, float]]`): Earlier entries.
    """
    found = {}
    for name, metric in TRENDS.items():
        if values := now.get(metric):
            recent = [sum(values) / len(values), *islice(_of(metric, reversed(history)), WINDOW - 1)]
            found[name] = sum(recent) / len(recent)
    return found


def _of(metric: str, entries: Iterable[Mapping[str, float]]) -> Iterable[float]:
    return (entry[metric] for entry in entries if metric in entry)
