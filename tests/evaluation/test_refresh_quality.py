# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""What the KV refresh is worth under a setting."""

import json
import runpy

import pytest
import torch

from sol_hf import FixedController
from sol_hf.evaluation.refresh_quality import measure_refresh, refresh_table
from sol_hf.evaluation.settings import model_with
from support.bases import tiny_base
from support.paths import ROOT


@pytest.fixture(scope="module")
def base():
    return tiny_base("llama", torch.float32)


def blocks(rows: int = 3, length: int = 60) -> torch.Tensor:
    return torch.randint(1, 90, (rows, length), generator=torch.Generator().manual_seed(0))


SETTING = {"token_keep": 0.1, "mlp_keep": 0.4}


def test_the_figures_are_those_of_calls_with_and_without_it(base):
    text, contexts = blocks(), [30, 31]
    (found,) = measure_refresh(base, [SETTING], text, contexts, episodes=3, episode_length=4)
    model, values = model_with(base, SETTING, 4), {}
    for kv_refresh in (True, False):
        values[kv_refresh] = []
        for row, context in zip(text, [30, 31, 30], strict=True):
            row = row[None, : context + 13]
            options = dict(controller=FixedController(), return_logits=True, kv_refresh=kv_refresh, **SETTING)
            got = model.score(row, context_length=context, **options).logits[0].log_softmax(-1)
            wanted = base(row).logits[0, context:-1].log_softmax(-1)
            values[kv_refresh].append((wanted.exp() * (wanted - got)).sum(-1)[4:])
    with_it, without = (torch.stack(values[kv_refresh]).detach() for kv_refresh in (True, False))
    added = (without - with_it).mean(dim=1)
    assert found.refreshed[0] == pytest.approx(float(with_it.mean()), rel=1e-3)
    assert found.added == pytest.approx((float(added.mean()), float(added.std() / 3**0.5)), rel=1e-2, abs=1e-7)
    expected = (without - with_it).view(3, 2, 4).mean(dim=(0, 2))
    assert found.by_episode == pytest.approx(expected.tolist(), rel=1e-2, abs=1e-7)
    assert found.added[0] != 0 and found.expected > 0


def test_blocks_may_run_together(base):
    text, contexts, settings = blocks(5, 42), [30, 32], [SETTING, {"bits": 4}]
    options = dict(episodes=2, episode_length=4)
    alone, together = (measure_refresh(base, settings, text, contexts, **options, batch_size=n) for n in (1, 3))
    for x, y in zip(alone, together, strict=True):
        assert x.refreshed == pytest.approx(y.refreshed, rel=1e-3) and x.expected == y.expected


@pytest.mark.parametrize(
    ("setting", "episodes", "message"),
    [
        ({"token_keep": 0.5}, 1, "give two episodes or more, got 1"),
        ({"token_keep": 0.5}, 4, "Blocks need 63 tokens: context, 4 episodes and one more, got 60"),
        ({"token_keep": 0.5, "kv_refresh": True}, 3, "Leave `kv_refresh` out of the settings"),
    ],
)
def test_what_cannot_be_measured_is_refused(base, setting, episodes, message):
    with pytest.raises(ValueError, match=message):
        measure_refresh(base, [setting], blocks(), [30], episodes=episodes, episode_length=8)


def test_the_command_prints_whether_auto_refreshes(tmp_path, capsys):
    main = runpy.run_path(str(ROOT / "examples" / "compare_settings.py"))["main"]
    arguments = [
        "--tiny",
        "--context-lengths",
        "40",
        "--blocks",
        "2",
        "--refresh",
        "--episodes",
        "2",
        "--episode-length",
        "4",
    ]
    settings = ["--set", "token_keep: .1", "--set", "bits: 8, bits_backend: nested"]
    results = main([*arguments, *settings, "--json", str(tmp_path / "table.json")])
    lines = capsys.readouterr().out.splitlines()
    assert lines[2].startswith("| token_keep 0.1 |") and lines[2].endswith("| refreshes |")
    assert lines[3].startswith("| bits 8, bits_backend nested |") and lines[3].endswith("| does not |")
    assert refresh_table(results).splitlines() == lines
    assert [x["expected"] for x in json.loads((tmp_path / "table.json").read_text())] == [
        result.expected for result in results
    ]
    with pytest.raises(SystemExit):
        main([*arguments, "--plot", str(tmp_path / "kl")])
