# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Turns: of several threads one computes, and after every step the one that has waited longest goes on."""

import threading
from collections import deque


class Turns:
    """A lock that is handed on in the order of arrival.

    A thread that holds it calls [`Turns.pass_on`] after a step. If others wait, each of them has a step before it goes
    on: so a batch that begins waits for at most one step of every running one.
    """

    def __init__(self):
        self._guard = threading.Lock()
        self._is_taken = False
        self._waiting: deque[threading.Lock] = deque()

    def __enter__(self) -> "Turns":
        with self._guard:
            if not self._is_taken:
                self._is_taken = True
                return self
            mine = self._wait()
        mine.acquire()
        return self

    def __exit__(self, *_) -> None:
        with self._guard:
            self._give()

    def pass_on(self) -> None:
        """Let all that wait have their turn, and return when it is this thread's again."""
        with self._guard:
            if not self._waiting:
                return
            mine = self._wait()
            self._give()
        mine.acquire()

    def _wait(self) -> threading.Lock:
        mine = threading.Lock()
        mine.acquire()
        self._waiting.append(mine)
        return mine

    def _give(self) -> None:
        """Hand the lock to the first that waits."""
        if self._waiting:
            self._waiting.popleft().release()
        else:
            self._is_taken = False
