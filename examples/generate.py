# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Continues a prompt, densely and under a budget, and prints the action of every new token.

    python examples/generate.py --model HuggingFaceTB/SmolLM2-135M-Instruct --prompt "Water boils at" \
        --token-keep 0.8 --mlp-keep 0.9 --bits 12 --budget-mode hard --max-new-tokens 32 --device cpu

Without `--model` it uses SmolLM2-135M-Instruct, downloaded once. `--policy` names a trained policy; without one the
fixed schedule is used. With a random base, whose text has no meaning, it needs no download and takes seconds:

    python examples/generate.py --tiny
"""

import argparse

from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from sol_hf import FixedController, SOLConfig, SOLForCausalLM
from sol_hf.budget.axes import AXES
from sol_hf.integrations.smollm2 import fetch_smollm2
from sol_hf.integrations.tiny_llama import tiny_base, tiny_tokenizer


TARGETS = {"token_keep": 0.8, "mlp_keep": 0.9, "bits": 12.0}
"""Default targets; other axes stay dense unless they are given."""


def load(options: argparse.Namespace) -> tuple[SOLForCausalLM, PreTrainedTokenizerBase]:
    """The base under a policy, and its tokenizer."""
    tokenizer: PreTrainedTokenizerBase
    base: PreTrainedModel
    if options.tiny:
        tokenizer = tiny_tokenizer()
        base = tiny_base(tokenizer)
    else:
        source = options.model or fetch_smollm2()
        tokenizer = AutoTokenizer.from_pretrained(source)
        base = AutoModelForCausalLM.from_pretrained(source).eval()
    base = base.to(options.device)
    if options.policy:
        return SOLForCausalLM.from_pretrained(options.policy, base=base), tokenizer
    further = {
        axis: list(AXES[axis].default_levels) for axis in AXES if axis not in TARGETS and axis in targets(options)
    }
    return SOLForCausalLM.from_base(base, SOLConfig(**further)), tokenizer


def targets(options: argparse.Namespace) -> dict[str, float]:
    """The targets that are set, by axis."""
    return {axis: getattr(options, axis) for axis in AXES if getattr(options, axis) is not None}


def parse_options(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Continue a prompt, dense and under a budget.")
    parser.add_argument("--model", help="folder or hub id of a causal LM (default: SmolLM2-135M-Instruct)")
    parser.add_argument("--policy", help="folder or hub id of a trained policy (default: the fixed schedule)")
    parser.add_argument("--tiny", action="store_true", help="a tiny random base, built in code")
    parser.add_argument("--prompt", default="Photosynthesis is the process by which")
    for name, axis in AXES.items():
        parser.add_argument(
            f"--{name.replace('_', '-')}", type=float, default=TARGETS.get(name), help=f"target: {axis.meaning}"
        )
    parser.add_argument("--budget-mode", choices=("hard", "soft"), default="hard")
    parser.add_argument("--max-new-tokens", type=int, default=32)
    parser.add_argument("--device", default="cpu")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Generates twice and prints the results."""
    options = parse_options(arguments)
    model, tokenizer = load(options)
    inputs = tokenizer(options.prompt, return_tensors="pt", return_token_type_ids=False).to(options.device)
    common = dict(inputs, max_new_tokens=options.max_new_tokens, do_sample=False, return_dict_in_generate=True)
    budget = targets(options)
    space = model.action_space
    controller = None if options.policy else FixedController(carry=space.axis_names)

    dense = model.generate(**common)
    output = model.generate(**common, **budget, budget_mode=options.budget_mode, controller=controller)
    print("dense:       ", repr(tokenizer.decode(dense.sequences[0])))
    print("under budget:", repr(tokenizer.decode(output.sequences[0])))
    print("actions:     ", *(space.tag(action) for action in output.actions[0].tolist()))
    for axis, realised in zip(space.axes, output.realised[0].tolist(), strict=True):
        print(f"{axis.name}: asked for {budget.get(axis.name, axis.dense):g}, used {realised:.3f}")


if __name__ == "__main__":
    main()
