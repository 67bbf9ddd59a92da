# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The code files of a policy's repository."""

import os
from pathlib import Path

from .doors import CUSTOM_GENERATE, CUSTOM_GENERATE_NAME, PLAIN_CODE_NAME, REMOTE_CODE, REMOTE_CODE_NAME
from .flatten import flat_code


def code_files() -> dict[str, str]:
    """Their texts by name."""
    return {
        REMOTE_CODE_NAME: REMOTE_CODE,
        PLAIN_CODE_NAME: flat_code(),
        CUSTOM_GENERATE_NAME: CUSTOM_GENERATE,
    }


def write_code(folder: str | os.PathLike) -> None:
    """Write the code files into the folder of a policy."""
    for name, text in code_files().items():
        path = Path(folder, name)
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
