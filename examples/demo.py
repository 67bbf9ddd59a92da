# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Continues one prompt by transformers, densely on our cache, with drafts, and at compute budgets, side by side.

    python examples/demo.py --prompt "Tell me about the Roman Empire." --out demo.html

All ways run in turn, three times each, and give the same text every time. `--extreme` adds budgets that are too small
for readable text. Without `--model` it uses SmolLM2-135M-Instruct, downloaded once.

The budgets are numbers for `compute=` of a trained policy: that of `--policy`, or the one in this repository if its
calibration says that it costs little. Otherwise they are fixed settings with these numbers as net keep rates, as
recommended in docs/choosing.md: weights are read in fewer bits, and some of the keys are left out.
"""

import argparse
import sys
from pathlib import Path

import torch
from rich.console import Console
from transformers import AutoModelForCausalLM, AutoTokenizer

from demo_notes import advice, footnotes
from demo_render import Comparison, render_page, show
from demo_run import compare
from demo_ways import COMPUTE, fixed_model
from sol_hf import SOLConfig, SOLForCausalLM
from sol_hf.cli.arguments import rate
from sol_hf.controllers.registry import CONTROLLERS
from sol_hf.integrations.smollm2 import ModelUnavailableError, fetch_smollm2


SHIPPED_POLICY = Path(__file__).parents[1] / "model_cards" / "sol-smollm2-135m"
MOST_LOSS = 0.1
"""Nats per token that the smallest number of `COMPUTE` may cost by a calibration."""
PROMPT = "Write a short story about a lighthouse keeper who finds a letter in a bottle."


def parse_options(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="folder or hub id of a causal LM (default: SmolLM2-135M-Instruct)")
    parser.add_argument("--policy", help="folder or hub id of a trained policy")
    parser.add_argument("--prompt", default=PROMPT)
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument(
        "--compute", type=rate, nargs="+", help="values for compute= of a policy with a calibration: .5, quality:.02"
    )
    parser.add_argument("--extreme", action="store_true", help="also budgets that are too small for readable text")
    parser.add_argument("--out", type=Path, default=Path("demo.html"), help="where to write the page")
    parser.add_argument("--controller", choices=list(CONTROLLERS), help="what spends the budget")
    parser.add_argument("--seed", type=int, default=0, help="of a random controller")
    options = parser.parse_args(arguments)
    if options.policy is None and options.model is None:
        wanted = options.controller == "policy" or (options.controller is None and is_calibrated(SHIPPED_POLICY))
        options.policy = str(SHIPPED_POLICY) if wanted else None
    options.controller = options.controller or ("policy" if options.policy else "fixed")
    if options.controller == "policy" and not options.policy:
        parser.error("--controller policy needs --policy for this model")
    if options.max_new_tokens < 1:
        parser.error("--max-new-tokens must be at least 1")
    if options.out.is_dir():
        parser.error(f"--out {options.out} is a folder: name a file in it")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    return options


def is_calibrated(policy: Path) -> bool:
    """Whether the calibration of a policy says that the budgets of the demo cost little."""
    try:
        return SOLConfig.from_pretrained(policy).expected_loss(min(COMPUTE)) <= MOST_LOSS
    except ValueError:  # it has none, or none that says what a budget costs
        return False


def main(arguments: list[str] | None = None) -> int:
    """Runs the demo; returns the exit status."""
    options = parse_options(arguments)
    console = Console()
    if not console.is_terminal:
        console = Console(width=120)
    try:
        source = options.model or fetch_smollm2()
    except ModelUnavailableError as error:
        console.print(f"error: {error}", style="red", markup=False)
        return 1
    name = Path(source).name if Path(source).is_dir() else str(source)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    console.print(f"Loading {name}", style="dim", highlight=False)
    tokenizer = AutoTokenizer.from_pretrained(source)
    base = AutoModelForCausalLM.from_pretrained(source, dtype="auto" if device.type == "cuda" else torch.float32)
    base = base.to(device).eval()
    policy = options.policy
    model = SOLForCausalLM.from_pretrained(policy, base=base) if policy else fixed_model(base, options.extreme)
    continuations, repeated = compare(model, tokenizer, options, console)
    controller = f"policy {Path(policy).name}" if options.controller == "policy" else options.controller
    notes, last = footnotes(options, device, repeated), advice(continuations)
    comparison = Comparison(name, controller, options.prompt, continuations, notes, last)
    show(comparison, console)
    options.out.write_text(render_page(comparison), encoding="utf-8")
    console.print(f"The same as a page, with the action of every token: {options.out}", highlight=False)
    console.print(last, style="bold", highlight=False)
    return 0 if repeated else 1


if __name__ == "__main__":
    sys.exit(main())
