# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Errors that a user can act on, each a subclass of a built-in one, and the message for a missing package."""

from collections.abc import Mapping, Sequence


EXTRAS: dict[str, tuple[str, ...]] = {
    "train": ("trl", "peft", "datasets", "pyarrow"),
    "eval": ("evaluate", "lm_eval", "matplotlib", "datasets", "pyarrow"),
    "demo": ("gguf", "rich"),
    "serve": ("fastapi", "openai", "uvicorn", "starlette"),
    "fast": ("numba",),
    "cuda": ("triton",),
}
"""Packages of every extra, by the name under which they are imported; pyarrow comes with datasets."""


class BudgetError(ValueError):
    """A budget that no schedule of the action space can satisfy, or that is malformed."""


class UnsupportedAxisError(ValueError):
    """A base cannot be controlled on an axis; the message names the axis and the reason."""


class PlanNotExecutedError(RuntimeError):
    """A decode step was not computed as planned: parts of the base that had to carry out an axis did not.

    Args:
        left_out (`Mapping[str, Sequence[str]]`): Per axis the names of those parts.
    """

    def __init__(self, left_out: Mapping[str, Sequence[str]]):
        self.left_out = {axis: list(names) for axis, names in left_out.items()}
        listed = "; ".join(f"`{axis}` in {_shorten(names)}" for axis, names in self.left_out.items())
        super().__init__(
            f"A decode step was not computed under its budget: the base did not carry out {listed}. Its modules were "
            "replaced, run in another thread, or do not use the cache that they were given. Replace modules before "
            "the first call, or leave these axes out of the budget. `model.coverage()` shows what each axis reaches."
        )

    def __reduce__(self) -> tuple:
        return type(self), (self.left_out,)


def _shorten(names: Sequence[str], most: int = 4) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def missing_extra(user: str, error: ModuleNotFoundError, preferred: str | None = None) -> ModuleNotFoundError:
    """The error for a missing package, which names the extra to install.

    Args:
        user (`str`): The name or function that needs the package, for the message.
        error (`ModuleNotFoundError`): The error of the import.
        preferred (`str`, *optional*): The extra to name if several install the package.

    Returns:
        `ModuleNotFoundError`: Names the extra; `error` itself if no extra installs the package.
    """
    package = (error.name or "").partition(".")[0]
    names = [extra for extra, packages in EXTRAS.items() if package in packages]
    if not names:
        return error
    commands = [f"pip install 'sol_hf[{extra}]'" for extra in names if preferred not in names or extra == preferred]
    return ModuleNotFoundError(f"{user} needs {package}: {' or '.join(commands)}", name=error.name)
