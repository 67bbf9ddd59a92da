# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Answers in a terminal: words stay whole, nothing is lost, no line touches the edge."""

import re

import pytest

from sol_hf.cli.word_wrap import WordWrap, cells_of


TEXT = "The sky appears blue because of a phenomenon known as Rayleigh scattering.\n\nIt reaches the Earth."


def seen(written: str) -> list[str]:
    """Lines of a terminal after this was written to it."""
    lines = [""]
    for part in re.findall(r"\x1b\[\d+D\x1b\[K|\n|[^\x1b\n]+", written):
        if part == "\n":
            lines.append("")
        elif part.startswith("\x1b"):
            lines[-1] = lines[-1][: -int(re.search(r"\d+", part).group())]
        else:
            lines[-1] += part
    return lines


@pytest.mark.parametrize("length", [1, 3, 200])
@pytest.mark.parametrize("columns", [13, 20, 40, 100])
def test_words_stay_whole_whatever_the_pieces(columns, length):
    wrap = WordWrap(columns)
    lines = seen("".join(wrap(TEXT[at : at + length]) for at in range(0, len(TEXT), length)))
    assert max(map(len, lines)) < columns
    assert " ".join(lines).split() == TEXT.split()
    assert "" in lines  # the empty line between the paragraphs


def test_a_word_longer_than_a_line_is_broken():
    wrap = WordWrap(10)
    assert seen(wrap("see " + "x" * 25)) == ["see ", "x" * 9, "x" * 9, "x" * 7]


def test_scripts_without_spaces_are_broken_after_any_letter():
    wrap = WordWrap(10)
    lines = seen(wrap("ab " + "水" * 7))
    assert lines == ["ab 水水水", "水水水水"]
    assert all(sum(map(cells_of, line)) < 10 for line in lines)
