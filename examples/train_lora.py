# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Trains a LoRA on a released policy with GRPO, for texts of your own; the policy itself stays as it is.

    python examples/train_lora.py policy texts.jsonl.gz --base smollm2-135m --steps 200 --out adapter

`SOLForCausalLM.from_pretrained("adapter", base=base)` loads the policy with its adapter. A YAML file and all further
options are in `train_grpo.py`, with `use_peft: true`. On a random policy and text, in seconds, without a download:

    python examples/train_lora.py --tiny --out adapter
"""

import argparse
from pathlib import Path

from datasets import Dataset
from peft import LoraConfig
from transformers import PreTrainedTokenizerBase

from sol_hf import SOLConfig, SOLForCausalLM, load_text
from sol_hf.cli.inputs import load_policy
from sol_hf.integrations.tiny_llama import tiny_base, tiny_tokenizer
from sol_hf.training.grpo_config import SOLGRPOConfig
from sol_hf.training.grpo_trainer import SOLGRPOTrainer


ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
TINY_RUN = dict(context_length=20, num_generations=2, per_device_train_batch_size=4, rollout_batch_size=4)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("policy", nargs="?", help="folder or Hub id of a policy")
    parser.add_argument("texts", nargs="?", help="texts: .jsonl, .txt, .csv, also .gz; .parquet")
    parser.add_argument("--base", help="folder or Hub id of its base, by default the one that the policy names")
    parser.add_argument("--dtype", default="float32", help="of the base")
    parser.add_argument("--rank", type=int, default=16, help="of the adapter")
    parser.add_argument("--steps", type=int, default=200, help="optimizer steps")
    parser.add_argument("--out", type=Path, required=True, help="folder for the adapter")
    parser.add_argument("--tiny", action="store_true", help="a random policy and text, two steps")
    options = parser.parse_args(arguments)
    if not options.tiny and options.texts is None:
        parser.error("give a policy and texts, or --tiny")
    return options


def tiny_policy() -> tuple[SOLForCausalLM, PreTrainedTokenizerBase, Dataset]:
    """A fresh policy on a random base, its tokenizer, and a text."""
    tokenizer = tiny_tokenizer()
    config = SOLConfig(bits=[8, 16], episode_length=4, policy_hidden_size=32, policy_num_heads=2)
    text = "The tide comes in twice a day, and goes out twice. "
    return SOLForCausalLM.from_base(tiny_base(tokenizer), config), tokenizer, Dataset.from_dict({"text": [text * 8]})


def main(arguments: list[str] | None = None) -> SOLGRPOTrainer:
    """Trains the adapter, saves it, and returns the trainer."""
    options = parse(arguments)
    model, tokenizer, texts = tiny_policy() if options.tiny else (*load_policy(options), load_text(options.texts))
    args = SOLGRPOConfig(
        output_dir=str(options.out),
        max_steps=2 if options.tiny else options.steps,
        report_to="none",
        save_strategy="no",
        **TINY_RUN if options.tiny else {},
    )
    adapter = LoraConfig(r=options.rank, lora_alpha=2 * options.rank, target_modules=ATTENTION)
    trainer = SOLGRPOTrainer(model, args, train_dataset=texts, processing_class=tokenizer, peft_config=adapter)
    trainer.train()
    trainer.save_model()
    return trainer


if __name__ == "__main__":
    main()
