# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Writes texts of other kinds than prose, to evaluate policies on: code and conversations.

    python examples/other_texts.py code --out code.jsonl
    python examples/other_texts.py chat --base smollm2-135m --out chat.jsonl
    sol-hf evaluate my-policy code.jsonl --context-length 256 1024 2048 --per-document 1

Code is that of Python's standard library, which is wherever Python is. Conversations are questions in the chat
template of a base, answered by the base itself, so that they look like what it writes. On a random base:

    python examples/other_texts.py chat --tiny --out chat.jsonl
"""

import argparse
import json
import sysconfig
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from sol_hf.integrations.packaged_bases import base_source
from sol_hf.integrations.tiny_llama import tiny_base, tiny_tokenizer


LEAST_CHARACTERS = 12_000
"""Of a file of code, so that it is longer than a block."""
TOPICS = """bread, the moon, a bicycle, inflation, a vaccine, chess, the tides, a contract, photosynthesis,
jazz, a volcano, democracy, a refrigerator, grammar, a black hole, insurance, a glacier, an
orchestra, the alphabet, a database, silk, a marathon, a lighthouse, friendship""".replace("\n", " ").split(", ")
QUESTIONS = (
    "What is {topic}? Explain it in a few sentences.",
    "How would you explain it to a child?",
    "Give me three surprising facts about it.",
    "Write a short poem about it.",
)


def code(documents: int) -> list[str]:
    """The texts of some modules of the standard library, spread over its alphabet."""
    folder = Path(sysconfig.get_path("stdlib"))
    long = [file for file in sorted(folder.glob("*.py")) if file.stat().st_size >= LEAST_CHARACTERS]
    chosen = long[:: max(1, len(long) // documents)][:documents]
    return [file.read_text(encoding="utf-8") for file in chosen]


def chat(base: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, documents: int, new_tokens: int) -> list[str]:
    """Conversations of four turns, whose answers are drawn at a temperature of .7, eight conversations at a time."""
    torch.manual_seed(0)
    tokenizer.padding_side, texts = "left", []
    for begin in range(0, min(documents, len(TOPICS)), 8):
        talks: list[list[dict[str, str]]] = [[] for _ in TOPICS[begin : min(begin + 8, documents)]]
        for question in QUESTIONS:
            for talk, topic in zip(talks, TOPICS[begin:], strict=False):
                talk.append({"role": "user", "content": question.format(topic=topic)})
            inputs = tokenizer.apply_chat_template(
                talks, add_generation_prompt=True, padding=True, return_tensors="pt", return_dict=True
            )
            sampling = dict(do_sample=True, temperature=0.7, top_k=0, pad_token_id=tokenizer.pad_token_id)
            output = base.generate(**inputs, **sampling, max_new_tokens=new_tokens)
            answers = tokenizer.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
            for talk, answer in zip(talks, answers, strict=True):
                talk.append({"role": "assistant", "content": answer.strip()})
        texts += [str(tokenizer.apply_chat_template(talk, tokenize=False)) for talk in talks]
    return texts


def main(arguments: list[str] | None = None) -> list[str]:
    """Writes the texts, one JSON object a line, and returns them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kind", choices=("code", "chat"))
    parser.add_argument("--base", help="answers the questions: folder or Hub id of a base, or smollm2-135m")
    parser.add_argument("--documents", type=int, default=24)
    parser.add_argument("--tiny", action="store_true", help="a random base, two conversations")
    parser.add_argument("--out", type=Path, required=True, help="the file to write, .jsonl")
    options = parser.parse_args(arguments)
    if options.kind == "code":
        texts = code(options.documents)
    elif options.tiny:
        tokenizer = tiny_tokenizer()
        tokenizer.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
        texts = chat(tiny_base(tokenizer), tokenizer, documents=2, new_tokens=8)
    elif options.base is None:
        parser.error("conversations need a --base, or --tiny")
    else:
        source = base_source(options.base)
        base = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
        texts = chat(base, AutoTokenizer.from_pretrained(source, padding_side="left"), options.documents, 200)
    options.out.write_text("".join(f"{json.dumps({'text': text})}\n" for text in texts), encoding="utf-8")
    return texts


if __name__ == "__main__":
    main()
