# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""JSON files of a policy: read with a limit on their size, and with errors that name the file."""

import json
import os
from pathlib import Path
from typing import Any


MOST_BYTES = 8 * 2**20
"""Size of a JSON file of a policy. With a calibration of 1,000 points a config has 200 KB."""


def read_json_object(path: str | os.PathLike) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        ValueError: if the file is too large, damaged, or holds something else than an object; the message names it.
    """
    size = os.path.getsize(path)
    if size > MOST_BYTES:
        raise ValueError(f"{path} has {size:,} bytes; at most {MOST_BYTES:,} are read.")
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # also not UTF-8, and numbers of thousands of digits
        raise ValueError(f"{path} is truncated or damaged: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a JSON object, but holds a {type(content).__name__}.")
    return content
