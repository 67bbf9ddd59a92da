# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Finding a file of a repository or folder: there, not there, or an error. These are three different things."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError


_ARGUMENTS = ("revision", "cache_dir", "force_download", "local_files_only", "token")


def find_file(name_or_path: str | os.PathLike, filename: str, location: Mapping[str, Any]) -> Path | None:
    """A file of a repository, downloaded if necessary, or of a folder; `None` if it is not there.

    Args:
        name_or_path (`str` or `os.PathLike`): Repository id or folder.
        filename (`str`): Name of the file.
        location (`Mapping[str, Any]`): `revision`, `subfolder` and Hub arguments.

    Raises:
        OSError: if it cannot be known whether the file is there, because the Hub does not answer.
    """
    subfolder = location.get("subfolder") or ""
    if os.path.isdir(name_or_path):
        path = Path(name_or_path, subfolder, filename)
        return path if path.is_file() else None
    arguments = {name: location[name] for name in _ARGUMENTS if location.get(name) is not None}
    try:
        return Path(hf_hub_download(str(name_or_path), filename, subfolder=subfolder or None, **arguments))
    except LocalEntryNotFoundError as error:
        whole = f"{subfolder}/{filename}" if subfolder else filename
        known = {name: arguments[name] for name in ("revision", "cache_dir") if name in arguments}
        cached = try_to_load_from_cache(str(name_or_path), whole, **known)
        if cached is not None:  # the cache knows that the repository has no such file
            return Path(cached) if isinstance(cached, str) else None
        raise OSError(
            f"Whether {name_or_path} has a file {whole} is not known: it is not in the cache, and the Hub cannot be "
            f"reached ({error})."
        ) from error
    except EntryNotFoundError:
        return None
