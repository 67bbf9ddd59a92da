# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Trains a policy with GRPO from a YAML file; options on the command line have precedence over the file.

    accelerate launch --config_file examples/accelerate/cpu.yaml examples/train_grpo.py \
        --config examples/configs/smollm2-135m-published.yaml --train_file texts.jsonl.gz --output_dir policy

In seconds, without a download, on a random base: a start from measured costs, two updates, and the gain of that.
Further options change it; without `--output_dir` nothing is kept.

    python examples/train_grpo.py --tiny

To resume an interrupted run from its last checkpoint, give the same command again with `--resume`. With `max_steps: 0`
nothing is trained, and the policy is saved as it is. The arguments are those of `sol_hf/cli/train_arguments.py` and of
`SOLGRPOConfig`, which has those of TRL's `GRPOConfig` and of transformers' `TrainingArguments`.
The same as `sol-hf train`.
"""

import sys
import tempfile
from pathlib import Path

from sol_hf import SOLGRPOTrainer
from sol_hf.cli.train import ARGUMENTS, main, warm_up
from sol_hf.cli.train_arguments import PolicyArguments, ScriptArguments
from sol_hf.integrations.tiny_llama import save_tiny_base, save_tiny_texts


__all__ = ["ARGUMENTS", "PolicyArguments", "ScriptArguments", "main", "run_tiny", "warm_up"]

TINY = """
--token_keep 0.2 0.5 1.0 --mlp_keep 0.4 0.7 1.0 --bits 8 12 16 --page_size 4 --window_tokens 1 --episode_length 4
--policy_hidden_size 32 --policy_num_heads 2 --action_head factored --budget_prior true
--warmup_blocks 4 --warmup_context_length 8 --warmup_steps_per_block 8 --warmup_updates 4 --warmup_cost_models 2
--warmup_token_keep 0.2 --warmup_mlp_keep 0.4 --warmup_bits 8
--context_length 20 --num_generations 4 --per_device_train_batch_size 8 --gradient_accumulation_steps 1 --max_steps 2
--eval_blocks 6 --eval_budgets 0.3,0.6,12 0.5,0.7,12
--save_strategy no --logging_steps 1 --report_to none --use_cpu true
"""


def run_tiny(arguments: list[str]) -> SOLGRPOTrainer:
    """Trains on a random base and a small text in a temporary folder; `arguments` have precedence."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        texts = save_tiny_texts(folder / "texts.jsonl")
        files = ["--base", save_tiny_base(folder / "base"), "--train_file", texts, "--valid_file", texts]
        files += ["--warmup_dir", str(folder / "measured"), "--output_dir", str(folder / "policy")]
        return main([*files, *TINY.split(), *arguments])


if __name__ == "__main__":
    if "--tiny" in sys.argv:
        run_tiny([argument for argument in sys.argv[1:] if argument != "--tiny"])
    else:
        main(sys.argv[1:])
