# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The style of figures: one colour and marker per controller; figures are written as PNG and SVG.

matplotlib's settings are changed only while a figure is made or written, and restored afterwards. The colours are
those of Okabe and Ito, which colour-blind readers can distinguish; markers differ, too.
"""

import functools
import itertools
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, ParamSpec

from matplotlib import rc_context
from matplotlib.figure import Figure


STYLE: dict[str, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "axes.titlesize": 10,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "lines.markersize": 5,
    "svg.fonttype": "path",
    "svg.hashsalt": "sol_hf",
}
PNG_DPI = 150
Parameters = ParamSpec("Parameters")


class Look(NamedTuple):
    """Colour and marker of a controller."""

    color: str
    marker: str


LOOKS = {
    "policy": Look("#D55E00", "o"),
    "fixed": Look("#0072B2", "s"),
    "random": Look("#7F7F7F", "D"),
    "entropy": Look("#009E73", "^"),
    "drift": Look("#CC79A7", "v"),
    "oracle": Look("#E69F00", "*"),
    "dense": Look("#000000", "x"),
}
OTHER_LOOKS = (Look("#56B4E9", "P"), Look("#8C6D31", "X"), Look("#B8A800", "h"), Look("#5B3F8F", "p"))


def family(controller: str) -> str:
    """The name of a controller without its parameter: `random` of `random:100`."""
    return controller.partition(":")[0]


def looks_of(controllers: Iterable[str]) -> dict[str, Look]:
    """A colour and a marker for every controller, the families in `LOOKS` first, in that order.

    The first controller of such a family has the look of the family. All others, such as controllers of other
    packages, get those of `OTHER_LOOKS` in turn.

    Args:
        controllers (`Iterable[str]`): Names; repetitions are allowed.
    """
    kinds, names = list(LOOKS), dict.fromkeys(controllers)
    order = sorted(names, key=lambda name: kinds.index(family(name)) if family(name) in LOOKS else len(kinds))
    spare = itertools.cycle(OTHER_LOOKS)
    looks: dict[str, Look] = {}
    for name in order:
        taken = any(family(other) == family(name) for other in looks)
        looks[name] = LOOKS[family(name)] if family(name) in LOOKS and not taken else next(spare)
    return looks


def styled(draw: Callable[Parameters, Figure]) -> Callable[Parameters, Figure]:
    """Decorator for functions that make a figure, which applies the common style."""

    @functools.wraps(draw)
    def drawn(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Figure:
        with rc_context(STYLE):
            return draw(*args, **kwargs)

    return drawn


def checked_rows(rows: Iterable[Mapping[str, Any]], columns: Iterable[str], what: str) -> list[Mapping[str, Any]]:
    """Rows of a table as a list; a ValueError if there are none or a column is missing.

    Args:
        rows (`Iterable[Mapping[str, Any]]`): A list of dictionaries, or a `Dataset`.
        columns (`Iterable[str]`): Columns that every row must have.
        what (`str`): Name of the table in the message.
    """
    found = list(rows)
    if not found:
        raise ValueError(f"The {what} has no rows, so there is nothing to draw: has the sweep ended?")
    missing = [name for name in columns if any(name not in row for row in found)]
    if missing:
        raise ValueError(
            f"The {what} lacks {', '.join(f'`{name}`' for name in missing)}: give one that a sweep wrote."
        )
    return found


def save_figure(figure: Figure, path: str | os.PathLike) -> list[Path]:
    """Write a figure as PNG and as SVG; the same figure gives the same files.

    Args:
        figure (`matplotlib.figure.Figure`): The figure.
        path (`str` or `os.PathLike`): Path of the files without suffix; folders are created.

    Returns:
        `list[Path]`: The two files.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    files = [path.with_name(f"{path.name}.png"), path.with_name(f"{path.name}.svg")]
    with rc_context(STYLE):
        figure.savefig(files[0], dpi=PNG_DPI, metadata={"Software": None})
        figure.savefig(files[1], metadata={"Date": None, "Creator": None})
    return files
