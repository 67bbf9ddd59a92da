# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The code file of a policy's repository, imported beside the package."""

import importlib.util
import sys
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType

from sol_hf.hub.remote_code.flatten import flat_code


@lru_cache
def plain_module(name: str = "sol_plain_of_a_test") -> ModuleType:
    """The code as a module of its own, which shares nothing with the package."""
    with TemporaryDirectory() as folder:
        path = Path(folder, "sol_plain.py")
        path.write_text(flat_code(), encoding="utf-8")
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None and spec.loader is not None
        module = sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return module
