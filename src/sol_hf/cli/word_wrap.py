# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Text that arrives in pieces, broken between words where the line of a terminal ends."""

import unicodedata


class WordWrap:
    """Breaks lines one column before the edge, where terminals differ in what they do next.

    Args:
        columns (`int`): Columns of the terminal.
    """

    def __init__(self, columns: int):
        self._room = max(columns - 1, 2)
        self._used, self._word, self._word_cells = 0, "", 0

    def __call__(self, piece: str) -> str:
        """What to write for the next piece: a word that has begun and does not fit is moved to the next line."""
        return "".join(self._next(character) for character in piece)

    def _next(self, character: str) -> str:
        if character == "\n":
            self._begin_line()
            return character
        cells = 8 - self._used % 8 if character == "\t" else cells_of(character)
        fits = self._used + cells <= self._room
        if character in " \t":
            self._word, self._word_cells = "", 0
            if not fits:
                self._begin_line()
                return "\n"
            self._used += cells
            return character
        move = "" if fits else self._move_word()
        self._used += cells
        if cells == 2:  # scripts without spaces: a line may end after any letter
            self._word, self._word_cells = "", 0
        else:
            self._word, self._word_cells = self._word + character, self._word_cells + cells
        return move + character

    def _begin_line(self) -> None:
        self._used, self._word, self._word_cells = 0, "", 0

    def _move_word(self) -> str:
        word, cells = self._word, self._word_cells
        if cells == self._used:  # a word of a whole line, which is broken
            word, cells = "", 0
        erase = f"\x1b[{cells}D\x1b[K" if cells else ""
        self._used, self._word, self._word_cells = cells, word, cells
        return f"{erase}\n{word}"


def cells_of(character: str) -> int:
    """Columns of a character: 2 for wide ones, 0 for accents that stand on the one before."""
    if unicodedata.combining(character) or unicodedata.category(character) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1
