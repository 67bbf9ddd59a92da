# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Counts the module calls of a base, and interrupts the base at one of them, without touching the base."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook


class Interrupted(KeyboardInterrupt):
    """What a user's Ctrl-C does, at a chosen place."""


@dataclass
class Calls:
    """Forwards of a base so far, and calls of its modules since the first of them."""

    number: int = 0
    forwards: int = 0


@contextmanager
def watched(base: nn.Module, interrupt_at: int | None = None) -> Iterator[Calls]:
    """Within the block, count the calls of modules of `base`; that with the number `interrupt_at` raises."""
    calls, modules = Calls(), set(base.modules())

    def note(module: nn.Module, inputs: object) -> None:
        if module in modules:
            calls.forwards += module is base
            calls.number += calls.forwards > 0  # before, parts are tried out
            if calls.number == interrupt_at:
                raise Interrupted(f"at {type(module).__name__}, call {calls.number}")

    handle = register_module_forward_pre_hook(note)
    try:
        yield calls
    finally:
        handle.remove()
