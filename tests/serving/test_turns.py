# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Batches take turns: each that waits has a step before the one that computes goes on."""

import threading

from sol_hf.serving.turns import Turns
from support.servers import wait_until


def test_steps_are_taken_in_turn():
    turns, steps = Turns(), []

    def work(name: str, number: int) -> None:
        with turns:
            for _ in range(number):
                steps.append(name)
                turns.pass_on()

    threads: list[threading.Thread] = []
    with turns:
        for name, number in (("a", 4), ("b", 2), ("c", 3)):
            threads.append(threading.Thread(target=work, args=(name, number)))
            threads[-1].start()
            wait_until(lambda: len(turns._waiting) == len(threads))
    for thread in threads:
        thread.join(10)
    assert "".join(steps) == "abcabcaca"


def test_only_one_computes_at_a_time():
    turns, inside, most = Turns(), [], []

    def work() -> None:
        with turns:
            for _ in range(50):
                inside.append(1)
                most.append(len(inside))
                inside.pop()
                turns.pass_on()

    threads = [threading.Thread(target=work) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert len(most) == 250 and max(most) == 1
