# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""A folder of [`Counterfactuals`], measured part by part, so that an interrupted run continues with the next part.

folder/settings.json                the settings of the measurements
       measured-00000.safetensors   the first blocks
       measured-00001.safetensors   ...
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch
from accelerate import PartialState
from tqdm.auto import tqdm
from transformers.utils import logging

from ..modeling_sol import SOLForCausalLM
from ..stored.digests import config_digest, sampled_digest, text_digest
from .begin_tokens import first_token
from .counterfactuals import Counterfactuals, Probes, measure
from .step_settings import HOW, StepSettings
from .stored_files import DamagedFileError, load_tensors, read_json, store_tensors, write_json


logger = logging.get_logger(__name__)
TEXT = "text"
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

        Args:
            model ([`SOLForCausalLM`]): Its base is measured.
            blocks (`torch.LongTensor` of shape `(blocks, context + steps + 1)`): Token ids.

        Raises:
            ValueError: if the folder holds measurements with other settings or of other text.
        """
        self.fill(model, blocks)
        return self.load(blocks)

    def fill(self, model: SOLForCausalLM, blocks: torch.Tensor) -> None:
        """Measure the parts that are not in the folder yet.

        Processes of an `accelerate launch` share the work. Damaged parts are measured again, with a warning.

        Args:
            model ([`SOLForCausalLM`]): Its base is measured, on the device where it is.
            blocks (`torch.LongTensor` of shape `(blocks, context + steps + 1)`): Token ids.

        Raises:
            ValueError: if the folder holds measurements with other settings or of other text, or what the base
                predicts is not finite.
        """
        state = PartialState()
        self._claim(model, blocks)
        missing = [number for number, part in self._parts(blocks) if not self._is_there(number, part)]
        state.wait_for_everyone()  # all have seen the same parts before the first one is added
        mine, parts = missing[state.process_index :: state.num_processes], dict(self._parts(blocks))
        total = sum(len(parts[number]) for number in mine)
        with tqdm(total=total, desc="Measuring", unit="block", disable=not state.is_main_process) as bar:
            for number in mine:
                self._store(self._measure(model, parts[number], number, bar.update), number, parts[number])
        state.wait_for_everyone()

    def load(self, blocks: torch.Tensor) -> Counterfactuals:
        """The measurements of `blocks`, which are all in the folder.

        Raises:
            DamagedFileError: if a part cannot be read.
            ValueError: if a part is of other text.
        """
        whole: dict[str, torch.Tensor] = {}
        for number, part in self._parts(blocks):
            begin = number * self.blocks_per_part
            for name, value in self._load(number, part).items():
                if name not in whole:
                    whole[name] = torch.empty(len(blocks), *value.shape[1:], dtype=value.dtype)
                whole[name][begin : begin + len(part)] = value
        return Counterfactuals(**{field.name: whole[field.name] for field in fields(Counterfactuals)})

    def _parts(self, blocks: torch.Tensor) -> list[tuple[int, torch.Tensor]]:
        return list(enumerate(blocks.split(self.blocks_per_part)))

    def _is_there(self, number: int, blocks: torch.Tensor) -> bool:
        """Whether a part is in the folder and can be read. A damaged one is removed."""
        if not self._path(number).exists():
            return False
        try:
            self._load(number, blocks)
            return True
        except DamagedFileError as error:
            logger.warning(str(error))
            self._path(number).unlink(missing_ok=True)
            return False

    def _measure(
        self, model: SOLForCausalLM, blocks: torch.Tensor, number: int, advance: Callable[[int], object]
    ) -> Counterfactuals:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + number)
        steps = blocks.shape[1] - self.context_length - 1
        actions = torch.randint(len(model.action_space), (len(blocks), steps), generator=generator)
        batches = zip(blocks.split(self.batch_size), actions.split(self.batch_size), strict=True)
        device, found = model.device, []
        for some, drawn in batches:
            part = measure(model, some.to(device), self.context_length, self.probes, drawn.to(device))
            found.append(Counterfactuals(**{name: value.cpu() for name, value in vars(part).items()}))
            advance(len(some))
        measured = Counterfactuals.concatenate(found)
        if not all(bool(x.isfinite().all()) for x in (measured.divergence, measured.losses, measured.hidden_states)):
            raise ValueError(
                f"The base predicts infinite or undefined numbers in {model.base.dtype}: load it in bfloat16 or "
                "float32."
            )
        return measured

    def _claim(self, model: SOLForCausalLM, blocks: torch.Tensor) -> None:
        """Write the settings of the measurements, or compare them with those in the folder."""
        settings = {
            "base": sampled_digest(model.base),
            "base_config": config_digest(model.base.config),
            "dtype": str(model.base.dtype),
            "context_length": self.context_length,
            "first_token": first_token(blocks),
            "selection": asdict(model.config.selection_rule),
            "levels": {axis: list(levels) for axis, levels in model.action_space.levels.items()},
            "blocks_per_part": self.blocks_per_part,
            "seed": self.seed,
            "probes": [
                list(pair) for pair in zip(self.probes.axes, (round(x, 6) for x in self.probes.levels), strict=True)
            ],
            **StepSettings.of(model).unusual,
        }
        path, state = self.folder / SETTINGS, PartialState()
        if state.is_main_process and not path.exists():
            if list(self.folder.glob("measured-*")):
                raise ValueError(
                    f"{self.folder} holds measurements, but {SETTINGS} is missing, so it is not known of what: choose "
                    "another folder, or delete this one."
                )
            write_json(path, settings)
        state.wait_for_everyone()
        found = read_json(path, f"delete {self.folder} to measure again, or choose another folder")
        names = {*settings, *(name for name in HOW if name in found)}
        different = sorted(name for name in names if found.get(name) != settings.get(name))
        if different:
            raise ValueError(
                f"{self.folder} holds measurements with another {', '.join(different)}: choose another folder."
            )

    def _path(self, number: int) -> Path:
        return self.folder / f"measured-{number:05d}.safetensors"

    def _store(self, measured: Counterfactuals, number: int, blocks: torch.Tensor) -> None:
        tensors = {
            field.name: getattr(measured, field.name).to(STORED_AS.get(field.name, torch.float32))
            for field in fields(Counterfactuals)
        }
        store_tensors(self._path(number), tensors, {TEXT: text_digest(blocks)})

    def _load(self, number: int, blocks: torch.Tensor) -> dict[str, torch.Tensor]:
        path, again = self._path(number), "it is measured again"
        tensors, notes = load_tensors(path, again)
        if set(tensors) != {field.name for field in fields(Counterfactuals)}:
            raise DamagedFileError(f"{path} is damaged (it lacks measurements): {again}.")
        if notes.get(TEXT) != text_digest(blocks):
            raise ValueError(f"{path} holds measurements of other text: choose another folder.")
        return tensors | {name: tensors[name].long() for name in ("tokens", "next_actions")}
