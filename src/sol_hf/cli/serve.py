# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""`sol-hf serve`: OpenAI's API for a model, with a budget per request."""

from typing import Annotated

import typer

from .options import Base, BitsBackend, Dtype, DtypeOf, Model, Threads


def serve(
    model: Model,
    base: Base = None,
    dtype: DtypeOf = Dtype.auto,  # type: ignore[attr-defined]
    host: Annotated[str, typer.Option(help="address to listen on; others than loopback let anyone in")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="port to listen on; 0: a free one")] = 8000,
    name: Annotated[str | None, typer.Option(help="what clients call the model; default: its own name")] = None,
    bits_backend: BitsBackend = None,
    rows: Annotated[int, typer.Option(min=1, help="requests in a batch at most")] = 8,
    batches: Annotated[int, typer.Option(min=1, help="batches at the same time at most; they take turns")] = 4,
    queue: Annotated[int, typer.Option(min=1, help="requests that wait at most; further ones get a 503")] = 64,
    window: Annotated[float, typer.Option(min=0, max=10, help="seconds to wait for others to share a batch")] = 0.01,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="of an answer")] = 1024,
    max_prompt_tokens: Annotated[int | None, typer.Option(min=1, help="default: what the base has room for")] = None,
    log_level: Annotated[str, typer.Option(help="warning, info or debug")] = "warning",
    threads: Threads = None,
    check: Annotated[bool, typer.Option("--check", help="start, say where, and stop: to try settings")] = False,
) -> int:
    """Serve a model by OpenAI's API; token_keep, bits, compute, lossless and so on are fields of a request.

    Example: sol-hf serve smollm2-135m --port 0 --check
    """
    import logging
    import sys

    import torch

    from ..serving.app import build_app
    from ..serving.limits import ServeLimits
    from ..serving.server import is_loopback, make_server, run_server
    from .loading import load_any

    if log_level not in ("warning", "info", "debug"):
        raise ValueError(f"--log-level must be warning, info or debug, got {log_level!r}.")
    if threads is not None:
        torch.set_num_threads(threads)
    limits = ServeLimits(rows, batches, queue, window, max_new_tokens, max_prompt_tokens)
    if log_level == "warning":  # transformers warns of every request
        logging.getLogger("transformers.cli.serving").setLevel(logging.ERROR)
    loaded = load_any(model, base, dtype.value, bits_backend)
    called = name or loaded.name
    app = build_app(loaded.model, loaded.tokenizer, called, limits, loaded.controller)
    if not is_loopback(host):
        print(f"sol-hf: anyone who reaches {host} can use this server: it asks for no key.", file=sys.stderr)

    def tell(address: str) -> bool:
        print(f"Serving {called} at http://{address}/v1", flush=True)
        return not check

    run_server(make_server(app, host, port, log_level), tell)
    return 0
