# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Draws `docs/pictures/how_it_works.svg`: a prompt, decode steps with what each of them reads, and a KV refresh.

    python docs/draw_how_it_works.py

The levels of the steps are an example. It needs the standard library only.
"""

from html import escape
from pathlib import Path


PICTURE = Path(__file__).resolve().parent / "pictures" / "how_it_works.svg"
WIDTH, HEIGHT = 980, 470
INK, SOFT, LINE = "#1f2933", "#616e7c", "#c3cad3"
AXES = {"token_keep": "#0072b2", "neuron_keep": "#e69f00", "bits": "#009e73"}
STEPS = [
    ("The", 0.2, 0.6, 0.375),
    ("keeper", 0.5, 0.8, 0.5),
    (",", 0.1, 0.6, 0.3125),
    ("a", 0.1, 0.6, 0.3125),
    ("grizzled", 0.7, 1.0, 0.5),
    ("old", 0.2, 0.6, 0.375),
    ("sailor", 0.3, 0.8, 0.5),
    ("named", 0.1, 0.6, 0.3125),
]
"""Tokens, and the levels of their steps in ratio units."""
LEFT, STEP, TOP, TALL = 250, 88, 196, 112


def text(
    x: float, y: float, words: str, size: int = 14, color: str = INK, anchor: str = "start", weight: int = 400
) -> str:
    """A line of text."""
    style = f'font-size="{size}" fill="{color}" text-anchor="{anchor}" font-weight="{weight}"'
    return f'<text x="{x:g}" y="{y:g}" {style}>{escape(words)}</text>'


def box(x: float, y: float, width: float, height: float, fill: str, stroke: str = "none", radius: float = 6) -> str:
    """A rectangle with round corners."""
    return (
        f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="{radius:g}" fill="{fill}" '
        f'stroke="{stroke}"/>'
    )


def arrow(x: float, y: float, to_x: float, to_y: float) -> str:
    """A straight line that ends in a head."""
    return f'<line x1="{x:g}" y1="{y:g}" x2="{to_x:g}" y2="{to_y:g}" stroke="{SOFT}" marker-end="url(#head)"/>'


def prompt() -> list[str]:
    """The prompt: one dense forward."""
    return [
        box(24, TOP, 190, TALL, "#eef1f5", LINE),
        text(119, TOP + 48, "prompt", 17, anchor="middle", weight=600),
        text(119, TOP + 72, "one dense forward,", 13, SOFT, "middle"),
        text(119, TOP + 90, "as the base does it", 13, SOFT, "middle"),
    ]


def steps() -> list[str]:
    """Decode steps: a bar for each axis, as high as the share that the step uses."""
    parts = [text(LEFT, TOP - 20, "decode steps: what each one uses", 15, weight=600)]
    for number, (token, *levels) in enumerate(STEPS):
        x = LEFT + number * STEP
        parts.append(box(x, TOP, STEP - 10, TALL, "#ffffff", LINE, 4))
        for place, (level, color) in enumerate(zip(levels, AXES.values(), strict=True)):
            high = level * (TALL - 12)
            parts.append(box(x + 11 + place * 22, TOP + TALL - 6 - high, 14, high, color, radius=2))
        parts.append(text(x + (STEP - 10) / 2, TOP + TALL + 20, token, 13, anchor="middle"))
    return parts


def policy() -> list[str]:
    """What chooses: the policy, what it sees, and what holds it to the budget."""
    end = LEFT + len(STEPS) * STEP - 10
    return [
        box(LEFT, 28, 300, 78, "#e8f1fa", "#0072b2"),
        text(LEFT + 150, 58, "policy (or a fixed schedule)", 16, anchor="middle", weight=600),
        text(LEFT + 150, 82, "state of the base, next token, budget, spent", 12, SOFT, "middle"),
        box(end - 198, 28, 198, 78, "#fdf3e0", "#e69f00"),
        text(end - 99, 58, "budget", 16, anchor="middle", weight=600),
        text(end - 99, 82, "rules out what is not paid for", 12, SOFT, "middle"),
        arrow(LEFT + 300, 67, end - 204, 67),
        text((LEFT + 300 + end - 198) / 2, 58, "scores", 12, SOFT, "middle"),
        arrow(end - 99, 106, end - 99, TOP - 8),
        text(end - 107, 150, "one level of every axis", 12, SOFT, "end"),
    ]


def refresh() -> list[str]:
    """The KV refresh after an episode."""
    end, y = LEFT + len(STEPS) * STEP - 10, TOP + TALL + 42
    middle = (LEFT + end) / 2
    return [
        f'<path d="M{LEFT} {y} v10 H{end} v-10" fill="none" stroke="{SOFT}"/>',
        arrow(middle, y + 10, middle, y + 30),
        box(middle - 250, y + 34, 500, 44, "#eef1f5", LINE),
        text(middle, y + 61, "after 16 steps: their keys and values again, in one dense forward", 14, anchor="middle"),
    ]


def legend() -> list[str]:
    """What the colours mean."""
    words = {"token_keep": "keys that attention reads", "neuron_keep": "MLP neurons", "bits": "bits of the weights"}
    parts = []
    for number, (axis, color) in enumerate(AXES.items()):
        y = TOP + 146 + number * 24
        parts += [box(24, y - 11, 13, 13, color, radius=2), text(44, y, words[axis], 13)]
    return parts


def picture() -> str:
    """The picture as SVG."""
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" role="img">'
        "<title>A prompt is processed densely. Then a policy chooses, before every token, what its step uses.</title>"
        f'<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8" orient="auto">'
        f'<path d="M0 0 L8 4 L0 8 z" fill="{SOFT}"/></marker></defs>'
    )
    parts = [box(0, 0, WIDTH, HEIGHT, "#ffffff", radius=0), *prompt(), *policy(), *steps(), *refresh(), *legend()]
    return "\n".join([head, *filter(None, parts), "</svg>", ""])


if __name__ == "__main__":
    PICTURE.write_text(picture(), encoding="utf-8")
