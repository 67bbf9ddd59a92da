# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0
"""A chat in a terminal: answers are streamed, and the cache is kept from turn to turn.

    python examples/chat.py --model HuggingFaceTB/SmolLM2-135M-Instruct --token-keep 0.5 --bits 8

Without `--model` it uses SmolLM2-135M-Instruct, downloaded once. `sol-hf chat` has a meter and commands beside it.
With a random base, whose text has no meaning, and two messages of its own, it takes seconds:

    python examples/chat.py --tiny
"""

import argparse
from collections.abc import Iterator
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase, TextStreamer

from sol_hf import FixedController, SOLCache, SOLConfig, SOLForCausalLM
from sol_hf.integrations.smollm2 import fetch_smollm2
from sol_hf.integrations.tiny_llama import tiny_base, tiny_tokenizer


LEVELS: dict[str, Any] = dict(token_keep=[0.2, 0.5, 1.0], mlp_keep=[1.0], bits=[6, 8, 16])
TINY_TEMPLATE = "{% for m in messages %}{{ m['content'] }}\n{% endfor %}"


def load(options: argparse.Namespace) -> tuple[SOLForCausalLM, PreTrainedTokenizerBase]:
    """The base under the fixed schedule, and its tokenizer."""
    tokenizer: PreTrainedTokenizerBase
    if options.tiny:
        tokenizer = tiny_tokenizer()
        tokenizer.chat_template = TINY_TEMPLATE
        base = tiny_base(tokenizer)
    else:
        source = options.model or fetch_smollm2()
        tokenizer = AutoTokenizer.from_pretrained(source)
        base = AutoModelForCausalLM.from_pretrained(source).eval()
    config = SOLConfig(**LEVELS, criterion="sketch", selection="layer", short_text_tokens=options.short_text_tokens)
    return SOLForCausalLM.from_base(base, config), tokenizer


def messages(options: argparse.Namespace) -> Iterator[str]:
    """What the user says."""
    if options.tiny:
        yield from ("The tide comes in, and the tide goes out again.", "And then?")
        return
    while True:
        try:
            yield input("> ")
        except EOFError:
            return


def main(arguments: list[str] | None = None) -> None:
    """Chats until the input ends."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="folder or hub id of a chat model (default: SmolLM2-135M-Instruct)")
    parser.add_argument("--tiny", action="store_true", help="a tiny random base, built in code")
    parser.add_argument("--token-keep", type=float, default=0.5, help="target: share of the cached tokens read")
    parser.add_argument("--bits", type=float, default=8.0, help="target: bits of the weights")
    parser.add_argument("--short-text-tokens", type=int, default=256, help="texts up to this length are read in full")
    parser.add_argument("--max-new-tokens", type=int, default=24, help="of an answer")
    options = parser.parse_args(arguments)
    if options.tiny:
        options.short_text_tokens = 0
    model, tokenizer = load(options)
    cache: SOLCache = model.new_cache()
    budget = dict(token_keep=options.token_keep, bits=options.bits, bits_backend="nested")
    text = torch.empty(1, 0, dtype=torch.long)
    for message in messages(options):
        chat = [{"role": "user", "content": message}]
        new = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt")["input_ids"]
        text = torch.cat([text, new], dim=1)
        output = model.generate(
            text,
            past_key_values=cache,
            controller=FixedController(carry=model.action_space.axis_names),
            streamer=TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True),
            max_new_tokens=options.max_new_tokens,
            return_dict_in_generate=True,
            **budget,
        )
        text = output.sequences
        realised = zip(model.action_space.axis_names, output.realised[0].tolist(), strict=True)
        print("   ", ", ".join(f"{axis} {value:.2f}" for axis, value in realised))


if __name__ == "__main__":
    main()
