# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Prints what a policy is worth at several budgets: KL(dense ‖ policy) and perplexity, against others at equal cost.

    python examples/evaluate_policy.py policy texts.jsonl.gz --base smollm2-135m --budgets auto --blocks 32 \
        --context-length 256 512 --episodes 6 --contestants fixed:place,oracle --json evaluation.json

In seconds, without a download, for an untrained policy of a random base; further options change it:

    python examples/evaluate_policy.py --tiny

Texts are played as `generate` decodes: `--episodes` of decode steps with a KV refresh between them, budgets kept as by
default (`--hard` and `--soft` choose otherwise), contexts that end at every place of a page. The fixed schedule, and
every other contestant, is played at what the policy really spent. Intervals are over documents.

Without `--base` it uses the base that the policy's config names, without `--budgets` nine over the published grid,
clipped to the policy's action space; `--budgets auto` finds nine at which the fixed schedule costs .02 to .5 nats. The
texts are divided among the processes of an `accelerate launch`. Only the text for `--blocks` blocks is read.
`docs/training.md` explains the columns. The same as `sol-hf evaluate`.
"""

import sys
import tempfile
from pathlib import Path

from transformers import AutoModelForCausalLM

from sol_hf import BudgetEvaluation, SOLConfig, SOLForCausalLM
from sol_hf.cli.evaluate import main, names
from sol_hf.integrations.tiny_llama import save_tiny_base, save_tiny_texts


__all__ = ["main", "names", "run_tiny"]

TINY = "--blocks 6 --context-length 24 --episodes 2 --page-places 1 --per-document 1".split()
BUDGETS = ["--budgets", "0.3,0.6,12", "0.5,0.7,12"]


def run_tiny(arguments: list[str]) -> list[BudgetEvaluation]:
    """Evaluates an untrained policy of a random base in a temporary folder; `arguments` have precedence."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        base, texts = save_tiny_base(folder / "base"), save_tiny_texts(folder / "texts.jsonl")
        config = SOLConfig(bits=[8, 12, 16], episode_length=4, policy_hidden_size=32, policy_num_heads=2)
        SOLForCausalLM.from_base(AutoModelForCausalLM.from_pretrained(base), config).save_pretrained(folder / "policy")
        return main([str(folder / "policy"), texts, "--base", base, *TINY, *BUDGETS, *arguments])


if __name__ == "__main__":
    if "--tiny" in sys.argv:
        run_tiny([argument for argument in sys.argv[1:] if argument != "--tiny"])
    else:
        main(sys.argv[1:])
