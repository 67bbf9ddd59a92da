# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""A line at the bottom of a terminal that stays while text is written above it."""

import os
import shutil
from collections.abc import Callable
from typing import TextIO


SAVE, RESTORE, CLEAR, DIM, PLAIN = "\x1b7", "\x1b8", "\x1b[2K", "\x1b[2m", "\x1b[0m"


class StatusLine:
    """Keeps the last line of a terminal for a status; does nothing where the output is no terminal.

    Args:
        out (`TextIO`): Where text is written.
    """

    def __init__(self, out: TextIO):
        self._out = out
        self._is_shown = out.isatty() and os.environ.get("TERM", "dumb") != "dumb"
        self._rows = 0

    def __enter__(self) -> "StatusLine":
        size = shutil.get_terminal_size()
        self._rows = size.lines
        if self._is_shown and self._rows > 2:
            # a line of room, so that what is above does not stand where the status will
            self._out.write(f"\n\x1b[A{SAVE}\x1b[1;{self._rows - 1}r{RESTORE}")
            self._out.flush()
        else:
            self._is_shown = False
        return self

    def show(self, fit: Callable[[int], str]) -> None:
        """Write the status.

        Args:
            fit (`Callable`): Gives the text for a number of columns, which it must not exceed.
        """
        if self._is_shown:
            text = fit(shutil.get_terminal_size().columns - 1)
            self._out.write(f"{SAVE}\x1b[{self._rows};1H{CLEAR}{DIM}{text}{PLAIN}{RESTORE}")
            self._out.flush()

    def __exit__(self, *_) -> None:
        if self._is_shown:
            self._out.write(f"{SAVE}\x1b[{self._rows};1H{CLEAR}\x1b[r{RESTORE}")
            self._out.flush()
