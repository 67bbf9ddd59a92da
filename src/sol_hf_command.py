# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Where the command `sol-hf` starts. A help is shown without loading the package, which takes seconds.

`sol_hf/__init__.py` imports torch and transformers. The modules of `sol_hf.cli` that read arguments need neither.
For a help, they are imported below a package `sol_hf` that was found, and whose `__init__.py` has not run.
"""

import importlib.util
import sys


HELP = ("-h", "--help", "--version")


def main() -> int:
    """Run the command line; returns the exit status."""
    given = sys.argv[1:]
    if not given or (any(argument in HELP for argument in given) and "--import" not in given):
        _find_package_only()
    from sol_hf.cli.main import main as run

    return run(given)


def _find_package_only() -> None:
    spec = importlib.util.find_spec("sol_hf")
    if spec is not None and "sol_hf" not in sys.modules:
        sys.modules["sol_hf"] = importlib.util.module_from_spec(spec)


if __name__ == "__main__":
    sys.exit(main())
