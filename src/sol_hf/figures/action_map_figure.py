# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""An action map as a figure: text on a grid of equal cells; the background of a token shows its net keep."""

import textwrap
from collections.abc import Iterator
from dataclasses import dataclass

from matplotlib.cm import ScalarMappable
from matplotlib.collections import PolyCollection
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font

from .action_map import HEAT, INK, ActionMap, heat_colour, visible
from .style import styled


FONT = FontProperties(family="DejaVu Sans Mono", size=8)
CELL_WIDTH, CELL_HEIGHT = 0.602 * 8 / 72, 1.7 * 8 / 72
"""Width of a character of the font and height of a line, in inches."""

MARGIN, HEAD = 0.15, 0.6
"""Margin around the text, and space above it for title and scale, in inches."""
SCALE = 2.2
"""Width of the scale with its labels, in inches."""
TITLE_WIDTH, SPENDING_WIDTH = 0.095, 0.068
"""Width of a character of the title, and of the line with the means, in inches; wide ones."""

SOFT = "#6d635c"
HEAT_MAP = LinearSegmentedColormap.from_list("heat", [tuple(part / 255 for part in colour) for colour in HEAT])


@dataclass(frozen=True)
class Piece:
    """Part of a text on one line: its position in cells and its colour, which is `None` for the context."""

    text: str
    line: int
    column: int
    ground: str | None


def lay_out(action_map: ActionMap, columns: int) -> Iterator[Piece]:
    """Break context and tokens into pieces on lines of `columns` cells.

    A token that does not fit on a line moves to the next one. A token that is longer than a line, or contains line
    breaks, is split into several pieces.
    """
    line = column = 0
    parts: list[tuple[str, str | None]] = [
        (word, None) for word in visible(action_map.context).replace(" ", " \0").split("\0")
    ]
    tokens = zip((token.shown for token in action_map.tokens), map(heat_colour, action_map.heats), strict=True)
    for text, ground in [*parts, *tokens]:
        for number, piece in enumerate(text.split("\n")):
            if number:
                line, column = line + 1, 0
            while piece:
                if column and column + len(piece.rstrip()) > columns:
                    line, column = line + 1, 0
                shown, piece = piece[:columns], piece[columns:]
                yield Piece(shown, line, column, ground)
                column += len(shown)


@styled
def plot_action_map(action_map: ActionMap, columns: int = 100) -> Figure:
    """Draw a text whose tokens have the colour of their compute as background; the context has no colour.

    Characters that the font lacks are shown as `·`; in [`render_action_map`] all characters are shown.

    Args:
        action_map ([`ActionMap`]): From [`map_actions`].
        columns (`int`, *optional*, defaults to 100): Characters on a line.

    Returns:
        `matplotlib.figure.Figure`

    Raises:
        ValueError: if there is no token, or `columns` is less than 40.
    """
    if not action_map.tokens or columns < 40:
        raise ValueError(
            f"A map needs tokens and lines of 40 columns at least, got {len(action_map.tokens)} tokens and "
            f"{columns} columns."
        )
    pieces = list(lay_out(action_map, columns))
    lines = pieces[-1].line + 1
    width, height = columns * CELL_WIDTH, lines * CELL_HEIGHT
    head = Head.of(action_map, width)
    size = (width + 2 * MARGIN, height + head.height + 2 * MARGIN)
    figure = Figure(figsize=size)
    axes = figure.add_axes((MARGIN / size[0], MARGIN / size[1], width / size[0], height / size[1]))
    axes.set(xlim=(0, columns), ylim=(lines, 0))
    axes.axis("off")
    glyphs = get_font(findfont(FONT))
    grounds = [piece for piece in pieces if piece.ground]
    corners = [_corners(piece) for piece in grounds]
    colours = [piece.ground for piece in grounds]
    axes.add_collection(PolyCollection(corners, facecolors=colours, edgecolors="none", clip_on=False))
    for piece in pieces:
        if text := "".join(c if glyphs.get_char_index(ord(c)) else "·" for c in piece.text.rstrip()):
            color = INK if piece.ground else SOFT
            place = (piece.column, piece.line + 0.5)
            axes.text(*place, text, fontproperties=FONT, color=color, va="center_baseline", parse_math=False)
    _draw_head(figure, action_map, head, size)
    return figure


def _corners(piece: Piece) -> list[tuple[float, float]]:
    """Corners of a piece's background, with a small gap to the next one."""
    left, right = piece.column, piece.column + len(piece.text) - 0.12
    top, bottom = piece.line + 0.06, piece.line + 0.94
    return [(left, top), (right, top), (right, bottom), (left, bottom)]


@dataclass(frozen=True)
class Head:
    """Title, means and scale above the text; the scale is beside the words, or below them if it does not fit there."""

    title: list[str]
    spending: list[str]
    below: bool

    @classmethod
    def of(cls, action_map: ActionMap, width: float) -> "Head":
        """The head of a figure with so many inches for it."""
        beside = width - SCALE - 0.2
        longest = max(len(action_map.title) * TITLE_WIDTH, len(action_map.spending) * SPENDING_WIDTH)
        below = longest > beside
        room = width if below else beside
        title = textwrap.wrap(action_map.title, int(room / TITLE_WIDTH))
        return cls(title, textwrap.wrap(action_map.spending, int(room / SPENDING_WIDTH)), below)

    @property
    def height(self) -> float:
        """In inches."""
        words = 0.2 * len(self.title) + 0.15 * len(self.spending)
        return words + HEAD if self.below else max(HEAD, words + 0.1)


def _draw_head(figure: Figure, action_map: ActionMap, head: Head, size: tuple[float, float]) -> None:
    top, left = 1 - MARGIN / size[1], MARGIN / size[0]
    figure.text(left, top, "\n".join(head.title), va="top", weight="bold")
    words = 0.2 * len(head.title)
    figure.text(left, top - words / size[1], "\n".join(head.spending), va="top", color=SOFT, size=8)
    down = words + 0.15 * len(head.spending) + 0.05 if head.below else 0.0
    place = (MARGIN + 0.1) / size[0] if head.below else 1 - (MARGIN + SCALE) / size[0]
    bar = figure.add_axes((place, top - (down + 0.14) / size[1], (SCALE - 0.2) / size[0], 0.11 / size[1]))
    low, high = action_map.scale
    scale = ScalarMappable(Normalize(low, high), HEAT_MAP)
    ticks = [low, (low + high) / 2, high]
    figure.colorbar(scale, cax=bar, orientation="horizontal", ticks=ticks, format="{x:.3g}")
    bar.tick_params(labelsize=7, length=2, pad=1)
    bar.set_xlabel("net keep of the step that predicted the token", fontsize=7, labelpad=1)
