# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""A base in training mode does not drop out anything during a generation, whatever other threads do."""

import threading

from torch import nn

from sol_hf.execution.watch import evaluating


class Watched(nn.Module):
    """A module that tells when someone looks whether it is in training mode, and gives others time to change it."""

    def __init__(self):
        super().__init__()
        self.looked, self.left, self.is_told = threading.Event(), threading.Event(), False

    @property
    def training(self) -> bool:
        mode = self.__dict__["mode"]
        if self.__dict__.get("is_told"):
            self.is_told = False
            self.looked.set()
            self.left.wait(timeout=0.5)
        return mode

    @training.setter
    def training(self, mode: bool) -> None:
        self.__dict__["mode"] = mode


def test_a_generation_that_begins_while_another_ends():
    base, begun = Watched(), threading.Event()

    def first() -> None:
        with evaluating(base):
            begun.set()
            base.looked.wait(timeout=30)
        base.left.set()

    thread = threading.Thread(target=first)
    thread.start()
    begun.wait(timeout=30)
    base.is_told = True  # the other generation ends just after the next look
    with evaluating(base):
        base.left.wait(timeout=30)
        assert not base.training
    thread.join(timeout=30)
    assert base.training
