# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""A short training run that processes share.

    torchrun --nproc_per_node 2 tests/support/train_tiny.py FOLDER [--shard] [--evaluate] [--constraint]

With `--evaluate`, every process checks that it ends with the best policy, with `--constraint` it trains under a hard
budget with multipliers, and leaves these in the folder.
"""

import os
import sys
from pathlib import Path

import torch
from datasets import Dataset
from safetensors.torch import load_file
from torch.distributed.tensor import DTensor

from sol_hf.training.grpo_config import SOLGRPOConfig
from sol_hf.training.grpo_trainer import SOLGRPOTrainer
from support.bases import tiny_base
from support.cases import SETTINGS, control


ROLLOUTS, CONTEXT = 16, 20


EVALUATING = dict(
    eval_strategy="steps",
    eval_steps=1,
    eval_on_start=True,
    eval_blocks=7,
    save_strategy="steps",
    save_steps=1,
    load_best_model_at_end=True,
    metric_for_best_model="eval_gain",
    greater_is_better=True,
    learning_rate=3e-2,
)


CONSTRAINT = dict(
    budget_mode="hard",
    constraint="multiplier",
    penalty_weights=[0.0, 0.0, 0.0],
    kl_reward_weight=1.0,
    gamma=0.4,
    temperature=1.0,
    entropy_coef=0.002,
    beta=0.05,
    num_iterations=2,
    gradient_cosine_steps=1,
)


def main(folder: str, *options: str) -> None:
    torch.set_num_threads(1)
    model = control(tiny_base("llama"))
    model.policy.float()
    length = CONTEXT + SETTINGS["episode_length"] + 1
    tokens = torch.randint(1, 99, (64, length), generator=torch.Generator().manual_seed(0))
    settings = dict(
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
    settings |= EVALUATING if "--evaluate" in options else {}
    args = SOLGRPOConfig(**settings | (CONSTRAINT if "--constraint" in options else {}))
    dataset = Dataset.from_dict({"input_ids": tokens.tolist()})
    trainer = SOLGRPOTrainer(model, args, train_dataset=dataset, eval_dataset=dataset)
    trainer.train()
    if "--evaluate" in options:
        best = load_file(os.path.join(trainer.state.best_model_checkpoint, "model.safetensors"))
        assert all(torch.equal(best[name], weight) for name, weight in model.policy.state_dict().items())
    model.score(tokens[:2], context_length=CONTEXT, bits=9)  # ordinary tensors after those of inference mode
    trainer.save_model(folder)
    trainer.save_state()
    if trainer.is_world_process_zero():
        trainer.save_multipliers(Path(folder))
    shards = [name for name, weight in model.base.named_parameters() if isinstance(weight, DTensor)]
    assert len(shards) == (18 if "--shard" in options else 0), shards


if __name__ == "__main__":
    main(*sys.argv[1:])
