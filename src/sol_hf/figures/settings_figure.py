# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""What settings cost and save, as a figure."""

from collections.abc import Sequence

from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from ..evaluation.settings import SettingQuality
from .style import OTHER_LOOKS, Look, styled


LOOKS = (Look("#D55E00", "o"), Look("#0072B2", "s"), Look("#009E73", "^"), Look("#CC79A7", "v"), *OTHER_LOOKS)


@styled
def plot_settings(results: Sequence[SettingQuality]) -> Figure:
    """Plot KL against the bytes that a step reads: what is cheap and good is at the lower left.

    Settings that have the same names and the same words, and differ only in numbers, are joined by a line.

    Args:
        results (`Sequence[SettingQuality]`): From [`measure_settings`], with one base, context and dtype.

    Returns:
        `matplotlib.figure.Figure`

    Raises:
        ValueError: if there is none whose predictions differ from those of the base.
    """
    groups: dict[str, list[SettingQuality]] = {}
    for result in results:
        if result.divergence[0] > 0:
            groups.setdefault(_kind(result.setting), []).append(result)
    if not groups:
        raise ValueError("No setting differs from the base, so there is nothing to draw.")
    figure = Figure(figsize=(7.4, 4.6), layout="constrained")
    axes = figure.subplots()
    for number, (kind, members) in enumerate(groups.items()):
        look = LOOKS[number % len(LOOKS)]
        members = sorted(members, key=lambda result: result.bytes_share)
        axes.errorbar(
            [result.bytes_share for result in members],
            [result.divergence[0] for result in members],
            yerr=[result.divergence[1] for result in members],
            color=look.color,
            marker=look.marker,
            linewidth=1,
            label=kind,
        )
    axes.set_yscale("log")
    axes.xaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=0))
    axes.set_xlabel("bytes that a step reads, of a dense step")
    axes.set_ylabel("KL(dense ‖ setting) (nats per token)")
    figure.legend(loc="outside upper center", ncols=2)
    return figure


def _kind(setting: dict) -> str:
    """Names of a setting; values that are words or flags, too."""
    words = [name if isinstance(value, bool) else str(value) for name, value in setting.items() if _is_word(value)]
    numbers = [name for name, value in setting.items() if not _is_word(value)]
    return " + ".join(numbers) + (f" ({', '.join(words)})" if words else "")


def _is_word(value: object) -> bool:
    return isinstance(value, str | bool)
