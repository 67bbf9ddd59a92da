# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""A short training run that processes share: `torchrun --nproc_per_node 2 tests/train_tiny.py FOLDER [--shard]`."""

import os
import sys

import torch
from datasets import Dataset
from torch.distributed.tensor import DTensor

from bases import tiny_base
from cases import SETTINGS, control
from sol_hf.grpo_config import SOLGRPOConfig
from sol_hf.grpo_trainer import SOLGRPOTrainer


ROLLOUTS, CONTEXT = 16, 20


def main(folder: str, *options: str) -> None:
    torch.set_num_threads(1)
    model = control(tiny_base("llama"))
    model.policy.float()
    length = CONTEXT + SETTINGS["episode_length"] + 1
    tokens = torch.randint(1, 99, (64, length), generator=torch.Generator().manual_seed(0))
    args = SOLGRPOConfig(
        output_dir=folder,
        context_length=CONTEXT,
        num_generations=4,
        rollout_batch_size=8,
        per_device_train_batch_size=ROLLOUTS // int(os.environ.get("WORLD_SIZE", 1)),
        gradient_accumulation_steps=2,
        max_steps=4,
        save_strategy="no",
        shard_base="--shard" in options,
        logging_steps=1,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
    )
    trainer = SOLGRPOTrainer(model, args, train_dataset=Dataset.from_dict({"input_ids": tokens.tolist()}))
    trainer.train()
    model.score(tokens[:2], context_length=CONTEXT, bits=9)  # ordinary tensors after those of inference mode
    trainer.save_model(folder)
    trainer.save_state()
    shards = [name for name, weight in model.base.named_parameters() if isinstance(weight, DTensor)]
    assert len(shards) == (18 if "--shard" in options else 0), shards


if __name__ == "__main__":
    main(*sys.argv[1:])
