# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0
"""A Space: one prompt, one dial, the dense text and the one under the budget side by side.

    python examples/space/app.py          # SmolLM2-135M-Instruct
    python examples/space/app.py --tiny   # a random base, whose text has no meaning; no download

The two texts are written one after the other, so that each has the machine for itself and the clock is fair.
"""

import argparse
import os
import time
from collections.abc import Iterator
from html import escape
from queue import Queue
from threading import Thread

import gradio as gr
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, MaxTimeCriteria, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from sol_hf import FixedController, SOLConfig, SOLForCausalLM
from sol_hf.integrations.tiny_llama import tiny_base, tiny_tokenizer


MOST_LETTERS, MOST_TOKENS, MOST_SECONDS, MOST_WAITING = 2000, 192, 60, 16
LEVELS = dict(token_keep=[0.1, 0.2, 0.3, 0.5, 0.7, 1.0], mlp_keep=[1.0], bits=[4, 5, 6, 8, 16])
DIAL = {"0.3": (0.2, 5), "0.5": (0.3, 6), "0.7": (0.5, 8), "0.9": (0.9, 8)}
"""Without a calibration: `token_keep` and `bits` for positions of the dial."""
THEME = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
"""With the fonts of the visitor: none are fetched from elsewhere."""
STYLE = """
.sol-text { font-size: 1.05rem; line-height: 1.75; min-height: 9rem; white-space: pre-wrap; }
.sol-text span { border-radius: 3px; padding: 0.1rem 0; }
.sol-facts { font-variant-numeric: tabular-nums; color: var(--body-text-color-subdued); }
"""


class Steps(BaseStreamer):
    """Passes every new token on, with the share of a dense step that its step used.

    Args:
        cache ([`SOLCache`]): Cache of the call.
        space ([`ActionSpace`]): Meaning of its actions.
    """

    def __init__(self, cache, space):
        self.cache, self.space, self.found, self.is_prompt = cache, space, Queue(), True

    def put(self, value: torch.Tensor) -> None:
        """Called by `generate` with the prompt, then with every new token."""
        if not self.is_prompt:
            actions = self.cache.trace[-1][0] if self.cache.trace else None
            used = 1.0 if actions is None else float(self.space.ratios[int(actions[0])].mean())
            self.found.put((int(value), used))
        self.is_prompt = False

    def end(self) -> None:
        """Called when the text is complete."""
        self.found.put(None)


class Words:
    """A text as HTML, token by token: the less a step used, the deeper its colour.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): Tokenizer of the base.
    """

    def __init__(self, tokenizer):
        self.tokenizer, self.tokens, self.text, self.spans = tokenizer, [], "", []

    def add(self, token: int, used: float) -> str:
        """The text with one more token, whose step used this share of a dense one."""
        self.tokens.append(token)
        text = self.tokenizer.decode(self.tokens, skip_special_tokens=True)
        color = f"rgba(0, 114, 178, {0.55 * (1 - used):.2f})"
        new = escape(text[len(self.text) :])
        self.spans.append(f'<span style="background:{color}" title="{used:.2f}">{new}</span>')
        self.text = text
        return self.html()

    def html(self) -> str:
        """The text so far."""
        return f'<div class="sol-text">{"".join(self.spans)}</div>'


class Writer:
    """Writes texts of one model.

    Args:
        model ([`SOLForCausalLM`]): Base and policy.
        tokenizer (`PreTrainedTokenizerBase`): Tokenizer of the base.
        has_policy (`bool`): Whether the policy is a trained one.
    """

    def __init__(self, model: SOLForCausalLM, tokenizer, has_policy: bool):
        self.model, self.tokenizer, self.has_policy = model, tokenizer, has_policy

    def budget(self, dial: float) -> dict:
        """Options of `generate` for a position of the dial."""
        if dial >= 1:
            return dict(backend="fast")
        if self.has_policy and self.model.config.calibration is not None:
            return dict(compute=dial)
        token_keep, bits = DIAL[min(DIAL, key=lambda place: abs(float(place) - dial))]
        controller = None if self.has_policy else FixedController()
        return dict(token_keep=token_keep, bits=bits, bits_backend="nested", controller=controller)

    def write(self, prompt: str, length: int, options: dict) -> Iterator[tuple[str, str]]:
        """Text so far as HTML, and what is known about it."""
        chat = [{"role": "user", "content": prompt}]
        if self.tokenizer.chat_template:
            prompt = self.tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        inputs = self.tokenizer(prompt, add_special_tokens=not self.tokenizer.chat_template, return_tensors="pt")
        steps = Steps(self.model.new_cache(), self.model.action_space)
        call = dict(inputs, max_new_tokens=length, do_sample=False, past_key_values=steps.cache, streamer=steps)
        limit = StoppingCriteriaList([MaxTimeCriteria(MOST_SECONDS)])
        done: dict = {}

        def run() -> None:
            try:
                done["output"] = self.model.generate(
                    **call, **options, return_dict_in_generate=True, stopping_criteria=limit
                )
            except Exception as error:  # shown to the visitor, below
                done["error"] = error
                steps.end()

        worker = Thread(target=run, daemon=True)
        worker.start()
        words, begin = Words(self.tokenizer), None
        for token, used in iter(steps.found.get, None):
            begin = begin or time.perf_counter()
            count, seconds = len(words.tokens), time.perf_counter() - begin
            yield words.add(token, used), f"{count + 1} tokens, {count / max(seconds, 1e-9):.1f} tokens/s"
        seconds = time.perf_counter() - (begin or time.perf_counter())
        worker.join()
        if "error" in done:
            raise gr.Error(str(done["error"]))
        yield words.html(), self.facts(done["output"], len(words.tokens), seconds, options)

    def facts(self, output, count: int, seconds: float, options: dict) -> str:
        """What a text was asked to use and used, and how fast it was."""
        rate = f"{count} tokens, **{(count - 1) / max(seconds, 1e-9):.1f} tokens/s**"
        agreement = getattr(output, "agreement", None)
        if "lossless" in options and agreement is None:
            return f"{rate}, everything used: drafts would not have paid"
        if "lossless" in options:
            return f"{rate}, {float(torch.as_tensor(agreement).mean()):.0%} of the drafts taken"
        realised = getattr(output, "realised", None)
        if realised is None or not options or "backend" in options:
            return f"{rate}, everything used"
        spent = zip(self.model.action_space.axis_names, realised[0].tolist(), strict=True)
        asked = ", ".join(f"{key} {value:g}" for key, value in options.items() if isinstance(value, int | float))
        return f"{rate}; asked: {asked}; used: " + ", ".join(f"{axis} {value:.3g}" for axis, value in spent)


def page(writer: Writer) -> gr.Blocks:
    """The page."""

    def both(prompt: str, dial: float, length: int, is_lossless: bool) -> Iterator[tuple[str, str, str, str]]:
        if not prompt.strip():
            raise gr.Error("Write a prompt first.")
        if len(prompt) > MOST_LETTERS:
            raise gr.Error(f"A prompt has at most {MOST_LETTERS:,} characters here, this one has {len(prompt):,}.")
        length = min(int(length), MOST_TOKENS)
        dense, budgeted = ("", ""), ("", "")
        for dense in writer.write(prompt, length, dict(backend="fast")):
            yield *dense, *budgeted
        for budgeted in writer.write(prompt, length, dict(lossless=True) if is_lossless else writer.budget(dial)):
            yield *dense, *budgeted

    with gr.Blocks(title="A budget for every token") as blocks:
        gr.Markdown("# A budget for every token\nThe deeper the colour, the less of the model its step used.")
        prompt = gr.Textbox("Explain in two sentences why the sky is blue.", label="Prompt", max_length=MOST_LETTERS)
        dial = gr.Slider(0.3, 1.0, 0.7, step=0.05, label="Compute", info="share of a dense step that a token may use")
        with gr.Accordion("Details", open=False):
            length = gr.Slider(8, MOST_TOKENS, 64, step=8, label="New tokens")
            is_lossless = gr.Checkbox(label="Lossless", info="draft cheaply, check densely: exactly the dense text")
        start = gr.Button("Write", variant="primary")
        with gr.Row():
            columns = []
            for name, title in (("dense", "Dense"), ("budget", "Under the budget")):
                with gr.Column():
                    gr.Markdown(f"### {title}")
                    text = gr.HTML('<div class="sol-text"></div>', elem_id=f"{name}-text")
                    columns += [text, gr.Markdown(elem_id=f"{name}-facts", elem_classes="sol-facts")]
        start.click(both, [prompt, dial, length, is_lossless], columns, concurrency_limit=1)
        prompt.submit(both, [prompt, dial, length, is_lossless], columns, concurrency_limit=1)
    return blocks.queue(max_size=MOST_WAITING)


def load(is_tiny: bool) -> Writer:
    """The model that the variables of the Space name."""
    policy = os.environ.get("SOL_POLICY")
    if is_tiny:
        tokenizer = tiny_tokenizer()
        base = tiny_base(tokenizer)
    else:
        name = os.environ.get("SOL_BASE", "HuggingFaceTB/SmolLM2-135M-Instruct")
        tokenizer, base = AutoTokenizer.from_pretrained(name), AutoModelForCausalLM.from_pretrained(name).eval()
    if policy is not None:
        return Writer(SOLForCausalLM.from_pretrained(policy, base=base), tokenizer, has_policy=True)
    config = SOLConfig(**LEVELS, criterion="sketch", selection="layer")
    return Writer(SOLForCausalLM.from_base(base, config), tokenizer, has_policy=False)


def main(arguments: list[str] | None = None) -> None:
    """Loads the model and opens the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tiny", action="store_true", help="a random base, for a look without a download")
    parser.add_argument("--port", type=int, default=7860, help="of the page, on this machine only")
    options = parser.parse_args(arguments)
    host = "0.0.0.0" if "SPACE_ID" in os.environ else "127.0.0.1"  # a Space is reached through its proxy
    page(load(options.tiny)).launch(server_name=host, server_port=options.port, theme=THEME, css=STYLE)


if __name__ == "__main__":
    main()
