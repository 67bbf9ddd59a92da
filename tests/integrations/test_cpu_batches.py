# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""`--batch_size auto` on a CPU is a number that the machine can compute, found without trying."""

from types import SimpleNamespace

import pytest

from sol_hf.integrations import cpu_batches
from sol_hf.integrations.cpu_batches import MOST_TOKENS, bytes_per_token, rows_for_cpu
from support.bases import FAMILIES, tiny_base
from support.lm_eval_runs import CHEAP, FULL, evaluate


def with_memory(monkeypatch, gibibytes: float) -> None:
    found = SimpleNamespace(available=gibibytes * 2**30)
    monkeypatch.setattr(cpu_batches.psutil, "virtual_memory", lambda: found)


def test_long_rows_run_a_few_at_a_time(monkeypatch):
    with_memory(monkeypatch, 1000)
    base = tiny_base("llama")
    assert rows_for_cpu(base, 20, most=64, all_logits=True) == 64
    assert rows_for_cpu(base, 8192, most=64, all_logits=True) == MOST_TOKENS // 8192 == 2
    assert rows_for_cpu(base, 100_000, most=64, all_logits=True) == 1


def test_little_memory_means_few_rows(monkeypatch):
    base = tiny_base("llama", vocab_size=5000)
    with_memory(monkeypatch, 0.05)
    many, few = (rows_for_cpu(base, 200, most=64, all_logits=logits) for logits in (False, True))
    assert 1 <= few < many < 64
    with_memory(monkeypatch, 0)
    assert rows_for_cpu(base, 200, most=64, all_logits=True) == 1


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_every_family_can_be_counted(family):
    base = tiny_base(family)
    plain = bytes_per_token(base, 100, all_logits=False)
    assert 4 * 2 * 2 * 32 <= plain < bytes_per_token(base, 100, all_logits=True) < 100_000
    base.set_attn_implementation("eager")
    assert bytes_per_token(base, 100, all_logits=False) > plain


@pytest.mark.parametrize("arguments", [CHEAP, FULL, {"controller": "dense"}])
def test_no_batch_is_tried(sol, monkeypatch, without_environment, arguments):
    lm = sol(batch_size="auto", max_length=8192, **arguments)
    widest: list[int] = []
    forward = lm.sol.base.forward
    monkeypatch.setattr(
        lm.sol.base,
        "forward",
        lambda *args, **kwargs: widest.append(max_tokens(args, kwargs)) or forward(*args, **kwargs),
    )
    evaluate(lm, limit=2)
    assert widest and max(widest) < 2000


def max_tokens(args: tuple, kwargs: dict) -> int:
    ids = next(x for x in (*args, kwargs.get("input_ids"), kwargs.get("inputs_embeds")) if x is not None)
    return ids.shape[0] * ids.shape[1]
