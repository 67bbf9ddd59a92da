# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Finds out that a process was forked after torch's threads had started: there torch would wait for them forever.

A forked process has only the thread that forked it. The OpenMP library in its memory still counts on the others. This
holds for torch on its own, and for the kernels that run in torch's threads.
"""

import os
from dataclasses import dataclass

import torch


@dataclass
class _Threads:
    """Whether generations used several threads in this process, and in one that it was forked from."""

    here: bool = False
    before_fork: bool = False

    def after_fork(self) -> None:
        self.here, self.before_fork = False, self.here or self.before_fork


_THREADS = _Threads()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_THREADS.after_fork)


def check_fork() -> None:
    """Called before every generation, which then may use torch's threads.

    Only generations of this package are known. What else torch computed before a fork is not.

    Raises:
        RuntimeError: with several threads, in a process that was forked after a generation with several threads.
    """
    if torch.get_num_threads() == 1:
        return
    if _THREADS.before_fork:
        raise RuntimeError(
            "This process was forked after torch had started its threads. They do not exist here, and torch would "
            "wait for them forever: call `torch.set_num_threads(1)` first in the forked process, or start it by "
            "`spawn`, as `multiprocessing.get_context('spawn')` does."
        )
    _THREADS.here = True
