# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""A server for a tiny policy on loopback, and OpenAI's client for it."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import openai
from transformers import PreTrainedTokenizerBase

from sol_hf import SOLForCausalLM
from sol_hf.serving.app import build_app
from sol_hf.serving.batcher import Batcher
from sol_hf.serving.limits import ServeLimits
from sol_hf.serving.server import make_server


NAME = "tiny"


@dataclass(frozen=True)
class Running:
    """A server that runs."""

    model: SOLForCausalLM
    tokenizer: PreTrainedTokenizerBase
    url: str
    batcher: Batcher

    def client(self, **options: Any) -> openai.OpenAI:
        return openai.OpenAI(base_url=self.url, api_key="none", **{"max_retries": 0, "timeout": 60} | options)

    def chat(self, content: str, stream: bool = False, model: str = NAME, **fields: Any) -> Any:
        """A chat of one message; fields that OpenAI's client does not know go into its extra body."""
        known = {"temperature", "seed", "stop", "max_tokens", "top_p", "n", "logit_bias", "frequency_penalty"}
        extra = {name: fields.pop(name) for name in list(fields) if name not in known}
        messages = [{"role": "user", "content": content}]
        create = self.client().chat.completions.create
        return create(model=model, messages=messages, stream=stream, extra_body=extra, **fields)


@contextmanager
def serving(model: SOLForCausalLM, tokenizer: PreTrainedTokenizerBase, **limits: Any) -> Iterator[Running]:
    """A server in a thread of its own."""
    app = build_app(model, tokenizer, NAME, ServeLimits(**limits))
    server = make_server(app, port=0)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    wait_until(lambda: server.started)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield Running(model, tokenizer, f"http://127.0.0.1:{port}/v1", app.state.served.batcher)
    finally:
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive()


def wait_until(condition: Callable[[], Any], seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come to pass"
        time.sleep(0.005)
