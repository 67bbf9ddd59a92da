# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Writes the front of a sweep into the config of a policy, as its calibration table."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...budget.calibration import NET_KEEP, check_unit, dense_row, point_keys, unit_of
from ...configuration_sol import SOLConfig
from ...episodes.stored_files import read_json, write_atomically
from ...hub.model_card import CARD_NAME, with_dial


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


def save_calibration(
    policy: str | os.PathLike,
    summary: Mapping[str, Any],
    unit: str = NET_KEEP,
    front: Sequence[Mapping[str, float]] | None = None,
    conditions: Mapping[str, Any] | None = None,
) -> int:
    """Write the policy's front and the dense row into its `config.json`; all other values in that file are kept.

    Tables in other units are kept, too. `compute` then counts in this unit, if a call names no other. The policy's
    card says so, if there is one.

    Args:
        policy (`str` or `os.PathLike`): Folder of the policy.
        summary (`Mapping[str, Any]`): From [`summarize_sweep`].
        unit (`str`, *optional*, defaults to `"net_keep"`): What the table counts, one of [`UNITS`].
        front (`Sequence[Mapping]`, *optional*): The points, from [`dial_points`]; by default the summary's front in
            net keep rates.
        conditions (`Mapping[str, Any]`, *optional*): Under what it was measured, see [`DialSetting`].

    Returns:
        `int`: Number of points of the table.

    Raises:
        ValueError: if the table is not valid in the config.
    """
    check_unit(unit, "unit")
    if front is None:
        front = summary["controllers"]["policy"]["front"]
    path = Path(policy, CONFIG)
    written = read_json(path, "download the policy again, or save it again")
    before = SOLConfig.from_dict(dict(written))
    space, kept = before.action_space, [point for point in before.calibration or () if unit_of(point) != unit]
    points = [{key: point[key] for key in point_keys(space, unit)} for point in front if point[unit] < 1]
    table = [*points, dense_row(space, summary["dense"]["log_perplexity"], unit)]
    written["calibration"] = [*table, *kept]
    stated = {name: value for name, value in (before.calibration_conditions or {}).items() if name != unit}
    stated |= {unit: dict(conditions)} if conditions else {}
    for name, value, usual in (
        ("calibration_unit", unit, NET_KEEP),
        ("calibration_conditions", stated, {}),
    ):
        written.pop(name, None)
        if value != usual:  # files of earlier versions say nothing, and mean net keep rates
            written[name] = value
    config = SOLConfig.from_dict(dict(written))  # checks the table
    text = json.dumps(written, indent=2, sort_keys=True) + "\n"
    write_atomically(path, lambda partial: partial.write_text(text, encoding="utf-8"))
    card = Path(policy, CARD_NAME)
    if card.is_file():
        said = with_dial(card.read_text(encoding="utf-8"), config)
        write_atomically(card, lambda partial: partial.write_text(said, encoding="utf-8"))
    return len(table)
