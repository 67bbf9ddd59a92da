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
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from transformers import AutoModelForCausalLM, AutoTokenizer, BatchEncoding, PreTrainedModel, PreTrainedTokenizerBase

from demo_render import Comparison, Continuation, render_page, show
from sol_hf import Budget, SOLConfig, SOLForCausalLM, budgets_within, make_controller
from sol_hf.cli.arguments import rate
from sol_hf.controllers.registry import CONTROLLERS
from sol_hf.decoding.options import resolve_options
from sol_hf.evaluation.speed import run_in_turn
from sol_hf.figures.action_map import Action, Token, token_texts
from sol_hf.integrations.smollm2 import ModelUnavailableError, fetch_smollm2


SHIPPED_POLICY = Path(__file__).parents[1] / "model_cards" / "sol-smollm2-135m"
COMPUTE, EXTREME = (0.8, 0.6), (0.45, 0.36)
"""Numbers for `compute=` of a policy; the latter with `--extreme`."""
MOST_LOSS = 0.1
"""Nats per token that the smallest number of `COMPUTE` may cost by a calibration."""
BUDGETS: tuple[Action, ...] = ((0.8, 0.9, 12), (0.5, 0.7, 8))
EXTREME_BUDGETS: tuple[Action, ...] = ((0.3, 0.6, 7), (0.2, 0.5, 6))
"""Budgets of a policy without a calibration."""
FIXED: dict[float, dict[str, float]] = {
    0.8: dict(token_keep=0.9, bits=8),
    0.6: dict(token_keep=0.5, mlp_keep=0.925, bits=6),
}
EXTREME_FIXED: dict[float, dict[str, float]] = {
    0.45: dict(token_keep=0.3, mlp_keep=0.7375, bits=5),
    0.36: dict(token_keep=0.2, mlp_keep=0.63, bits=4),
}
"""Fixed settings by their net keep rates."""
ROUNDS = 3
PROMPT = "Write a short story about a lighthouse keeper who finds a letter in a bottle."


@dataclass(frozen=True)
class Column:
    """A way to continue the prompt: `options` for `generate`, of the base itself if `is_base`."""

    title: str
    requested: Action | None = None
    options: dict[str, Any] = field(default_factory=dict)
    is_base: bool = False


def encode(tokenizer: PreTrainedTokenizerBase, prompt: str) -> BatchEncoding:
    """The prompt as model inputs, through the chat template if there is one."""
    if tokenizer.chat_template:
        chat = [{"role": "user", "content": prompt}]
        prompt = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    bare = not tokenizer.chat_template  # a template writes the special tokens itself
    return tokenizer(prompt, add_special_tokens=bare, return_tensors="pt", return_token_type_ids=False)


@torch.no_grad()
def mean_log_probs(base: PreTrainedModel, prompt: torch.Tensor, continuations: list[torch.Tensor]) -> list[float]:
    """Mean log-probability of every continuation under the dense model, in one batched forward."""
    rows = [torch.cat([prompt[0], continuation]) for continuation in continuations]
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
    logits = base(input_ids=ids, attention_mask=mask).logits[:, prompt.shape[1] - 1 : -1]
    scores = logits.float().log_softmax(-1).gather(-1, ids[:, prompt.shape[1] :, None]).squeeze(-1)
    return [row[: len(new)].mean().item() for row, new in zip(scores, continuations, strict=True)]


def controller_spec(name: str, seed: int) -> str:
    """The name of a controller, with the seed if it takes one."""
    return f"{name}:{seed}" if CONTROLLERS[name].number == "seed" else name


def budget_columns(model: SOLForCausalLM, options: argparse.Namespace) -> list[Column]:
    """The columns of the budgets."""
    space, make = model.action_space, lambda: make_controller(controller_spec(options.controller, options.seed), model)
    columns = []
    if options.policy is None:
        for share, levels in {**FIXED, **(EXTREME_FIXED if options.extreme else {})}.items():
            asked = tuple(float(levels.get(axis.name, axis.dense)) for axis in space.axes)
            columns.append(
                Column(f"compute {share:g}", asked, {**levels, "bits_backend": "nested", "controller": make()})
            )
    elif model.config.calibration is not None and options.controller == "policy":
        for share in options.compute or COMPUTE + (EXTREME if options.extreme else ()):
            budget = resolve_options({"compute": share}, None, model.generation_config, model.config).budget
            asked = tuple(budget.targets(1)[0].mul(space.scales).tolist())
            columns.append(Column(f"compute {share}", asked, {"compute": share}))
    else:
        for asked in budgets_within(space, BUDGETS + (EXTREME_BUDGETS if options.extreme else ())):
            targets = dict(zip(space.axis_names, asked, strict=True))
            title = f"compute {Budget.of(targets).targets(1).mean():.2f}"
            columns.append(Column(title, asked, {**targets, "controller": make()}))
    return columns


def all_columns(model: SOLForCausalLM, options: argparse.Namespace) -> list[Column]:
    """transformers, our dense steps, drafts with dense checks, and the budgets.

    A budget that is stored with a policy enters no column with the text of transformers.
    """
    dense = Budget.of({axis.name: axis.dense for axis in model.action_space.axes})
    ours = Column("ours, dense", None, {"budget": dense, "backend": "fast"})
    checked = Column("lossless", None, {"lossless": True, "backend": "fast"})
    return [Column("transformers", is_base=True), ours, checked, *budget_columns(model, options)]


def run(model: SOLForCausalLM, columns: list[Column], inputs: BatchEncoding, length: int, console: Console):
    """Runs all columns in turn; returns their outputs, tokens per second by round, and whether texts were repeated."""
    texts: dict[str, list[torch.Tensor]] = {column.title: [] for column in columns}
    with Progress(
        *(TextColumn("{task.description:16}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()),
        console=console,
        transient=True,
    ) as progress:
        task = progress.add_task("warming up", total=len(columns) * (2 + ROUNDS))
        for column in columns:
            if not column.is_base:
                model.warmup(**column.options)
            progress.advance(task)

        def generation(column: Column) -> Callable:
            generate = model.base.generate if column.is_base else model.generate
            call = dict(inputs, max_new_tokens=length, do_sample=False, return_dict_in_generate=True, **column.options)

            def generate_text(streamer=None):
                progress.update(task, description=column.title)
                output = generate(**call, streamer=streamer)
                texts[column.title].append(output.sequences)
                progress.advance(task)
                return output

            return generate_text

        outputs, rounds = run_in_turn({column.title: generation(column) for column in columns}, ROUNDS)
    repeated = all(torch.equal(text, every[0]) for every in texts.values() for text in every)
    prompt = inputs["input_ids"].shape[1]
    speeds = {}
    for title, output in outputs.items():
        steps = output.sequences.shape[1] - prompt - 1
        speeds[title] = tuple(steps / seconds[title] for seconds in rounds) if steps > 0 else ()
    return outputs, speeds, repeated


def compare(model: SOLForCausalLM, tokenizer: PreTrainedTokenizerBase, options: argparse.Namespace, console: Console):
    """Continues the prompt in every way; returns the continuations, and whether texts were repeated."""
    space = model.action_space
    inputs = encode(tokenizer, options.prompt).to(model.device)
    length = inputs["input_ids"].shape[1]
    end = model.generation_config.eos_token_id
    end_ids = set() if end is None else set(torch.as_tensor(end).flatten().tolist())
    columns = all_columns(model, options)
    outputs, speeds, repeated = run(model, columns, inputs, options.max_new_tokens, console)
    new_tokens = [outputs[column.title].sequences[0, length:] for column in columns]
    scores = mean_log_probs(model.base, inputs["input_ids"], new_tokens)
    continuations = []
    for column, new, score in zip(columns, new_tokens, scores, strict=True):
        actions, realised = [space.dense] * len(new), space.dense
        if column.requested is not None:
            output = outputs[column.title]
            actions = [tuple(row) for row in space.values[output.actions[0].cpu()].tolist()]
            realised = tuple(output.realised[0].tolist())
        texts = token_texts(tokenizer, new.tolist(), end_ids)
        tokens = tuple(Token(text, action, axes=space.axis_names) for text, action in zip(texts, actions, strict=True))
        rounds = speeds[column.title]
        speed = statistics.median(rounds) if rounds else None
        parts = dict(axes=space.axis_names, rounds=rounds, name=column.title)
        continuations.append(Continuation(column.requested, realised, tokens, score, speed, **parts))
    return tuple(continuations), repeated


def advice(continuations: tuple[Continuation, ...]) -> str:
    """The last line: what is the fastest, and what is the fastest with the same text."""
    first = continuations[0].tokens_per_second
    timed = [item for item in continuations if item.tokens_per_second]
    if not first or not timed:
        return "fastest here: unknown, the texts are too short to be timed"
    best = max(timed, key=lambda item: item.tokens_per_second)
    dense = max((item for item in timed if item.requested is None), key=lambda item: item.tokens_per_second)
    line = f"fastest here: {best.title}, {best.tokens_per_second / first:.2f} times as fast as transformers"
    if best.requested is None:
        return line
    return f"{line}; with the same text: {dense.title}, {dense.tokens_per_second / first:.2f} times"


def footnotes(options: argparse.Namespace, device: torch.device, repeated: bool) -> tuple[str, ...]:
    """Notes that explain the numbers."""
    every = "Every text was the same in all of its runs." if repeated else "TEXTS DIFFERED from run to run."
    threads = f"{device.type} with {torch.get_num_threads()} threads"
    notes = [
        "log-prob per token: mean log-probability (nats) of the written text under the dense model, higher is better.",
        "Speeds are ratios to transformers. Counted: 1 / net keep. Measured: tokens per second, the median of "
        f"{ROUNDS} runs in turn on {threads}, policy and KV refresh included, the prompt not. {every}",
    ]
    if options.controller == "fixed":
        notes.append("Controller: the fixed schedule, which treats all tokens alike. Give a policy with --policy.")
    return tuple(notes)


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


def fixed_model(base: PreTrainedModel, extreme: bool) -> SOLForCausalLM:
    """A model with the levels of the fixed settings."""
    settings = [*FIXED.values(), *(EXTREME_FIXED.values() if extreme else ())]
    levels: dict[str, list] = {"token_keep": [1.0], "mlp_keep": [1.0], "bits": [16]}
    for setting in settings:
        for axis, level in setting.items():
            levels[axis].append(level)
    levels = {axis: sorted(set(values)) for axis, values in levels.items()}
    return SOLForCausalLM.from_base(base, SOLConfig(**levels, criterion="sketch", selection="layer"))


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
