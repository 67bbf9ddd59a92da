# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0
"""`sol-hf train`: trains a policy with GRPO from a YAML file; options of the line have precedence over the file.

To resume an interrupted run from its last checkpoint, give the same command again with `--resume`. With `max_steps: 0`
nothing is trained, and the policy is saved as it is. The arguments are those of `train_arguments.py` and of
`SOLGRPOConfig`, which has those of TRL's `GRPOConfig` and of transformers' `TrainingArguments`. With `--valid_file`
the gain over the fixed schedule is measured at the end, printed, and written to `eval_results.json`.

Example: sol-hf train --train_file texts.jsonl --base smollm2-135m --output_dir policy --max_steps 0 --context_length 9
"""

import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from accelerate import PartialState
from transformers import TrainerCallback, set_seed
from trl import TrlParser

from ..episodes.text_blocks import pack_blocks
from ..training.checkpoint_record import has_checkpoint
from ..training.grpo_config import SOLGRPOConfig
from ..training.grpo_trainer import SOLGRPOTrainer
from ..training.metrics import evaluation_table
from ..training.warmup import CounterfactualWarmup, warmup_blocks
from ..training.warmup_config import CounterfactualWarmupConfig
from .train_arguments import PolicyArguments, ScriptArguments


logger = logging.getLogger(__name__)
ARGUMENTS = (ScriptArguments, PolicyArguments, SOLGRPOConfig, CounterfactualWarmupConfig)


def warm_up(model, config: CounterfactualWarmupConfig, args: SOLGRPOConfig, texts, tokenizer) -> dict | None:
    """Fits the policy to measured costs, on the device of the trainer; returns the prices of compute."""
    PartialState(cpu=args.use_cpu)
    starter = CounterfactualWarmup(model, config)
    longest = model.config.base_max_position_embeddings
    packed = pack_blocks(texts, tokenizer, starter.block_length, text_column=args.text_column, max_positions=longest)
    blocks = warmup_blocks(packed, config)
    if args.shard_base and not starter.is_fitted(blocks):
        raise ValueError(
            "The warmup measures the whole base in every process, before it is sharded. Run it first, with this "
            "command and `--shard_base false --max_steps 0` in as many processes as can hold the base; then give this "
            "command again, with the same `warmup_dir`."
        )
    starter.run(blocks)
    return starter.prices


def main(arguments: list[str] | None = None, callbacks: Sequence[TrainerCallback] = ()) -> SOLGRPOTrainer:
    """Runs the training and returns the trainer."""
    script, policy, args, warmup = TrlParser(ARGUMENTS).parse_args_and_config(arguments)
    policy.check_belongs_to_base(sys.argv[1:] if arguments is None else arguments)
    set_seed(args.seed)
    base, tokenizer = script.load_base(policy.base_model_revision)
    model = policy.load_model(base)
    train_dataset, eval_dataset = script.load_texts()
    has_begun = has_checkpoint(Path(args.output_dir))
    if has_begun and not script.resume:
        logger.warning("%s holds checkpoints, and this run begins anew: --resume goes on from them.", args.output_dir)
    prices = None
    if warmup.warmup_dir is not None:
        prices = warm_up(model, warmup, args, train_dataset, tokenizer)

    steps, args.max_steps = args.max_steps, args.max_steps or 1  # a trainer for a stream wants a number of steps
    trainer = SOLGRPOTrainer(
        model,
        args,
        train_dataset=train_dataset,
        eval_dataset=eval_dataset,
        processing_class=tokenizer,
        peft_config=policy.peft_config(),
        callbacks=list(callbacks),
        prices=prices if args.constraint == "multiplier" else None,
    )
    args.max_steps = steps
    if steps != 0:
        trainer.train(resume_from_checkpoint=script.resume and has_begun)
        trainer.save_state()
    trainer.save_model()
    if eval_dataset is not None:
        metrics = trainer.evaluate()
        trainer.save_metrics("eval", metrics)
        if trainer.is_world_process_zero():
            print(evaluation_table(metrics, model.action_space.axis_names))
    if args.push_to_hub:
        trainer.push_to_hub()
    return trainer
