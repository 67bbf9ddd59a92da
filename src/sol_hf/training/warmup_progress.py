# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The state of an unfinished fit on disk, so that a stopped one continues and ends with the same policy.

    folder/fit/expected.safetensors    expected costs, as far as the cost models are fitted
               practice-1.safetensors  the on-policy episodes of a round
               state.safetensors       policy, optimizer, correction, random numbers, losses so far

Every file has the settings of the fit in its notes. Files of other settings are ignored.
"""

import shutil
import time
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, Protocol

import torch
from transformers.utils import logging

from ..episodes.rollouts import Rollouts
from ..episodes.stored_files import DamagedFileError, load_tensors, store_tensors
from ..modeling_sol_policy import SOLPolicyModel
from ..stored.digests import value_digest


EVERY = 20.0
"""Seconds between two copies of the state."""
SETTINGS = "settings"
logger = logging.get_logger(__name__)


class Fitted(Protocol):
    """What changes in [`WarmupTargets`] while a policy is fitted to them."""

    on_policy: Any
    practice_rounds: int
    correction: Any

    def restore(self, episodes: tuple[Rollouts, torch.Tensor, torch.Tensor], rounds: int) -> None:
        """Take up the episodes of the last on-policy round of an earlier run."""


class FitState:
    """What a fit has reached.

    Args:
        folder (`Path`): Folder of the measurements.
        settings (`Mapping[str, Any]`): All that the result depends on.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any]):
        self.folder, self.settings = folder / "fit", value_digest(dict(settings))
        self.saved_at = time.monotonic()
        self.practice: Any = None

    def read(self, name: str) -> dict[str, torch.Tensor] | None:
        """Tensors of a file, or `None` if there is none of these settings. A damaged file is a warning."""
        path = self.folder / f"{name}.safetensors"
        if not path.exists():
            return None
        try:
            tensors, notes = load_tensors(path, "the fit does not continue, but begins again")
        except DamagedFileError as error:
            logger.warning(str(error))
            return None
        return tensors if notes.get(SETTINGS) == self.settings else None

    def write(self, name: str, tensors: Mapping[str, torch.Tensor]) -> None:
        """Replace a file."""
        store_tensors(self.folder / f"{name}.safetensors", tensors, {SETTINGS: self.settings})

    def remove(self) -> None:
        """Delete all files, after the fit has ended."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def save_sometimes(
        self, losses: list[float], policy: SOLPolicyModel, optimizer: torch.optim.Optimizer, targets: Fitted
    ) -> None:
        """Save the state if the last copy is old enough."""
        if time.monotonic() - self.saved_at < EVERY:
            return
        if targets.on_policy is not None and targets.on_policy is not self.practice:
            self.write(f"practice-{targets.practice_rounds}", _episodes_as_tensors(targets))
            self.practice = targets.on_policy
        tensors = {f"policy.{name}": value for name, value in policy.state_dict().items()}
        for index, values in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{name}": value for name, value in values.items()}
        tensors["correction"] = targets.correction.weights
        tensors["losses"] = torch.tensor(losses, dtype=torch.float64)
        tensors["random"] = torch.get_rng_state()
        tensors["practice"] = torch.tensor(targets.practice_rounds)
        if policy.device.type == "cuda":
            tensors["random_cuda"] = torch.cuda.get_rng_state(policy.device)
        self.write("state", tensors)
        self.saved_at = time.monotonic()

    def load(self, policy: SOLPolicyModel, optimizer: torch.optim.Optimizer, targets: Fitted) -> list[float]:
        """Restore the state; returns the losses of the updates that are done, none if there is no state."""
        tensors = self.read("state")
        if tensors is None:
            return []
        rounds = int(tensors["practice"])
        if rounds:
            episodes = self.read(f"practice-{rounds}")
            if episodes is None:
                return []
            targets.restore(_episodes_from_tensors(episodes), rounds)
            self.practice = targets.on_policy
        policy.load_state_dict({name.removeprefix("policy."): x for name, x in tensors.items() if "policy." in name})
        state: dict[int, dict[str, torch.Tensor]] = {}
        for name, value in tensors.items():
            if name.startswith("optimizer."):
                _, index, key = name.split(".")
                state.setdefault(int(index), {})[key] = value
        optimizer.load_state_dict(optimizer.state_dict() | {"state": state})
        targets.correction.weights = tensors["correction"]
        torch.set_rng_state(tensors["random"])
        if "random_cuda" in tensors and policy.device.type == "cuda":
            torch.cuda.set_rng_state(tensors["random_cuda"], policy.device)
        return tensors["losses"].tolist()


def _episodes_as_tensors(targets: Fitted) -> dict[str, torch.Tensor]:
    episodes = targets.on_policy
    assert episodes is not None, "there are on-policy episodes"
    rollouts = {f"rollouts.{name}": value for name, value in episodes.rollouts.tensors.items()}
    return {**rollouts, "blocks": episodes.blocks, "starts": episodes.starts}


def _episodes_from_tensors(tensors: Mapping[str, torch.Tensor]) -> tuple[Rollouts, torch.Tensor, torch.Tensor]:
    named = {field.name: tensors.get(f"rollouts.{field.name}") for field in fields(Rollouts)}
    rollouts = Rollouts(**{name: value for name, value in named.items() if value is not None})
    return rollouts, tensors["blocks"], tensors["starts"]
