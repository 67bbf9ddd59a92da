# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Continues one prompt densely and at three compute budgets, and shows the compute of every token.

    python examples/demo.py --prompt "Tell me about the Roman Empire." --out demo.html

Without `--model` it uses SmolLM2-135M-Instruct, downloaded once, and the policy that was trained for it. For another
model pass a `--policy`; without one the fixed schedule is used, the baseline that a trained policy has to beat.
"""

import argparse
import sys
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from transformers import AutoModelForCausalLM, AutoTokenizer, BatchEncoding, PreTrainedModel, PreTrainedTokenizerBase
from transformers.generation.streamers import BaseStreamer

from demo_render import Comparison, Continuation, render_page, show
from sol_hf import SOLForCausalLM, budgets_within, make_controller
from sol_hf.controllers.registry import CONTROLLERS
from sol_hf.figures.action_map import Action, Token, compute_of, token_texts
from sol_hf.integrations.smollm2 import ModelUnavailableError, fetch_smollm2


SHIPPED_POLICY = Path(__file__).parents[1] / "model_cards" / "sol-smollm2-135m"
BUDGETS: tuple[Action, ...] = ((0.8, 0.9, 12), (0.5, 0.7, 8), (0.3, 0.6, 7))
WARM_UP = 20
"""Tokens of the warm-up: more than an episode, so that it includes a KV refresh."""
PROMPT = "Write a short story about a lighthouse keeper who finds a letter in a bottle."


class TickingStreamer(BaseStreamer):
    """Advances a progress bar and records the time at every new token."""

    def __init__(self, progress: Progress, title: str, max_new_tokens: int):
        self.progress = progress
        self.task = progress.add_task(title, total=max_new_tokens)
        self.times: list[float] = []

    def put(self, value: torch.Tensor) -> None:
        """Takes the prompt first, then one token at a time."""
        if self.times:
            self.progress.advance(self.task)
        self.times.append(time.perf_counter())

    def end(self) -> None:
        """Fills the bar, since a text may end early."""
        self.progress.update(self.task, total=len(self.times) - 1)

    def tokens_per_second(self) -> float | None:
        """Speed of decoding, without the prompt and the first new token."""
        steps = len(self.times) - 2
        return steps / (self.times[-1] - self.times[1]) if steps > 0 else None


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


def compare(model: SOLForCausalLM, tokenizer: PreTrainedTokenizerBase, options: argparse.Namespace, console: Console):
    """Continues the prompt densely and at every budget; returns the continuations for the renderer."""
    space = model.action_space
    budgets = budgets_within(space, BUDGETS)
    inputs = encode(tokenizer, options.prompt).to(model.device)
    length = inputs["input_ids"].shape[1]
    end = model.generation_config.eos_token_id
    end_ids = set() if end is None else set(torch.as_tensor(end).flatten().tolist())

    def generate(budget: Action | None, max_new_tokens: int, streamer: BaseStreamer | None = None):
        arguments = dict(inputs, max_new_tokens=max_new_tokens, do_sample=False, return_dict_in_generate=True)
        if budget is not None:
            arguments |= dict(zip(space.axis_names, budget, strict=True))
            arguments["controller"] = make_controller(controller_spec(options.controller, options.seed), model)
        return model.generate(**arguments, streamer=streamer)

    results = []
    columns = (TextColumn("{task.description:12}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        warming = progress.add_task("warming up", total=1 + len(budgets))
        for budget in (None, *budgets):  # the first steps measure which way is the fastest
            generate(budget, max_new_tokens=min(WARM_UP, options.max_new_tokens))
            progress.advance(warming)
        for budget in (None, *budgets):
            title = "dense" if budget is None else f"budget {compute_of(budget, space.axis_names):.2f}"
            streamer = TickingStreamer(progress, title, options.max_new_tokens)
            output = generate(budget, options.max_new_tokens, streamer)
            results.append((budget, output, streamer.tokens_per_second()))

    new_tokens = [output.sequences[0, length:] for _, output, _ in results]
    scores = mean_log_probs(model.base, inputs["input_ids"], new_tokens)
    continuations = []
    for (budget, output, speed), new, score in zip(results, new_tokens, scores, strict=True):
        actions, realised = [space.dense] * len(new), space.dense
        if budget is not None:
            actions = [tuple(row) for row in space.values[output.actions[0].cpu()].tolist()]
            realised = tuple(output.realised[0].tolist())
        texts = token_texts(tokenizer, new.tolist(), end_ids)
        tokens = tuple(Token(text, action, axes=space.axis_names) for text, action in zip(texts, actions, strict=True))
        continuations.append(Continuation(budget, realised, tokens, score, speed, space.axis_names))
    return tuple(continuations)


def footnotes(options: argparse.Namespace, device: torch.device) -> tuple[str, ...]:
    """Notes that explain the numbers."""
    notes = [
        "log-prob per token: mean log-probability (nats) of the written text under the dense model, higher is better.",
        "Speeds are ratios to dense. Counted: 1 / net keep. Measured: tokens per second of one run, warmed up, on "
        f"{device.type} with {torch.get_num_threads()} threads, policy and KV refresh included, the prompt not.",
    ]
    if options.controller == "fixed":
        notes.append("Controller: the fixed schedule, which treats all tokens alike. Give a policy with --policy.")
    return tuple(notes)


def parse_options(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Continue one prompt dense and at three compute budgets.")
    parser.add_argument("--model", help="folder or hub id of a causal LM (default: SmolLM2-135M-Instruct)")
    parser.add_argument("--policy", help="folder or hub id of a trained policy (default: that of the default model)")
    parser.add_argument("--prompt", default=PROMPT)
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--out", type=Path, default=Path("demo.html"), help="where to write the page")
    parser.add_argument("--controller", choices=list(CONTROLLERS), help="what spends the budget")
    parser.add_argument("--seed", type=int, default=0, help="of a random controller")
    options = parser.parse_args(arguments)
    if options.policy is None and options.model is None and options.controller in (None, "policy"):
        options.policy = str(SHIPPED_POLICY)
    options.controller = options.controller or ("policy" if options.policy else "fixed")
    if options.controller == "policy" and not options.policy:
        parser.error("--controller policy needs --policy for this model")
    if options.max_new_tokens < 1:
        parser.error("--max-new-tokens must be at least 1")
    if options.out.is_dir():
        parser.error(f"--out {options.out} is a folder: name a file in it")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    return options


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
    model = SOLForCausalLM.from_pretrained(policy, base=base) if policy else SOLForCausalLM.from_base(base)
    continuations = compare(model, tokenizer, options, console)
    controller = f"policy {Path(policy).name}" if options.controller == "policy" else options.controller
    comparison = Comparison(name, controller, options.prompt, continuations, footnotes(options, device))
    show(comparison, console)
    options.out.write_text(render_page(comparison), encoding="utf-8")
    console.print(f"The same as a page, with the action of every token: {options.out}", style="bold", highlight=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
