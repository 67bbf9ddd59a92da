# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Trains a policy with GRPO from a YAML file; options on the command line have precedence over the file.

    accelerate launch --config_file examples/accelerate/cpu.yaml examples/train_grpo.py \
        --config examples/configs/smollm2-135m-published.yaml --train_file texts.jsonl.gz --output_dir policy

To resume an interrupted run from its last checkpoint, give the same command again with `--resume`. With `max_steps: 0`
nothing is trained, and the policy is saved as it is. The arguments are those of `sol_hf/cli/train_arguments.py` and of
`SOLGRPOConfig`, which has those of TRL's `GRPOConfig` and of transformers' `TrainingArguments`.
The same as `sol-hf train`.
"""

import sys

from sol_hf.cli.train import ARGUMENTS, main, warm_up
from sol_hf.cli.train_arguments import PolicyArguments, ScriptArguments


__all__ = ["ARGUMENTS", "PolicyArguments", "ScriptArguments", "main", "warm_up"]

if __name__ == "__main__":
    main(sys.argv[1:])
