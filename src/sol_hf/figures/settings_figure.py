# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""What settings cost and save, as a figure."""

from collections.abc import Callable, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.text import Annotation
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator, PercentFormatter

from ..budget.axes import PUBLISHED_AXES
from ..evaluation.settings import SettingQuality
from .style import OTHER_LOOKS, Look, styled


LOOKS = (Look("#D55E00", "o"), Look("#0072B2", "s"), Look("#009E73", "^"), Look("#CC79A7", "v"), *OTHER_LOOKS)
BYTES, TIME = "bytes that a step reads, of a dense step", "processor time of a step, of our own dense step"


@styled
def plot_settings(results: Sequence[SettingQuality]) -> Figure:
    """Plot KL against the bytes that a step reads, and against its time if that was measured, in a second panel.

    What is cheap and good is at the lower left. Settings that have the same names and the same words, and differ only
    in numbers, are joined by a line, and each has its numbers beside it. Lines of published axes alone are dashed.

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
    shares: dict[str, Callable[[SettingQuality], float]] = {BYTES: lambda result: result.bytes_share}
    if all(result.time_share is not None for members in groups.values() for result in members):
        shares[TIME] = lambda result: result.time_share or 0.0
    figure = Figure(figsize=(3.6 + 3.8 * len(shares), 5), layout="constrained")
    panels = figure.subplots(1, len(shares), sharey=True, squeeze=False)[0]
    for axes, (label, share) in zip(panels, shares.items(), strict=True):
        for number, (kind, members) in enumerate(groups.items()):
            _draw_kind(axes, kind, members, share, LOOKS[number % len(LOOKS)])
        _write_numbers(axes)
        axes.axvline(1, color="black", linewidth=0.8, linestyle=":", zorder=0)
        axes.margins(x=0.08)
        axes.xaxis.set_major_locator(MaxNLocator(7, steps=[1, 2, 5, 10]))
        axes.xaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=0))
        axes.set_xlabel(label)
    axes = panels[0]
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(base=10, subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_ylabel("KL(dense ‖ setting) (nats per token)")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=1 + len(shares))
    return figure


def _draw_kind(
    axes: Axes,
    kind: str,
    members: Sequence[SettingQuality],
    share: Callable[[SettingQuality], float],
    look: Look,
) -> None:
    """A line through settings that differ in numbers, in the order of what they read."""
    members = sorted(members, key=lambda result: result.bytes_share)
    places = [share(result) for result in members]
    axes.errorbar(
        places,
        [result.divergence[0] for result in members],
        yerr=[result.divergence[1] for result in members],
        color=look.color,
        marker=look.marker,
        linewidth=1,
        linestyle="--" if _is_published(members[0].setting) else "-",
        label=kind,
    )
    for place, result in zip(places, members, strict=True):
        numbers = ", ".join(f"{value:g}" for value in result.setting.values() if not _is_word(value))
        text = axes.annotate(numbers, (place, result.divergence[0]), (0, 3), textcoords="offset points", fontsize=7.5)
        text.set(color=look.color, path_effects=[withStroke(linewidth=2, foreground="white")])


def _write_numbers(axes: Axes) -> None:
    """Move the numbers of points to their right, or to the left where others or the line at 100% are on the right."""
    points = [text.xy for text in axes.texts if isinstance(text, Annotation)]
    width = 0.15 * (max(x for x, _ in points) - min(x for x, _ in points))
    for text in axes.texts:
        if isinstance(text, Annotation):
            x, y = text.xy
            crowded = any(0 < other - x < width and 0.7 < level / y < 1.4 for other, level in points)
            is_left = crowded or 1 - width < x < 1
            text.set(ha="right" if is_left else "left", position=(-6 if is_left else 6, 3))


def _is_published(setting: dict) -> bool:
    return setting.keys() <= {axis.name for axis in PUBLISHED_AXES}


def _kind(setting: dict) -> str:
    """Names of a setting; values that are words or flags, too."""
    words = [name if isinstance(value, bool) else str(value) for name, value in setting.items() if _is_word(value)]
    numbers = [name for name, value in setting.items() if not _is_word(value)]
    return " + ".join(numbers) + (f" ({', '.join(words)})" if words else "")


def _is_word(value: object) -> bool:
    return isinstance(value, str | bool)
