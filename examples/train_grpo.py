# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Trains a policy with GRPO from a YAML file; options on the command line have precedence over the file.

    accelerate launch --config_file examples/accelerate/cpu.yaml examples/train_grpo.py \
        --config examples/configs/smollm2-135m-published.yaml --train_file texts.jsonl.gz --output_dir policy

To resume an interrupted run from its last checkpoint, give the same command again with `--resume`. With `max_steps: 0`
nothing is trained, and the policy is saved as it is. The arguments are those of `train_arguments.py` and of
`SOLGRPOConfig`, which has those of TRL's `GRPOConfig` and of transformers' `TrainingArguments`.
"""

import os
import sys
from collections.abc import Sequence

from transformers import TrainerCallback, set_seed
from transformers.trainer_utils import get_last_checkpoint
from trl import TrlParser

from sol_hf.episodes.text_blocks import pack_blocks
from sol_hf.training.grpo_config import SOLGRPOConfig
from sol_hf.training.grpo_trainer import SOLGRPOTrainer
from sol_hf.training.warmup import CounterfactualWarmup, CounterfactualWarmupConfig, warmup_blocks
from train_arguments import PolicyArguments, ScriptArguments


ARGUMENTS = (ScriptArguments, PolicyArguments, SOLGRPOConfig, CounterfactualWarmupConfig)


def main(arguments: list[str] | None = None, callbacks: Sequence[TrainerCallback] = ()) -> SOLGRPOTrainer:
    """Runs the training and returns the trainer."""
    script, policy, args, warmup = TrlParser(ARGUMENTS).parse_args_and_config(arguments)
    set_seed(args.seed)
    base, tokenizer = script.load_base(policy.base_model_revision)
    model = policy.load_model(base)
    train_dataset, eval_dataset = script.load_texts()
    if warmup.warmup_dir is not None:
        starter = CounterfactualWarmup(model, warmup)
        packed = pack_blocks(train_dataset, tokenizer, starter.block_length)
        starter.run(warmup_blocks(packed, warmup))
    checkpoint = get_last_checkpoint(args.output_dir) if script.resume and os.path.isdir(args.output_dir) else None

    trainer = SOLGRPOTrainer(
        model,
        args,
        train_dataset=train_dataset,
        eval_dataset=eval_dataset,
        processing_class=tokenizer,
        peft_config=policy.peft_config(),
        callbacks=list(callbacks),
    )
    if args.max_steps != 0:
        trainer.train(resume_from_checkpoint=checkpoint)
        trainer.save_state()
    trainer.save_model()
    if eval_dataset is not None:
        trainer.save_metrics("eval", trainer.evaluate())
    if args.push_to_hub:
        trainer.push_to_hub()
    return trainer


if __name__ == "__main__":
    main(sys.argv[1:])
