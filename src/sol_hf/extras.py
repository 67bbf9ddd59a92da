# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Which extra brings which package: what to install is said by the error of whoever needs a package that is not there.

The extras themselves are in `setup.cfg`. Decoding, saving and loading need none of them.
"""

EXTRAS: dict[str, tuple[str, ...]] = {
    "train": ("trl", "peft", "datasets", "pyarrow"),
    "eval": ("evaluate", "lm_eval", "matplotlib", "datasets", "pyarrow"),
    "demo": ("gguf", "rich"),
    "fast": ("numba",),
    "cuda": ("triton",),
}
"""Packages by the name that they are imported under; datasets brings pyarrow."""


def missing_extra(user: str, error: ModuleNotFoundError, preferred: str | None = None) -> ModuleNotFoundError:
    """The error to raise instead of one that only says that a module was not found.

    Args:
        user (`str`): What needs the package, as its user calls it.
        error (`ModuleNotFoundError`): What the import raised.
        preferred (`str`, *optional*): The extra to name if several bring the package.

    Returns:
        `ModuleNotFoundError`: Names the extra; `error` itself if no extra brings the package.
    """
    package = (error.name or "").partition(".")[0]
    names = [extra for extra, packages in EXTRAS.items() if package in packages]
    if not names:
        return error
    commands = [f"pip install 'sol_hf[{extra}]'" for extra in names if preferred not in names or extra == preferred]
    return ModuleNotFoundError(f"{user} needs {package}: {' or '.join(commands)}", name=error.name)
