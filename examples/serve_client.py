# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Asks a server the same question at several budgets at once, by OpenAI's client, and prints what each has spent.

    sol-hf serve smollm2-135m --port 8000
    python examples/serve_client.py --url http://127.0.0.1:8000/v1 --prompt "Why is the sky blue?"

With `--tiny` it starts a server of its own, with a random base whose text has no meaning; this takes seconds:

    python examples/serve_client.py --tiny
"""

import argparse
import asyncio
import subprocess
import sys
import tempfile
from typing import Any

import openai

from sol_hf.integrations.tiny_llama import save_tiny_base


BUDGETS: dict[str, dict[str, Any]] = {
    "dense": {},
    "8 bits": {"bits": 8},
    "half of the tokens, 6 bits": {"token_keep": 0.5, "bits": 6},
    "lossless": {"lossless": True},
}
"""Fields of the requests: `extra_body` of OpenAI's client."""


async def ask(client: openai.AsyncOpenAI, model: str, title: str, options: argparse.Namespace) -> str:
    """One answer, read as a stream, and what it has spent."""
    stream = await client.completions.create(
        model=model,
        prompt=options.prompt,
        max_tokens=options.max_new_tokens,
        temperature=0,
        stream=True,
        extra_body=BUDGETS[title],
    )
    text, spent = "", {}
    async for chunk in stream:
        text += chunk.choices[0].text
        if chunk.usage is not None:  # the last one
            spent = chunk.metrics["sol"]
    realised = ", ".join(f"{axis} {value:.2f}" for axis, value in spent["realised"].items())
    agreement = f", agreement {spent['agreement']:.2f}" if "agreement" in spent else ""
    return f"{title}: {text!r}\n    {realised}{agreement}; net keep {spent['net_keep']:.2f}"


async def ask_all(options: argparse.Namespace) -> list[str]:
    """All answers, asked for at the same time."""
    async with openai.AsyncOpenAI(base_url=options.url, api_key="none") as client:
        (model,) = [model.id async for model in client.models.list()]
        try:
            wrong = {"bits": 99}
            await client.completions.create(model=model, prompt="x", extra_body=wrong)
        except openai.UnprocessableEntityError as error:
            print(f"{wrong} is refused: {error.body['message']}")
        return await asyncio.gather(*(ask(client, model, title, options) for title in BUDGETS))


def serve_tiny(folder: str) -> tuple[subprocess.Popen, str]:
    """A server for a tiny random base, and its address."""
    command = [sys.executable, "-m", "sol_hf.cli", "serve", save_tiny_base(folder), "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, process.stdout.readline().split()[-1]


def main(arguments: list[str] | None = None) -> None:
    """Asks and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--url", default="http://127.0.0.1:8000/v1", help="of the server")
    parser.add_argument("--prompt", default="The sky is blue because", help="the text to continue")
    parser.add_argument("--max-new-tokens", type=int, default=24, help="of every answer")
    parser.add_argument("--tiny", action="store_true", help="start a server for a tiny random base")
    options = parser.parse_args(arguments)
    if not options.tiny:
        print("\n".join(asyncio.run(ask_all(options))))
        return
    with tempfile.TemporaryDirectory() as folder:
        process, options.url = serve_tiny(folder)
        try:
            print("\n".join(asyncio.run(ask_all(options))))
        finally:
            process.terminate()
            process.wait(20)


if __name__ == "__main__":
    main()
