# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Makes a policy from measured costs alone: measures what levels cost on text, fits a policy to it, and saves it.

    python examples/distill.py texts.jsonl.gz --base smollm2-135m --blocks 1000 --out policy

There is no reinforcement learning in it; `train_grpo.py` can go on from such a policy. Measurements are kept in a
folder next to the policy, so that a command that is given again continues. `docs/training.md` explains what is fitted.
On a random base and text, in seconds, without a download:

    python examples/distill.py --tiny --out policy
"""

import argparse
from pathlib import Path

from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer

from sol_hf import SOLConfig, SOLForCausalLM, load_text, pack_blocks
from sol_hf.cli.inputs import SMOLLM2
from sol_hf.integrations.packaged_bases import base_source
from sol_hf.integrations.tiny_llama import tiny_base, tiny_tokenizer
from sol_hf.training.warmup import CounterfactualWarmup, warmup_blocks
from sol_hf.training.warmup_config import CounterfactualWarmupConfig


TINY_POLICY = dict(token_keep=[0.5, 1.0], mlp_keep=[0.5, 1.0], bits=[8, 16], episode_length=4)
TINY_FIT = dict(
    warmup_context_length=12,
    warmup_steps_per_block=8,
    warmup_token_keep=[0.5],
    warmup_mlp_keep=[0.5],
    warmup_bits=[8],
    warmup_cost_models=2,
    warmup_updates=2,
    warmup_practice_rounds=0,
)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("texts", nargs="?", help="texts: .jsonl, .txt, .csv, also .gz; .parquet")
    parser.add_argument("--base", default=SMOLLM2, help="folder or Hub id of a causal LM")
    parser.add_argument("--blocks", type=int, default=1000, help="blocks of text to measure")
    parser.add_argument("--out", type=Path, required=True, help="folder for the policy")
    parser.add_argument("--tiny", action="store_true", help="a random base and text")
    options = parser.parse_args(arguments)
    if not options.tiny and options.texts is None:
        parser.error("give texts, or --tiny")
    return options


def main(arguments: list[str] | None = None) -> SOLForCausalLM:
    """Measures, fits and saves; returns the model."""
    options = parse(arguments)
    if options.tiny:
        tokenizer, small = tiny_tokenizer(), dict(policy_hidden_size=32, policy_num_heads=2)
        base, texts = tiny_base(tokenizer), Dataset.from_dict({"text": ["The tide comes in twice a day. " * 8]})
        blocks, policy, fit = 2, {**TINY_POLICY, **small}, TINY_FIT
    else:
        source = base_source(options.base)
        tokenizer, base = AutoTokenizer.from_pretrained(source), AutoModelForCausalLM.from_pretrained(source)
        texts, blocks, policy, fit = load_text(options.texts), options.blocks, {}, {}
    model = SOLForCausalLM.from_base(base, SOLConfig(action_head="factored", budget_prior=True, **policy))
    measured = f"{options.out}-measured"
    config = CounterfactualWarmupConfig(warmup_dir=measured, warmup_blocks=blocks, **fit)
    start = CounterfactualWarmup(model, config)
    start.run(warmup_blocks(pack_blocks(texts, tokenizer, start.block_length), config))
    model.save_pretrained(options.out, tokenizer=tokenizer)
    print(f"The policy is in {options.out}, what was measured in {measured}.")
    return model


if __name__ == "__main__":
    main()
