# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The folder of a sweep: finished parts are kept, so that an interrupted sweep continues with the next one.

folder/settings.json                 the settings of the sweep
       parts/policy-0-00000.safetensors the results of one controller at some budgets
       ...
"""

import dataclasses
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging

from ...episodes.begin_tokens import first_token
from ...episodes.step_settings import StepSettings
from ...episodes.stored_files import (
    PARTIAL,
    DamagedFileError,
    load_tensors,
    read_json,
    store_tensors,
    write_json,
)
from ...modeling_sol import SOLForCausalLM
from ...stored.digests import config_digest, sampled_digest, text_digest
from ...stored.folder_lock import HOLDER, LOCK, FolderInUseError, folder_lock
from .table import SweepError


logger = logging.get_logger(__name__)

SETTINGS, PARTS = "settings.json", "parts"
RULES = 3
"""Version of what a sweep computes from the same settings. Parts of another version are not mixed with new ones. Since
version 2 an axis is held at its dense level if the budget leaves it dense; since version 3 blocks of several episodes
are played, and the oracle keeps its means over the horizon of the policy."""
MOMENT = 5.0
"""Seconds to wait for another process that has just begun."""


def describe(model: SOLForCausalLM, blocks: torch.Tensor) -> dict[str, Any]:
    """Base, policy and text of a sweep, for the settings of a [`SweepFolder`]."""
    return {
        "rules": RULES,
        "base": sampled_digest(model.base),
        "base_config": config_digest(model.base.config),
        "policy": sampled_digest(model.policy),
        "policy_config": config_digest(model.config),
        "levels": {axis: list(levels) for axis, levels in model.action_space.levels.items()},
        "selection": dataclasses.asdict(model.config.selection_rule),
        "text": text_digest(blocks),
        "first_token": first_token(blocks),
        "blocks": len(blocks),
        "episode_length": model.config.episode_length,
        **StepSettings.of(model).unusual,
    }


class SweepFolder:
    """Finished parts of one sweep.

    Args:
        path (`Path`): The folder; created if it does not exist.
        settings (`Mapping[str, Any]`): Settings of the sweep, as values for JSON.

    Raises:
        SweepError: if the folder belongs to another sweep, contains other files, or is in use.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]):
        self.path, self.parts, self.settings = path, path / PARTS, dict(settings)
        with self.in_use(MOMENT):
            pass

    @contextmanager
    def in_use(self, patience: float = 0.0) -> Iterator[None]:
        """Hold the folder, whose settings are those of this sweep, against other processes.

        Args:
            patience (`float`, *optional*, defaults to 0): Seconds to wait for another process.
        """
        if self.path.exists() and not (self.path / SETTINGS).exists():
            self._check_is_free()
        try:
            with folder_lock(self.path, patience):
                self._claim()
                yield
        except FolderInUseError as error:
            raise SweepError(f"{error} If it runs the same sweep, its tables will be the same.") from error

    def _check_is_free(self) -> None:
        """Raise an error if there is more in the folder than a sweep leaves that ended as it began."""
        if self.parts.is_dir() and any(self.parts.iterdir()):
            raise SweepError(
                f"{self.parts} holds parts of a sweep, but {SETTINGS} is missing, so it is not known of which: choose "
                f"another folder, or delete {self.path}."
            )
        own = (PARTS, LOCK, HOLDER)
        names = [path.name for path in self.path.iterdir() if path.suffix != PARTIAL]
        if any(name not in own for name in names):
            raise SweepError(f"{self.path} is not empty and holds no sweep: choose another folder.")

    def _claim(self) -> None:
        """Write the settings, before anything else, or compare them with those that the folder has."""
        file = self.path / SETTINGS
        if not file.exists():
            write_json(file, self.settings)
        way_out = f"delete {self.path} to begin again, or choose another folder"
        try:
            found = read_json(file, way_out)
        except DamagedFileError as error:
            raise SweepError(str(error)) from error
        wanted = json.loads(json.dumps(self.settings))
        different = sorted(name for name in {*found, *wanted} if found.get(name) != wanted.get(name))
        if different:
            raise SweepError(
                f"{self.path} holds a sweep with another {', '.join(different)}: choose another folder, or repeat the "
                f"arguments that {file} names."
            )

    def load(self, name: str, blocks: int) -> dict[str, torch.Tensor] | None:
        """A finished part, or `None` if there is none yet. A damaged one is removed, with a warning.

        Args:
            name (`str`): Name of the part.
            blocks (`int`): Blocks of the sweep, for which a part has results.
        """
        file = self.parts / f"{name}.safetensors"
        if not file.exists():
            return None
        try:
            tensors, _ = load_tensors(file, "it is made again")
            if "seconds" not in tensors or not any(value.shape[:1] == (blocks,) for value in tensors.values()):
                raise DamagedFileError(f"{file} is damaged (it lacks results): it is made again.")
            return tensors
        except DamagedFileError as error:
            logger.warning(str(error))
            file.unlink()
            return None

    def store(self, name: str, tensors: Mapping[str, torch.Tensor]) -> None:
        """Save a part."""
        store_tensors(self.parts / f"{name}.safetensors", tensors)
