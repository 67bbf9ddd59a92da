# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Shows a comparison of continuations, in the terminal and as a self-contained HTML page. Needs no model."""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from rich import box
from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from sol_hf.budget.axes import AXES
from sol_hf.figures.action_map import (
    CHEAPEST,
    INK,
    PUBLISHED_NAMES,
    Action,
    Token,
    compute_of,
    heat_colour,
    heat_of,
    page_environment,
    visible,
)
from sol_hf.figures.axis_labels import is_integral, ratio_terms


DENSE = tuple(AXES[axis].dense for axis in PUBLISHED_NAMES)
"""The dense action of the published axes."""


def number(value: float | None, form: str) -> str:
    """A number in the given format, a dash for `None`."""
    return "–" if value is None else format(value, form)


class Spending(NamedTuple):
    """Target and realised mean of one axis."""

    name: str
    asked: float
    spent: float
    dense: float

    def text(self, value: float) -> str:
        """A value of this axis as it is displayed."""
        return f"{value:.1f}" if is_integral(self.name) else f"{value:.2f}"


@dataclass(frozen=True)
class Continuation:
    """One continuation of the prompt.

    `requested` is `None` for a dense text, `tokens_per_second` for a text too short to be timed. `axes` has the names
    of the axes, in the order of the numbers of `requested` and `realised`. `tokens_per_second` is the median of
    `rounds`; `name` is a heading other than the default one.
    """

    requested: Action | None
    realised: Action
    tokens: tuple[Token, ...]
    mean_log_prob: float
    tokens_per_second: float | None
    axes: tuple[str, ...] = PUBLISHED_NAMES
    rounds: tuple[float, ...] = ()
    name: str | None = None

    @property
    def title(self) -> str:
        """The heading: the name, or else the requested net keep rate."""
        if self.name is not None:
            return self.name
        return "dense" if self.requested is None else f"budget {compute_of(self.requested, self.axes):.2f}"

    @property
    def counted_speedup(self) -> float:
        """The speed-up that the net keep rate implies: the dense net keep divided by the realised one."""
        return 1 / compute_of(self.realised, self.axes)

    def spending(self) -> list[Spending]:
        """One entry per axis, and the net keep rate as a last one."""
        dense = tuple(AXES[axis].dense for axis in self.axes)
        asked, spent = self.requested or dense, self.realised
        rows = [Spending(*row) for row in zip(self.axes, asked, spent, dense, strict=True)]
        return [*rows, Spending("net keep", compute_of(asked, self.axes), compute_of(spent, self.axes), 1.0)]


@dataclass(frozen=True)
class Comparison:
    """The data of the demo; speeds are compared with that of the first continuation."""

    model: str
    controller: str
    prompt: str
    continuations: tuple[Continuation, ...]
    footnotes: tuple[str, ...] = ()
    advice: str = ""

    def speedup(self, continuation: Continuation) -> float | None:
        """Tokens per second divided by those of the first continuation."""
        own, dense = continuation.tokens_per_second, self.continuations[0].tokens_per_second
        return own / dense if own and dense else None


def terminal_style(heat: float) -> str:
    """Dark text on a light background, readable in terminals of any colours."""
    return f"{INK} on {heat_colour(heat)}"


def legend(axes: tuple[str, ...]) -> Text:
    """The colour scale in one line."""
    text = Text("compute per token  ")
    for step in range(5):
        compute = CHEAPEST + (1 - CHEAPEST) * step / 4
        text.append(f" {compute:.2f} ", style=terminal_style(heat_of(compute)))
    return text.append(f"  = mean of {ratio_terms(axes)}")


def texts_table(continuations: tuple[Continuation, ...]) -> Table:
    """Continuations side by side; the background of a token shows its compute."""
    table = Table(box=box.ROUNDED, expand=True, border_style="dim", header_style="bold", padding=(0, 1))
    cells = []
    for continuation in continuations:
        table.add_column(continuation.title, ratio=1, overflow="fold")
        text = Text()
        for token in continuation.tokens:
            text.append(token.shown, style=terminal_style(token.heat))
        cells.append(text)
    table.add_row(*cells)
    return table


def numbers_table(comparison: Comparison, items: tuple[Continuation, ...]) -> Table:
    """Budget, realised means, quality and speed of some continuations."""
    table = Table(box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False)
    table.add_column("spent of asked", no_wrap=True)
    for item in items:
        table.add_column(item.title, justify="right", no_wrap=True)
    rows = zip(*(item.spending() for item in items), strict=True)
    for row in rows:
        cells = (f"{cell.text(cell.spent)} of {cell.text(cell.asked)}" for cell in row)
        table.add_row(row[0].name, *cells, end_section=row[0].name == "net keep")
    table.add_row("log-prob per token", *(f"{item.mean_log_prob:.2f}" for item in items))
    table.add_row("tokens per second", *(number(item.tokens_per_second, ".1f") for item in items))
    if any(item.rounds for item in items):
        spreads = (f"{min(item.rounds):.1f}–{max(item.rounds):.1f}" if item.rounds else "–" for item in items)
        table.add_row("  slowest, fastest", *spreads)
    table.add_row("speed, counted", *(f"{item.counted_speedup:.2f}" for item in items))
    table.add_row("speed, measured", *(number(comparison.speedup(item), ".2f") for item in items))
    return table


def show(comparison: Comparison, console: Console) -> None:
    """Prints the comparison; as many columns side by side as the width can hold."""
    items = comparison.continuations
    texts, numbers = (max(1, min(len(items), room)) for room in (console.width // 28, (console.width - 18) // 15))
    prompt = Text(visible(comparison.prompt).replace("↵", ""))
    parts: list[RenderableType] = [
        Text(f"{comparison.model}, controller: {comparison.controller}", style="bold"),
        Panel(prompt, title="prompt", title_align="left", border_style="dim"),
        legend(items[0].axes),
    ]
    parts += [texts_table(items[begin : begin + texts]) for begin in range(0, len(items), texts)]
    parts += [numbers_table(comparison, items[begin : begin + numbers]) for begin in range(0, len(items), numbers)]
    parts.append(Rule(style="dim"))
    parts += [Text(note, style="italic") for note in comparison.footnotes]
    console.print(Group(*parts))


def render_page(comparison: Comparison) -> str:
    """The comparison as one HTML file without external resources."""
    template = page_environment(Path(__file__).parent).get_template("demo_page.html.jinja")
    terms = ratio_terms(comparison.continuations[0].axes)
    return template.render(comparison=comparison, cheapest=CHEAPEST, number=number, terms=terms)
