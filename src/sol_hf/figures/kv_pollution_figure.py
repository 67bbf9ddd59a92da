# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Impulse responses of KV pollution as a figure."""

from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter

from ..evaluation.clusters import mean_and_error
from ..evaluation.kv_pollution import ImpulseResponse
from .style import OTHER_LOOKS, styled


COLORS = ("#D55E00", "#0072B2", "#009E73", *(look.color for look in OTHER_LOOKS))
WITHOUT_REFRESH, WITH_REFRESH = "-", (0, (4, 1.5))


@styled
def plot_impulse_responses(responses: Sequence[ImpulseResponse]) -> Figure:
    """Plot KL and log-probability damage at every step around a few disturbed ones, with and without KV refresh.

    Bands are standard errors over blocks. The disturbed steps are shaded.

    Args:
        responses (`Sequence[ImpulseResponse]`): From [`impulse_responses`], disturbed at the same steps.

    Returns:
        `matplotlib.figure.Figure`

    Raises:
        ValueError: if there are no responses, or they differ in their steps.
    """
    if not responses:
        raise ValueError("There is no impulse response to draw: give what `impulse_responses` returned.")
    if len({(x.begin, x.length, x.steps) for x in responses}) > 1:
        raise ValueError("These impulse responses differ in their steps: draw each in a figure of its own.")
    first, actions = responses[0], list(dict.fromkeys(x.action for x in responses))
    colors = {action: COLORS[number % len(COLORS)] for number, action in enumerate(actions)}
    figure = Figure(figsize=(6.8, 5.6), layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True)
    for response in responses:
        style = WITHOUT_REFRESH if response.refresh_every is None else WITH_REFRESH
        for axes, values in ((top, response.divergence), (bottom, response.damage)):
            _draw_steps(axes, response, values, positive=axes is top, color=colors[response.action], linestyle=style)
    for axes in (top, bottom):
        axes.axvspan(first.begin - 0.5, first.end - 0.5, color="black", alpha=0.07, linewidth=0)
        for step in sorted({step for response in responses for step in response.refreshes}):
            axes.axvline(step - 0.5, color="black", linewidth=0.8, linestyle=":")
    top.set_yscale("log", nonpositive="clip")
    top.set_ylabel("KL(dense ‖ disturbed)\n(nats)")
    bottom.set_yscale("symlog", linthresh=0.1, linscale=1.5)
    bottom.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    bottom.axhline(0, color="black", linewidth=0.6)
    bottom.set_ylabel("log-probability lost\n(nats)")
    bottom.set_xlabel("decode step (shaded: disturbed; dotted: KV refresh)")
    handles = [Line2D([], [], color=color, label=_label(first.axes, action)) for action, color in colors.items()]
    if any(x.refresh_every is None for x in responses):
        handles.append(Line2D([], [], color="black", linestyle=WITHOUT_REFRESH, label="without KV refresh"))
    if any(x.refresh_every is not None for x in responses):
        handles.append(Line2D([], [], color="black", linestyle=WITH_REFRESH, label="with KV refresh"))
    figure.legend(handles=handles, loc="outside upper center", ncols=3 if len(actions) == 1 else 2)
    return figure


def _label(names: Sequence[str], action: Sequence[float]) -> str:
    return ", ".join(f"{name} {value:g}" for name, value in zip(names, action, strict=True))


def _draw_steps(axes: Axes, response: ImpulseResponse, values: torch.Tensor, positive: bool, **style) -> None:
    """Draw mean and band of `values` `(blocks, steps)`, from the first disturbed step; no zeros if `positive`."""
    mean, error = (x[response.begin :] for x in mean_and_error(values.double().numpy(), response.documents))
    if positive:
        mean = np.where(mean > 0, mean, np.nan)
    x = range(response.begin, response.steps)
    axes.plot(x, mean.tolist(), marker=".", markersize=4, linewidth=1.2, **style)
    low, high = (mean - error).tolist(), (mean + error).tolist()
    axes.fill_between(x, low, high, color=style["color"], alpha=0.15, linewidth=0)
