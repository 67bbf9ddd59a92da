# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The comparison of settings without a policy."""

import json
import runpy

import pytest
import torch

from sol_hf import FixedController, SOLConfig, SOLForCausalLM
from sol_hf.decoding import kv_refresh, step
from sol_hf.evaluation.settings import measure_settings, settings_table
from support.bases import tiny_base
from support.paths import ROOT


main = runpy.run_path(str(ROOT / "examples" / "compare_settings.py"))["main"]


def test_the_figures_are_those_of_a_call():
    base, blocks = tiny_base("llama"), torch.randint(1, 90, (3, 40), generator=torch.Generator().manual_seed(0))
    setting = {"criterion": "sketch", "selection": "layer", "token_keep": 0.4, "mlp_keep": 0.6}
    dense, found = measure_settings(base, [{"token_keep": 1.0}, setting], blocks, [30, 31], episode_length=8)
    assert dense.divergence == dense.loss == (0, 0) and dense.same_token == dense.bytes_share == 1
    config = SOLConfig(token_keep=[0.4, 1], mlp_keep=[0.6, 1], bits=[16], criterion="sketch", selection="layer")
    model, expected = SOLForCausalLM.from_base(base, config), []
    for row, context in zip(blocks, [30, 31, 30], strict=True):
        text = row[None, : context + 9]
        options = dict(token_keep=0.4, mlp_keep=0.6, controller=FixedController())
        sparse = model.score(text, context_length=context, return_logits=True, kv_refresh=False, **options)
        logits = base(text).logits[0, context:-1].log_softmax(-1)
        expected.append(float((logits.exp() * (logits - sparse.logits[0].log_softmax(-1))).sum(-1).mean()))
    assert found.divergence[0] == pytest.approx(sum(expected) / 3, rel=1e-4) and found.divergence[0] > 1e-4
    assert found.bytes_share < 1 and found.setting == setting


def test_short_blocks_are_refused():
    with pytest.raises(ValueError, match="Blocks need 49 tokens: context, episode and one more, got 40"):
        measure_settings(tiny_base("llama"), [{"token_keep": 0.5}], torch.ones(1, 40, dtype=torch.long), [32])


def test_times_are_those_of_our_own_dense_steps(monkeypatch):
    seconds = {"dense": 2.0, 0.4: 1.0, 0.8: 3.0}

    def generate(self, prompt, streamer, token_keep="dense", **options):
        assert streamer.times == [] and prompt.shape == (1, 30)
        streamer.times = [0.0, 5.0, 5.0 + seconds[token_keep]]

    monkeypatch.setattr(SOLForCausalLM, "generate", generate)
    base, blocks = tiny_base("llama"), torch.randint(1, 90, (2, 40), generator=torch.Generator().manual_seed(0))
    found = measure_settings(base, [{"token_keep": 0.4}, {"token_keep": 0.8}], blocks, [30], 8, timed_rounds=3)
    assert [result.time_share for result in found] == [0.5, 1.5]
    assert "| token_keep 0.4 |" in settings_table(found) and " 0.50 |" in settings_table(found)
    assert "time" not in settings_table(measure_settings(base, [{"token_keep": 0.4}], blocks, [30], 8))


def test_timed_steps_are_an_episode_and_its_refresh(monkeypatch):
    refreshed = []
    monkeypatch.setattr(step, "refresh", lambda *args: refreshed.append(1) or kv_refresh.refresh(*args))
    base, blocks = tiny_base("llama"), torch.randint(1, 90, (1, 40), generator=torch.Generator().manual_seed(0))
    (found,) = measure_settings(base, [{"token_keep": 0.4}], blocks, [30], 8, timed_rounds=1)
    assert len(refreshed) == 2 and found.time_share > 0


def test_the_command(tmp_path, capsys):
    arguments = [
        "--tiny",
        "--context-lengths",
        "40",
        "--blocks",
        "2",
        "--json",
        str(tmp_path / "table.json"),
        "--plot",
        str(tmp_path / "kl"),
    ]
    results = main([*arguments, "--set", "token_keep: .5, anchor_pages: true"])
    assert "| token_keep 0.5, anchor_pages True |" in capsys.readouterr().out
    assert (tmp_path / "kl.png").exists() and (tmp_path / "kl.svg").exists()
    stored = json.loads((tmp_path / "table.json").read_text())
    assert stored[0]["setting"] == {"token_keep": 0.5, "anchor_pages": True}
    assert stored[0]["divergence"] == list(results[0].divergence) and results[0].divergence[0] > 0
    with pytest.raises(SystemExit, match="A setting is written as `name: value"):
        main([*arguments, "--set", "token_keep"])
