# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""`sol-hf demo`: one prompt by transformers, by us without loss, and at budgets."""

from typing import Annotated, Any

import typer

from ..integrations.smollm2 import SMOLLM2
from .options import Base, Dtype, DtypeOf, Threads


PROMPT = "Write a short story about a lighthouse keeper who finds a letter in a bottle."


def demo(
    model: Annotated[str, typer.Argument(help="folder or Hub id of a policy, or of a base")] = SMOLLM2,
    base: Base = None,
    dtype: DtypeOf = Dtype.float32,  # type: ignore[attr-defined]
    prompt: Annotated[str, typer.Option(help="the text to continue")] = PROMPT,
    max_new_tokens: Annotated[int, typer.Option(min=2, help="of every way")] = 64,
    rounds: Annotated[int, typer.Option(min=1, help="runs of every way, in turn")] = 3,
    threads: Threads = None,
) -> int:
    """Continue one prompt by transformers, densely by us, by drafts that are checked, and at budgets, with speeds.

    Example: sol-hf demo smollm2-135m --max-new-tokens 8 --rounds 1
    """
    import argparse

    import torch

    from ..evaluation.bench import usable_ways
    from ..evaluation.speed import BASE, greedy_call, run_in_turn, speed_of
    from ..evaluation.ways import ways_of_policy, ways_of_settings
    from .bench import load_model

    if threads is not None:
        torch.set_num_threads(threads)
    named = argparse.Namespace(model=model, base=base, dtype=dtype.value, compute=None)
    loaded, tokenizer, has_policy = load_model(named)
    ways, refused = usable_ways(loaded, ways_of_policy(loaded) if has_policy else ways_of_settings(loaded))
    if tokenizer.chat_template:
        chat = [{"role": "user", "content": prompt}]
        prompt = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    ids = tokenizer(prompt, add_special_tokens=not tokenizer.chat_template, return_tensors="pt")["input_ids"]
    ids, texts = ids.to(loaded.device), {}
    call = greedy_call(loaded, torch.ones_like(ids), max_new_tokens)

    def run_of(way):
        def run(streamer=None):
            generate = loaded.base.generate if way.is_base else loaded.generate
            output: Any = generate(ids, **way.options, **call, streamer=streamer)
            texts[way.name] = tokenizer.decode(output.sequences[0, ids.shape[1] :], skip_special_tokens=True)
            return output

        return run

    outputs, times = run_in_turn({way.name: run_of(way) for way in ways}, rounds)
    for way in ways:
        speed = speed_of(way.name, outputs, times, max_new_tokens, way.calibrated)
        same = "" if way.is_base or texts[way.name] != texts[BASE] else ", the same text"
        print(f"{way.name}: {speed.median:.1f} tokens/s, {speed.speed_up:.2f} times transformers{same}")
        print(f"    {' '.join(texts[way.name].split())}\n")
    for name, reason in refused.items():
        print(f"{name}: not on this base. {reason}")
    return 0
