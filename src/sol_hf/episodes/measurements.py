# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""A folder of [`Counterfactuals`], measured part by part, so that an interrupted run continues with the next part.

folder/settings.json                the settings of the measurements
       measured-00000.safetensors   the first blocks
       measured-00001.safetensors   ...
"""

import json
import os
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from accelerate import PartialState
from safetensors.torch import load_file, save_file
from tqdm.auto import tqdm

from ..modeling_sol import SOLForCausalLM
from .counterfactuals import Counterfactuals, Probes, measure


SETTINGS = "settings.json"
STORED_AS = {
    "hidden_states": torch.bfloat16,
    "next_states": torch.bfloat16,
    "tokens": torch.int32,
    "next_actions": torch.int32,
}


@dataclass(frozen=True)
class Measurements:
    """Measured costs of single steps, on disk.

    Args:
        folder (`Path`): The folder.
        context_length (`int`): Tokens before the first step of a block.
        probes ([`Probes`]): The probes to measure at every step.
        blocks_per_part (`int`, *optional*, defaults to 20): Blocks in a file.
        batch_size (`int`, *optional*, defaults to 4): Blocks that run at the same time.
        seed (`int`, *optional*, defaults to 0): Seed of the random actions.
    """

    folder: Path
    context_length: int
    probes: Probes
    blocks_per_part: int = 20
    batch_size: int = 4
    seed: int = 0

    def collect(self, model: SOLForCausalLM, blocks: torch.Tensor) -> Counterfactuals:
        """Measure the parts that are not in the folder yet, and load all.

        Processes of an `accelerate launch` share the work.

        Args:
            model ([`SOLForCausalLM`]): Its base is measured.
            blocks (`torch.LongTensor` of shape `(blocks, context + steps + 1)`): Token ids.

        Raises:
            ValueError: if the folder holds measurements with other settings or of other text.
        """
        state = PartialState()
        self._claim(model)
        parts = list(enumerate(blocks.split(self.blocks_per_part)))
        mine = parts[state.process_index :: state.num_processes]
        for number, part in tqdm(mine, desc="Measuring", disable=not state.is_main_process):
            if not self._path(number).exists():
                self._store(self._measure(model, part, number), number)
        state.wait_for_everyone()
        return Counterfactuals.concatenate([self._load(number, part) for number, part in parts])

    def _measure(self, model: SOLForCausalLM, blocks: torch.Tensor, number: int) -> Counterfactuals:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + number)
        steps = blocks.shape[1] - self.context_length - 1
        actions = torch.randint(len(model.action_space), (len(blocks), steps), generator=generator)
        batches = zip(blocks.split(self.batch_size), actions.split(self.batch_size), strict=True)
        device = model.base.device
        return Counterfactuals.concatenate(
            [
                measure(model, some.to(device), self.context_length, self.probes, drawn.to(device))
                for some, drawn in batches
            ]
        )

    def _claim(self, model: SOLForCausalLM) -> None:
        """Write the settings of the measurements, or compare them with those in the folder."""
        rule = model.config.selection_rule
        settings = {
            "base": model.config.base_model_name_or_path,
            "dtype": str(model.base.dtype),
            "context_length": self.context_length,
            "selection": [rule.criterion, rule.page_size, rule.page_selection],
            "blocks_per_part": self.blocks_per_part,
            "seed": self.seed,
            "probes": [
                list(pair) for pair in zip(self.probes.axes, (round(x, 6) for x in self.probes.levels), strict=True)
            ],
        }
        path = self.folder / SETTINGS
        if path.exists():
            found = json.loads(path.read_text(encoding="utf-8"))
            different = sorted(name for name in settings if found.get(name) != settings[name])
            if different:
                raise ValueError(
                    f"{self.folder} holds measurements with another {', '.join(different)}: choose another folder."
                )
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        self._replace(path, lambda partial: partial.write_text(json.dumps(settings, indent=2), encoding="utf-8"))

    def _path(self, number: int) -> Path:
        return self.folder / f"measured-{number:05d}.safetensors"

    def _store(self, measured: Counterfactuals, number: int) -> None:
        tensors = {
            field.name: getattr(measured, field.name).to(STORED_AS.get(field.name, torch.float32)).cpu().contiguous()
            for field in fields(Counterfactuals)
        }
        self._replace(self._path(number), lambda partial: save_file(tensors, partial))

    def _replace(self, path: Path, write) -> None:
        """Write a file atomically, so that it is complete or absent."""
        partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
        write(partial)
        partial.replace(path)

    def _load(self, number: int, blocks: torch.Tensor) -> Counterfactuals:
        tensors = load_file(self._path(number))
        for name in ("tokens", "next_actions"):
            tensors[name] = tensors[name].long()
        if not torch.equal(tensors["tokens"], blocks[:, self.context_length : -1].cpu()):
            raise ValueError(f"{self._path(number)} holds measurements of other text: choose another folder.")
        return Counterfactuals(**tensors)
