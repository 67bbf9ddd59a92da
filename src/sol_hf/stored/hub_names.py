# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Which names are those of repositories, and not paths of this machine.

Only the former are written to files. A path means nothing elsewhere, and tells about the machine it is from. The
folder of a repository in the Hub's cache counts as that repository:

    .../models--org--name/snapshots/0123abc...      org/name at commit 0123abc...
"""

import os
import re
from typing import Any

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id


_SNAPSHOT = re.compile(r"models--([^/\\]+)[/\\]snapshots[/\\]([0-9a-f]{40})[/\\]?$")


def hub_id(name: str | os.PathLike | None) -> str | None:
    """The id of the repository that a name or path stands for; `None` for a local folder, and for no name."""
    name = os.fspath(name) if name else ""
    snapshot = _SNAPSHOT.search(name)
    if snapshot is not None:
        return snapshot[1].replace("--", "/", 1)
    if not name or name.startswith((".", "~")) or os.path.isabs(name) or os.path.exists(name):
        return None
    try:
        validate_repo_id(name)
    except HFValidationError:
        return None
    return name


def without_paths(value: Any) -> Any:
    """A value of plain types in which every absolute or existing path, at any depth, is `None`."""
    if isinstance(value, dict):
        return {name: without_paths(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [without_paths(entry) for entry in value]
    is_path = isinstance(value, str) and os.sep in value and (os.path.isabs(value) or os.path.exists(value))
    return None if is_path else value


def snapshot_commit(name: str | os.PathLike | None) -> str | None:
    """The commit of a folder in the Hub's cache; `None` for any other name or path."""
    snapshot = _SNAPSHOT.search(os.fspath(name) if name else "")
    return None if snapshot is None else snapshot[2]
