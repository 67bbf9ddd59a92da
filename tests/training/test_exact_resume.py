# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""A run that is resumed, from any checkpoint, ends with the weights of the run that was not interrupted."""

from pathlib import Path
from typing import Any

import pytest
from peft import LoraConfig
from safetensors.torch import load_file

from support.trainers import blocks, last_weights, losses, model_on, same_files, trainer_of


BLOCKS = 22
"""Blocks of the texts: 5 batches of 4, and 2 blocks that are left over."""
TO_THE_END = dict(max_steps=8, save_strategy="steps", save_steps=1, learning_rate=1e-2)


def texts(kind: str):
    return blocks(BLOCKS) if kind == "dataset" else blocks(BLOCKS).to_iterable_dataset()


def train(folder: Path, kind: str, checkpoint: Path | None = None, **arguments: Any):
    trainer = trainer_of(folder, model_on(), train_dataset=texts(kind), **{**TO_THE_END, **arguments})
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    return trainer


def assert_resumed_exactly(folder: Path, kind: str, stops: list[int], **arguments: Any) -> None:
    """Resume a run from its checkpoints after `stops` updates, and compare what comes out, bit by bit."""
    whole = train(folder / "whole", kind, **arguments)
    assert whole.state.global_step == 8
    wanted = last_weights(folder / "whole")
    assert wanted and not same_files(wanted, last_weights(folder / "whole", 7))
    for stop in stops:
        resumed = train(folder / f"from-{stop}", kind, folder / "whole" / f"checkpoint-{stop}", **arguments)
        assert same_files(last_weights(folder / f"from-{stop}"), wanted), stop
        assert losses(resumed) == losses(whole), stop


@pytest.mark.parametrize("kind", ["dataset", "stream"])
def test_after_the_first_epoch(tmp_path, kind):
    assert_resumed_exactly(tmp_path, kind, [6])


BATCHING = {
    "plain": dict(),
    "three of two": dict(steps_per_generation=3),  # batches of rollouts that do not divide into updates
    "one of two": dict(steps_per_generation=1),
    "two of three": dict(steps_per_generation=2, gradient_accumulation_steps=3),
    "iterations": dict(steps_per_generation=3, num_iterations=2),
    "unshuffled": dict(shuffle_dataset=False, gradient_accumulation_steps=1),
    "dropout": dict(peft_config=LoraConfig(target_modules=["q_proj", "v_proj"], lora_dropout=0.3)),
    "reference": dict(beta=0.1, sync_ref_model=True, ref_model_sync_steps=3),
    "entropy": dict(use_adaptive_entropy=True, entropy_target=3.0, entropy_coef_delta=0.05, entropy_coef=0.05),
    "workers": dict(dataloader_num_workers=1),
}


@pytest.mark.slow
@pytest.mark.parametrize("batching", BATCHING)
def test_other_ways_to_batch_and_to_train(tmp_path, batching):
    assert_resumed_exactly(
        tmp_path, "dataset", list(range(1, 8)) if batching == "plain" else [7], **BATCHING[batching]
    )


@pytest.mark.slow
@pytest.mark.parametrize("batching", ["three of two", "two of three", "iterations", "dropout"])
def test_the_same_for_streams(tmp_path, batching):
    assert_resumed_exactly(tmp_path, "stream", [4], **BATCHING[batching])


@pytest.mark.parametrize("kind", ["dataset", pytest.param("stream", marks=pytest.mark.slow)])
def test_a_finished_run_is_not_trained_further(tmp_path, kind):
    train(tmp_path, kind, max_steps=3)
    before = last_weights(tmp_path, 3)
    again = train(tmp_path, kind, tmp_path / "checkpoint-3", max_steps=3)
    assert again.state.global_step == 3
    again.save_model(tmp_path / "again")
    assert same_files({"model.safetensors": load_file(tmp_path / "again" / "model.safetensors")}, before)
