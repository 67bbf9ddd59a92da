# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The folder of a sweep: finished parts are kept, so that an interrupted sweep continues with the next one.

folder/settings.json                 the settings of the sweep
       parts/policy-0-00000.safetensors the results of one controller at some budgets
       ...
"""

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers.utils import logging

from ...modeling_sol import SOLForCausalLM
from .table import SweepError


logger = logging.get_logger(__name__)

SETTINGS = "settings.json"
SAMPLED = 256


def fingerprint(module: torch.nn.Module) -> str:
    """A hash of a module's parameters: names, shapes, types, and the first numbers of each."""
    digest = hashlib.sha256()
    for name, parameter in sorted(module.named_parameters()):
        some = parameter.detach().flatten()[:SAMPLED].double().cpu()
        digest.update(f"{name} {tuple(parameter.shape)} {parameter.dtype}".encode() + some.numpy().tobytes())
    return digest.hexdigest()[:16]


def describe(model: SOLForCausalLM, blocks: torch.Tensor) -> dict[str, Any]:
    """Base, policy and text of a sweep, for the settings of a [`SweepFolder`]."""
    rule = model.config.selection_rule
    return {
        "base": fingerprint(model.base),
        "policy": fingerprint(model.policy),
        "levels": {axis: list(levels) for axis, levels in model.action_space.levels.items()},
        "selection": [rule.criterion, rule.page_size, rule.page_selection, rule.sink_tokens, rule.window_tokens],
        "text": hashlib.sha256(blocks.cpu().numpy().tobytes()).hexdigest()[:16],
        "blocks": len(blocks),
        "episode_length": model.config.episode_length,
    }


class SweepFolder:
    """Finished parts of one sweep.

    Args:
        path (`Path`): The folder; created if it does not exist.
        settings (`Mapping[str, Any]`): Settings of the sweep, as values for JSON.

    Raises:
        SweepError: if the folder belongs to another sweep, or contains other files.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]):
        self.path = path
        self.parts = path / "parts"
        written = json.dumps(settings, indent=1)
        file = path / SETTINGS
        if file.exists():
            found, wanted = json.loads(file.read_text(encoding="utf-8")), json.loads(written)
            different = sorted(name for name in {*found, *wanted} if found.get(name) != wanted.get(name))
            if different:
                raise SweepError(
                    f"{path} holds a sweep with another {', '.join(different)}: choose another folder, or repeat the "
                    f"arguments that {file} names."
                )
        elif path.exists() and any(path.iterdir()):
            raise SweepError(f"{path} is not empty and holds no sweep: choose another folder.")
        self.parts.mkdir(parents=True, exist_ok=True)
        self.replace(file, lambda partial: partial.write_text(written, encoding="utf-8"))

    def load(self, name: str) -> dict[str, torch.Tensor] | None:
        """A finished part, or `None` if there is none yet. A damaged one is removed, with a warning."""
        file = self.parts / f"{name}.safetensors"
        if not file.exists():
            return None
        try:
            return load_file(file)
        except SafetensorError as error:
            logger.warning(f"{file} is damaged ({error}): it is made again.")
            file.unlink()
            return None

    def store(self, name: str, tensors: Mapping[str, torch.Tensor]) -> None:
        """Save a part."""
        whole = {key: tensor.contiguous() for key, tensor in tensors.items()}
        self.replace(self.parts / f"{name}.safetensors", lambda partial: save_file(whole, partial))

    def replace(self, file: Path, write: Callable[[Path], Any]) -> None:
        """Write a file atomically, so that it is complete or absent."""
        partial = file.with_name(f"{file.name}.{os.getpid()}.partial")
        write(partial)
        partial.replace(file)
