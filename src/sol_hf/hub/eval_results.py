# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Results of evaluations in a policy's repository, as the Hub reads them: `.eval_results/NAME.yaml`.

The page of the model shows them, and so do the leaderboards of the data sets that they name.
"""

import os
import re
from collections.abc import Sequence
from pathlib import Path

import yaml
from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id


FOLDER = ".eval_results"


def save_eval_results(folder: str | os.PathLike, entries: Sequence[EvalResultEntry], name: str = "results") -> Path:
    """Write results into the folder of a policy, from where `upload_folder` or a commit brings them to the Hub.

    Args:
        folder (`str` or `os.PathLike`): Folder of the policy.
        entries (`Sequence[EvalResultEntry]`): Of `huggingface_hub`. Say in `notes` under which budget the number was
            measured, and what was really spent.
        name (`str`, *optional*, defaults to `"results"`): Name of the file.

    Returns:
        `Path`: The file. One of that name that was there before is replaced.

    Raises:
        ValueError: if there are no entries, or one names no data set of the Hub or has no notes.
    """
    if not entries or not re.fullmatch(r"[\w-]+", name):
        raise ValueError(f"There must be results, and a name of letters, digits, `_` and `-`, got {name!r}.")
    for entry in entries:
        try:
            validate_repo_id(entry.dataset_id)
        except HFValidationError as error:
            raise ValueError(f"`dataset_id` must be that of a data set on the Hub: {error}") from error
        if not entry.notes:
            raise ValueError(
                f"The result on {entry.dataset_id} has no `notes`: say under which budget it was measured. Without "
                "that it would pass for a result of the base."
            )
    path = Path(folder, FOLDER, f"{name}.yaml")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(eval_result_entries_to_yaml(list(entries)), sort_keys=False), encoding="utf-8")
    return path
