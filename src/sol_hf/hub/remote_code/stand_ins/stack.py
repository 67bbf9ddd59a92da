# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""No step is one compiled program: the modules of the base run."""

from typing import Any


class BaseStack:
    """The layers of a base as a program."""

    @staticmethod
    def is_recognised(base: Any) -> bool | None:
        """Whether steps of a base can run as a program; `None`: nothing is said of it."""
        return None


def run_step(base: Any, plan: Any, tokens: Any, places: Any, is_new: bool) -> Any:
    """A step; `None` where the modules have to run."""
    return None


def run_refresh(base: Any, plan: Any, tokens: Any, places: Any) -> Any:
    """A dense forward of several tokens; `None` where the modules have to run."""
    return None


def forget_programs(base: Any) -> None:
    """There are none to forget."""
