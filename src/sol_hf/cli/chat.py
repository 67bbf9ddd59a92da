# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""`sol-hf chat`: a conversation in a terminal, with a meter of what it spends."""

from typing import Annotated, Any

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


def chat(
    model: Model,
    base: Base = None,
    dtype: DtypeOf = Dtype.auto,  # type: ignore[attr-defined]
    token_keep: TokenKeep = None,
    mlp_keep: MlpKeep = None,
    bits: Bits = None,
    neuron_keep: NeuronKeep = None,
    compute: Compute = None,
    lossless: Lossless = False,
    bits_backend: BitsBackend = None,
    system: Annotated[str | None, typer.Option(help="a first message that says how to answer")] = None,
    temperature: Annotated[float | None, typer.Option(help="0: the most likely tokens; default: the model's")] = None,
    seed: Annotated[int | None, typer.Option(help="of the random numbers")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="of an answer")] = 512,
    threads: Threads = None,
) -> int:
    """Chat with a model. While it answers, the last line shows its speed and what it spends; its agreement follows.

    Lines that begin with / are commands: /budget .4, /budget token_keep=.5 bits=8, /budget off, /lossless on, /new,
    /help, /quit.

    Example: echo "Hello" | sol-hf chat smollm2-135m --bits 8 --max-new-tokens 8
    """
    import sys

    import torch

    from .loading import given_budget, load_any
    from .talk import Talk

    if threads is not None:
        torch.set_num_threads(threads)
    loaded = load_any(model, base, dtype.value, bits_backend)
    fields: dict[str, Any] = given_budget(
        token_keep=token_keep, mlp_keep=mlp_keep, bits=bits, neuron_keep=neuron_keep, compute=compute
    )
    sampling = {name: value for name, value in (("temperature", temperature), ("seed", seed)) if value is not None}
    talk = Talk(loaded, sys.stdout, fields, sampling, lossless, system, max_new_tokens)
    talk.greet(sys.stdin.isatty())
    return talk.run(sys.stdin)
