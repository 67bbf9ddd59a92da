# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Forty users at once, each with a budget of its own: nobody loses a word, and nobody notices the others."""

import asyncio
import random
from dataclasses import dataclass, field
from typing import Any

import openai
import pytest
import torch

from support.bases import tiny_base
from support.cases import control
from support.policy_folders import tiny_tokenizer
from support.servers import NAME, serving, wait_until


@dataclass(frozen=True)
class User:
    number: int
    prompt: str
    new_tokens: int
    stream: bool
    leaves: bool
    fields: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)


def users() -> list[User]:
    """Budgets over all axes and in both modes, prompts and answers of many lengths, greedy and sampled."""
    draw, found = random.Random(5), []
    for number in range(40):
        words = " ".join(f"w{draw.randint(3, 98)}" for _ in range(draw.randint(3, 60)))
        axes = dict(token_keep=0.4 + 0.01 * number, mlp_keep=0.6 + 0.009 * number, bits=7 + 0.2 * number)
        kept = draw.sample(list(axes), draw.randint(1, 3))
        fields = {axis: round(axes[axis], 3) for axis in kept}
        if number % 10 == 9:
            fields["budget_mode"] = "soft"
        if number % 20 == 3:
            fields["lossless"] = True
        if number % 20 == 13:
            fields = {}
        settings = dict(temperature=0.9, top_p=0.95, seed=number) if number % 3 == 0 else dict(temperature=0)
        leaves = number % 4 == 2
        new_tokens = 120 if leaves else draw.randint(2, 24)
        found.append(User(number, words, new_tokens, number % 2 == 0, leaves, fields, settings))
    assert sum(user.leaves for user in found) == 10 and sum(user.stream for user in found) == 20
    return found


async def ask(client: openai.AsyncOpenAI, user: User, stream: bool) -> tuple[str, Any, Any]:
    """The text that a user gets, usage and metrics; nothing for one that leaves after the second piece of text."""
    answer = await client.chat.completions.create(
        model=NAME,
        messages=[{"role": "user", "content": user.prompt}],
        max_tokens=user.new_tokens,
        stream=stream,
        extra_body=user.fields,
        **user.settings,
    )
    if not stream:
        return answer.choices[0].message.content, answer.usage, answer.metrics["sol"]
    pieces, chunk = [], None
    async for chunk in answer:
        pieces.append(chunk.choices[0].delta.content or "")
        if user.leaves and len(pieces) > 2:
            await answer.close()
            return "", None, None
    return "".join(pieces), chunk.usage, chunk.metrics["sol"]


async def visit(client: openai.AsyncOpenAI, user: User) -> tuple[str, Any, Any]:
    await asyncio.sleep(0.004 * user.number)
    if not user.leaves or user.stream:
        return await ask(client, user, user.stream)
    try:  # leaves without a word
        return await asyncio.wait_for(ask(client, user, stream=False), timeout=0.15)
    except TimeoutError:
        return "", None, None


async def visit_together(url: str, crowd: list[User]) -> list[tuple[str, Any, Any]]:
    async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0, timeout=100) as client:
        return await asyncio.gather(*(visit(client, user) for user in crowd))


@pytest.mark.slow
def test_forty_users_with_forty_budgets_get_what_they_would_get_alone():
    model, crowd = control(tiny_base("llama", torch.float64)), users()
    with serving(model, tiny_tokenizer(), rows=8, batches=3) as server:
        together = asyncio.run(visit_together(server.url, crowd))
        wait_until(lambda: not server.batcher.running and not server.batcher.waiting)
        shared = 0
        for user, (text, usage, spent) in zip(crowd, together, strict=True):
            if user.leaves:
                continue
            alone = server.chat(user.prompt, max_tokens=user.new_tokens, **user.fields, **user.settings)
            expected = alone.metrics["sol"]
            assert text == alone.choices[0].message.content, user
            assert usage.completion_tokens == alone.usage.completion_tokens
            assert usage.prompt_tokens == alone.usage.prompt_tokens
            assert spent["realised"] == pytest.approx(expected["realised"]) and spent["net_keep"] <= 1
            assert spent["requested"] == {k: v for k, v in user.fields.items() if k in spent["realised"]}
            assert spent.get("bytes_share") == pytest.approx(expected.get("bytes_share"))
            assert expected["batch_rows"] == 1
            shared += spent["batch_rows"] > 1
        assert shared >= 15, "they were not computed together"
