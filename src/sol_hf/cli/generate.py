# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""`sol-hf generate`: one text, densely or under a budget."""

from typing import Annotated

import typer

from .options import (
    Base,
    Bits,
    BitsBackend,
    Compute,
    Dtype,
    DtypeOf,
    Lossless,
    MlpKeep,
    Model,
    NeuronKeep,
    Threads,
    TokenKeep,
)


def generate(
    model: Model,
    prompt: Annotated[str, typer.Argument(help="the text to continue")],
    base: Base = None,
    dtype: DtypeOf = Dtype.auto,  # type: ignore[attr-defined]
    token_keep: TokenKeep = None,
    mlp_keep: MlpKeep = None,
    bits: Bits = None,
    neuron_keep: NeuronKeep = None,
    compute: Compute = None,
    lossless: Lossless = False,
    bits_backend: BitsBackend = None,
    measure_agreement: Annotated[
        bool, typer.Option("--measure-agreement", help="with the base, token by token")
    ] = False,
    as_chat: Annotated[bool, typer.Option("--chat", help="the prompt is a message, for the chat template")] = False,
    temperature: Annotated[float | None, typer.Option(help="0: the most likely tokens; default: the model's")] = None,
    seed: Annotated[int | None, typer.Option(help="of the random numbers")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="tokens at most")] = 64,
    as_json: Annotated[bool, typer.Option("--json", help="print text and spending as JSON")] = False,
    threads: Threads = None,
) -> int:
    """Continue a prompt. The text goes to standard output, what it has spent to standard error.

    Example: sol-hf generate smollm2-135m "The sky is blue because" --token-keep 0.5 --bits 8 --max-new-tokens 12
    """
    import json
    import sys

    import torch

    from .answer import Answering
    from .loading import given_budget, load_any
    from .talk import prompt_ids

    if threads is not None:
        torch.set_num_threads(threads)
    loaded = load_any(model, base, dtype.value, bits_backend)
    fields: dict = given_budget(
        token_keep=token_keep, mlp_keep=mlp_keep, bits=bits, neuron_keep=neuron_keep, compute=compute
    )
    fields |= {name: value for name, value in (("temperature", temperature), ("seed", seed)) if value is not None}
    fields |= {
        name: True for name, is_on in (("lossless", lossless), ("measure_agreement", measure_agreement)) if is_on
    }
    answering = Answering(loaded)
    answering.check(fields)
    ids = (
        prompt_ids(loaded, [{"role": "user", "content": prompt}]) if as_chat else loaded.tokenizer(prompt)["input_ids"]
    )
    write = (lambda piece: None) if as_json else lambda piece: print(piece, end="", flush=True)
    text, meter = answering(ids, fields, max_new_tokens, write)
    if as_json:
        print(json.dumps({"text": text, "tokens": meter.tokens, **meter.spent}))
    else:
        print()
        print(meter, file=sys.stderr)
    return 0
