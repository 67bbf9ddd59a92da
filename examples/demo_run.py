# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0
"""What `demo.py` measures: texts and speeds of all ways in turn, and the log-probability of the texts."""

import argparse
import statistics
from collections.abc import Callable

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from transformers import BatchEncoding, PreTrainedModel, PreTrainedTokenizerBase

from demo_render import Continuation
from demo_ways import Column, all_columns
from sol_hf import SOLForCausalLM
from sol_hf.evaluation.speed import run_in_turn
from sol_hf.figures.action_map import Token, token_texts


ROUNDS = 3


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
