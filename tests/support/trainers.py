# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Small trainers, and checks of the parameters that they changed."""

from pathlib import Path

import torch
from datasets import Dataset
from safetensors.torch import load_file

from sol_hf.training.grpo_config import SOLGRPOConfig
from sol_hf.training.grpo_trainer import SOLGRPOTrainer
from support.bases import tiny_base
from support.cases import SETTINGS, control


CONTEXT, STEPS, GROUP = 20, SETTINGS["episode_length"], 4


def blocks(number: int = 64) -> Dataset:
    generator = torch.Generator().manual_seed(0)
    return Dataset.from_dict(
        {"input_ids": torch.randint(1, 99, (number, CONTEXT + STEPS + 1), generator=generator).tolist()}
    )


def model_on(family: str = "llama", dtype: torch.dtype = torch.float32, **settings):
    model = control(tiny_base(family, dtype), **settings)
    model.policy.float()
    return model


def trainer_of(
    folder,
    model=None,
    reward_terms=(),
    peft_config=None,
    train_dataset=None,
    eval_dataset=None,
    processing_class=None,
    prices=None,
    **arguments,
) -> SOLGRPOTrainer:
    settings = dict(
        context_length=CONTEXT,
        num_generations=GROUP,
        per_device_train_batch_size=8,
        gradient_accumulation_steps=2,
        rollout_batch_size=8,
        max_steps=2,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
    )
    return SOLGRPOTrainer(
        model if model is not None else model_on(),
        SOLGRPOConfig(output_dir=str(folder), **{**settings, **arguments}),
        train_dataset=train_dataset if train_dataset is not None else blocks(),
        eval_dataset=eval_dataset,
        processing_class=processing_class,
        reward_terms=reward_terms,
        peft_config=peft_config,
        prices=prices,
    )


def weights(module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def changed(before: dict, module) -> set[str]:
    return {name for name, tensor in module.state_dict().items() if not torch.equal(tensor, before[name])}


def losses(trainer: SOLGRPOTrainer) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def last_weights(folder: Path, step: int = 8) -> dict[str, dict[str, torch.Tensor]]:
    """Weights of the policy in a checkpoint, by file."""
    checkpoint = folder / f"checkpoint-{step}"
    return {file.name: load_file(file) for file in sorted(checkpoint.glob("*model.safetensors"))}


def same_files(one: dict, other: dict) -> bool:
    """Whether [`last_weights`] of two checkpoints are equal, bit by bit."""
    return one.keys() == other.keys() and all(
        one[file].keys() == other[file].keys()
        and all(torch.equal(one[file][name], other[file][name]) for name in one[file])
        for file in one
    )
