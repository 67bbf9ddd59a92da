# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The comparison of recipes on a tiny base: its runs, its figure, and that finished runs are not repeated."""

import importlib
import json
import runpy
import sys

import pytest
import yaml

from sol_hf import SOLConfig
from support.paths import ROOT


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    yield importlib.import_module("compare_recipes")
    for name in ("compare_recipes", "recipe_runs", "timed_snapshots", "train_grpo", "evaluate_policy"):
        sys.modules.pop(name, None)


@pytest.fixture
def runs(script):
    return importlib.import_module("recipe_runs")


@pytest.fixture
def command(tmp_path, runs, monkeypatch):
    """Arguments for two recipes on a tiny base, a few seconds each."""
    example = runpy.run_path(str(ROOT / "examples" / "generate.py"))
    tokenizer = example["tiny_tokenizer"]()
    tokenizer.save_pretrained(tmp_path / "base")
    example["tiny_base"](tokenizer).save_pretrained(tmp_path / "base")
    texts = tmp_path / "texts.jsonl"
    words = "the budget of a step is what it may read of the cache and of the weights "
    texts.write_text("".join(json.dumps({"text": f"{number} " + words * 60}) + "\n" for number in range(24)))
    config = tmp_path / "tiny.yaml"
    settings = dict(token_keep=[0.2, 0.5, 1.0], mlp_keep=[0.4, 0.7, 1.0], bits=[4, 8, 16], window_tokens=1)
    settings |= dict(episode_length=4, policy_hidden_size=32, policy_num_heads=2, page_size=4, num_generations=4)
    settings |= dict(per_device_train_batch_size=4, gradient_accumulation_steps=1, use_cpu=True, report_to="none")
    settings |= dict(token_keep_budgets=[0.2, 1.0], mlp_keep_budgets=[0.4, 1.0], bits_budgets=[4, 16])
    config.write_text(yaml.safe_dump(settings))
    monkeypatch.setattr(runs, "CONFIG", config)
    monkeypatch.setattr(runs, "BUDGETS", ((0.5, 0.7, 8), (1, 1, 4)))
    options = "--warmup_context_length 8 --warmup_steps_per_block 8 --warmup_token_keep 0.2"
    options += " --warmup_mlp_keep 0.4 --warmup_bits 4 --warmup_cost_models 2"
    arguments = [str(texts), str(texts), "--out", str(tmp_path / "out"), "--base", str(tmp_path / "base")]
    arguments += ["--recipes", "published", "warmup", "--seeds", "3", "--minutes", "0.02", "--blocks", "4"]
    arguments += ["--context-length", "12", "--warmup-blocks", "4", "--warmup-updates", "4"]
    return arguments, [*arguments, *options.split()]


@pytest.mark.slow
def test_every_recipe_trains_until_time_is_up_and_is_drawn(script, runs, command, tmp_path, monkeypatch):
    arguments, full = command
    curves = script.main(full)
    assert list(curves) == ["published", "warmup"]
    heads = {}
    for recipe, (run,) in curves.items():
        snapshots = sorted(path for path in (tmp_path / "out" / f"{recipe}-3").iterdir() if path.name.isdigit())
        assert len(run) == len(snapshots) >= 2 and run[-1]["minutes"] >= 0.02
        assert json.loads((snapshots[0].parent / "done.json").read_text())["updates"] >= 1
        config = SOLConfig.from_pretrained(snapshots[-1])
        heads[recipe] = (config.action_head, config.budget_prior)
    assert heads == {"published": ("joint", False), "warmup": ("factored", True)}
    assert json.loads((tmp_path / "out" / "recipes.json").read_text()) == curves
    picture = (tmp_path / "out" / "recipes.svg").read_text()
    assert "<svg" in picture and (tmp_path / "out" / "recipes.png").stat().st_size > 5000

    monkeypatch.setattr(runs.train_grpo, "main", lambda *_, **__: pytest.fail("trained again"))
    monkeypatch.setattr(runs.evaluate_policy, "main", lambda *_: pytest.fail("evaluated again"))
    assert script.main([*arguments, "--draw"]) == curves


def test_what_was_made_with_other_settings_is_not_taken(script, runs, tmp_path, capsys):
    options = script.parse(["a", "b", "--out", str(tmp_path)])
    made = {"base": options.base, "dtype": options.dtype, "blocks": options.blocks, "texts": "b"}
    made |= {"context_length": [options.context_length], "budgets": [list(budget) for budget in runs.BUDGETS]}
    path = tmp_path / "evaluation.json"
    assert not runs.is_evaluated(path, options)
    path.write_text(json.dumps({"evaluations": [], "settings": made}))
    assert runs.is_evaluated(path, options)
    for name, value in {"texts": "c", "blocks": 3, "dtype": "float32", "budgets": [], "context_length": 1}.items():
        path.write_text(json.dumps({"evaluations": [], "settings": made | {name: value}}))
        assert not runs.is_evaluated(path, options), name
    path.write_text('{"evaluations"')
    assert not runs.is_evaluated(path, options) and f"{path} is damaged" in capsys.readouterr().out


def test_a_run_with_other_arguments_is_refused(script, runs, tmp_path):
    folder = tmp_path / "prior-0"
    folder.mkdir()
    (folder / "done.json").write_text(json.dumps({"updates": 1, "settings": {"minutes": 3}}))
    options = script.parse(["a", "b", "--out", str(tmp_path)])
    with pytest.raises(ValueError, match="holds a run with other arguments .*: choose another --out"):
        runs.train(options, "prior", 0)
    (folder / "done.json").write_text("")
    with pytest.raises(ValueError, match=f"done.json is damaged .*: delete {folder} to run it again"):
        runs.train(options, "prior", 0)


def test_a_point_is_the_mean_over_budgets_with_its_error_over_blocks(script, runs, tmp_path):
    snapshot = tmp_path / "000120000"
    snapshot.mkdir()
    row = dict(requested=[0.5, 0.7, 8], realised=[0.6, 0.7, 8], losses=[1.0, 2.0], fixed_losses=[1.5, 2.1])
    other = dict(requested=[1, 1, 4], realised=[1, 1, 7.2], losses=[1.0, 1.0], fixed_losses=[1.1, 0.9])
    (snapshot / "evaluation.json").write_text(json.dumps({"evaluations": [row, other]}))
    point = runs.evaluate(script.parse(["a", "b", "--out", str(tmp_path)]), snapshot)
    assert point["gains"] == pytest.approx([0.3, 0.0])
    assert point["gain"] == pytest.approx(0.15) and point["gain_error"] == pytest.approx(0.15)
    assert point["budget_error"] == pytest.approx((0.1 + 3.2 / 16) / 6)
