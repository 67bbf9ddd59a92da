# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""A start and two recipes after it, on a tiny base: trained for a time, compared on the same texts, not repeated."""

import importlib
import json
import runpy
import sys

import pytest
import yaml

from support.paths import ROOT


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    yield importlib.import_module("compare_grpo")
    for name in ("compare_grpo", "grpo_arms", "train_grpo", "train_arguments"):
        sys.modules.pop(name, None)


@pytest.mark.slow
def test_three_arms_are_compared_and_not_trained_again(script, tmp_path, capsys, monkeypatch):
    example = runpy.run_path(str(ROOT / "examples" / "generate.py"))
    tokenizer = example["tiny_tokenizer"]()
    tokenizer.save_pretrained(tmp_path / "base")
    example["tiny_base"](tokenizer).save_pretrained(tmp_path / "base")
    texts, words = tmp_path / "texts.jsonl", "the budget of a step is what it may read of the cache "
    texts.write_text("".join(json.dumps({"text": f"{number} " + words * 80}) + "\n" for number in range(24)))
    published = yaml.safe_load((ROOT / "examples" / "configs" / "smollm2-135m-constraint.yaml").read_text())
    tiny = dict(context_length=12, policy_hidden_size=32, episode_length=4, num_generations=4, logging_steps=1)
    tiny |= dict(per_device_train_batch_size=4, rollout_batch_size=16, warmup_dir=str(tmp_path / "measured"))
    tiny |= dict(warmup_blocks=4, warmup_context_length=16, warmup_steps_per_block=8, warmup_updates=4)
    tiny |= dict(warmup_practice_episodes=8, warmup_practice_rounds=1, warmup_cost_models=2, use_cpu=True)
    config = tmp_path / "tiny.yaml"
    kept = {name: value for name, value in published.items() if name not in ("source_shares", "train_file")}
    config.write_text(yaml.safe_dump({**kept, **tiny}))
    arguments = [str(config), str(texts), str(texts), "--out", str(tmp_path / "out"), "--base", str(tmp_path / "base")]
    arguments += ["--minutes", "0.02", "--seeds", "0", "--blocks", "3", "--context-length", "12"]
    arguments += ["--budgets", "0.3,0.9,6,0.8"]
    figures = script.main(arguments)
    assert list(figures) == ["start", "published-0", "constraint-0"]
    assert all(len(found["budgets"][0]["kl"]) == 3 for found in figures.values())
    done = json.loads((tmp_path / "out" / "constraint-0" / "done.json").read_text())
    assert done["updates"] > 0 and "sol/multiplier_bits" in done["log"][0]
    shown = capsys.readouterr().out.splitlines()[-3:]
    assert shown[0].startswith("start") and "KL minus the start's +0.0000 ± 0.0000" in shown[0]
    monkeypatch.setattr(sys.modules["train_grpo"], "main", None)
    assert script.main(arguments) == figures
    with pytest.raises(ValueError, match="holds a run with other arguments"):
        script.main([*arguments, "--minutes", "0.03"])
