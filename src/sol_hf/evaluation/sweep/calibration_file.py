# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Writes the front of a sweep into the config of a policy, as its calibration table."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...budget.calibration import NET_KEEP, dense_row, point_keys
from ...configuration_sol import SOLConfig
from ...episodes.stored_files import read_json, write_atomically


CONFIG = "config.json"


def check_savable(policy: str | os.PathLike, controllers: Sequence[str]) -> None:
    """Raise a ValueError if a sweep's front could not be saved.

    Args:
        policy (`str` or `os.PathLike`): Folder of the policy.
        controllers (`Sequence[str]`): Controllers of the sweep.
    """
    if not Path(policy, CONFIG).is_file():
        raise ValueError(
            f"A calibration table goes into a local folder, and {policy} is none with a {CONFIG}: download the policy "
            "(`hf download`), give its folder, and upload it again."
        )
    if "policy" not in controllers:
        raise ValueError("A calibration table is the policy's front: name `policy` among the controllers.")


def save_calibration(policy: str | os.PathLike, summary: Mapping[str, Any]) -> int:
    """Write the policy's front and the dense row into its `config.json`; all other values in that file are kept.

    Args:
        policy (`str` or `os.PathLike`): Folder of the policy.
        summary (`Mapping[str, Any]`): From [`summarize_sweep`].

    Returns:
        `int`: Number of points of the table.

    Raises:
        ValueError: if the table is not valid in the config.
    """
    path = Path(policy, CONFIG)
    front = summary["controllers"]["policy"]["front"]
    written = read_json(path, "download the policy again, or save it again")
    written.pop("calibration", None)
    space = SOLConfig.from_dict(dict(written)).action_space
    points = [{key: point[key] for key in point_keys(space)} for point in front if point[NET_KEEP] < 1]
    written["calibration"] = [*points, dense_row(space, summary["dense"]["log_perplexity"])]
    SOLConfig.from_dict(dict(written))  # checks the table
    text = json.dumps(written, indent=2, sort_keys=True) + "\n"
    write_atomically(path, lambda partial: partial.write_text(text, encoding="utf-8"))
    return len(written["calibration"])
