# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""A response cache never gives an answer that the model of this run would not give."""

import dataclasses
import json

import pytest
import torch
from lm_eval.models.huggingface import HFLM
from transformers import AutoModelForCausalLM, AutoTokenizer

from sol_hf import Budget, SOLConfig, SOLForCausalLM
from sol_hf.budget.axes import AXES
from sol_hf.decoding.options import DecodeOptions
from sol_hf.integrations.lm_eval_adapter import SOLLM
from sol_hf.integrations.lm_eval_help import model_options
from sol_hf.integrations.lm_eval_settings import cache_fingerprint
from support.lm_eval_runs import CHEAP, answers, evaluate


pytestmark = pytest.mark.usefixtures("without_environment")
OTHER_VALUES = {
    "token_keep": 0.9,
    "mlp_keep": 0.9,
    "bits": 12,
    "budget": Budget(token_keep=0.6, mlp_keep=0.7, bits=8),
    "budget_mode": "soft",
    "budget_horizon": "episode",
    "exact": True,
    "controller": "fixed",
    "action_processors": None,
    "kv_refresh": False,
    "action_temperature": 0.5,
    "do_sample_actions": True,
    "backend": "reference",
    "bits_backend": "int8",
    "max_plane_bytes": 10**9,
    "kv_dtype": "bfloat16",
    "cuda_graphs": True,
    "lossless": True,
}
"""For every option of `generate` a value that is not the one of `CHEAP`."""
NAMES = [
    name for name in (*model_options(), "controller") if name in OTHER_VALUES or name == "compute" or name not in AXES
]
"""The options; of the axes those that the model has."""


def fingerprint(lm: SOLLM) -> dict:
    return cache_fingerprint(lm.settings, lm.is_dense)


def test_the_settings_have_every_resolved_option(sol):
    fields = {field.name for field in dataclasses.fields(DecodeOptions)}
    assert fields <= set(sol(**CHEAP).settings) and fields <= set(sol(controller="dense").settings)


@pytest.mark.parametrize("name", NAMES)
def test_every_option_changes_the_fingerprint(sol, name):
    """An option that is added to `generate` needs a line in `OTHER_VALUES`, and nothing else."""
    lm = sol(**CHEAP)
    if name == "action_processors":
        lm.given[name] = [print]
        with pytest.raises(ValueError, match="cannot know what `action_processors` do"):
            fingerprint(lm)
        return
    mine = fingerprint(lm)
    if name == "compute":
        lm.sol.config.calibration = [dict(net_keep=0.5, token_keep=0.6, mlp_keep=0.6, bits=6, log_perplexity=3.0)]
        lm.given = {"compute": 0.6}
    elif name == "compute_unit":
        point = dict(token_keep=0.6, mlp_keep=0.6, log_perplexity=3.0)
        lm.sol.config.calibration = [dict(point, net_keep=0.5, bits=6), dict(point, bytes=0.5, bits=8)]
        lm.given = {"compute": 0.6}
        mine, lm.given = fingerprint(lm), {"compute": 0.6, "compute_unit": "bytes"}
        assert lm.settings["compute_unit"] == "bytes"
    elif name == "budget":
        lm.given = {"budget": OTHER_VALUES["budget"]}
    elif name == "controller":
        lm = sol(controller="fixed", **CHEAP)
    else:
        lm.given[name] = OTHER_VALUES[name]
    assert fingerprint(lm) != mine and json.dumps(fingerprint(lm))


def change_policy_weights(lm: SOLLM) -> None:
    parameter = next(lm.sol.policy.parameters())
    with torch.no_grad():
        parameter.view(-1)[-1] += 1e-3


def change_base_weights(lm: SOLLM) -> None:
    with torch.no_grad():
        lm.sol.base.model.layers[1].mlp.down_proj.weight[3, 5] += 1e-6


CHANGES = {
    "criterion": lambda lm: setattr(lm.sol.config, "criterion", "recency"),
    "window": lambda lm: setattr(lm.sol.config, "window_tokens", 3),
    "episode length": lambda lm: setattr(lm.sol.config, "episode_length", 5),
    "weights of the policy": change_policy_weights,
    "one weight of the base": change_base_weights,
    "type of the base": lambda lm: lm.sol.base.float(),
    "a value of the base's config": lambda lm: setattr(lm.sol.base.config, "rope_theta", 3e4),
    "attention": lambda lm: lm.sol.base.set_attn_implementation("eager"),
    "stored sampling": lambda lm: setattr(lm.sol.generation_config, "repetition_penalty", 1.3),
    "a token": lambda lm: lm.tokenizer.add_tokens(["<more>"]),
    "length": lambda lm: setattr(lm, "_max_length", 100),
    "an argument of hf": lambda lm: lm.harness_arguments.update(add_bos_token=True),
}


@pytest.mark.parametrize("what", list(CHANGES))
def test_whatever_changes_an_answer_changes_the_fingerprint(sol, what):
    lm = sol(**CHEAP)
    mine = fingerprint(lm)
    CHANGES[what](lm)
    assert fingerprint(lm) != mine


def test_a_new_calibration_table_is_another_setting_only_where_it_gives_the_budget(sol):
    lm = sol(**CHEAP)
    mine = fingerprint(lm)
    table = dict(net_keep=0.5, token_keep=0.6, mlp_keep=0.6, bits=6, log_perplexity=3.0)
    lm.sol.config.calibration = [table]
    assert fingerprint(lm) == mine
    lm.given = {"compute": 0.6}
    asked = fingerprint(lm)
    lm.sol.config.calibration = [table | {"token_keep": 0.5}]
    assert fingerprint(lm) != asked


def test_equal_models_have_equal_fingerprints(sol, base, policy):
    """Where the files are and how many requests run at the same time is no part of it."""
    assert fingerprint(sol(**CHEAP)) == fingerprint(sol(batch_size=3, **CHEAP))
    loaded = [SOLLM(policy, base=base, device="cpu", batch_size=size, **CHEAP) for size in (2, "auto")]
    assert fingerprint(loaded[0]) == fingerprint(loaded[1])


def test_another_base_under_the_same_name_is_refused(sol, tmp_path):
    path, task = str(tmp_path / "cache"), ["tiny_choices"]
    evaluate(sol(**CHEAP), task, use_cache=path)
    other = sol(**CHEAP)
    change_base_weights(other)
    with pytest.raises(ValueError, match="other settings .base_weights '.*', now '.*'.: give"):
        evaluate(other, task, use_cache=path)
    with pytest.raises(ValueError, match="other settings .bits_backend 'fake', now 'int8'.: give"):
        evaluate(sol(bits_backend="int8", **CHEAP), task, use_cache=path)


def test_a_dense_run_trusts_no_cache_of_another_model(sol, tmp_path):
    path, lm = str(tmp_path / "cache"), sol(controller="dense")
    evaluate(HFLM(lm.sol.base, tokenizer=lm.tokenizer), ["tiny_choices"], use_cache=path)
    with pytest.raises(ValueError, match=r"other settings \(another model"):
        evaluate(lm, ["tiny_choices"], use_cache=path)


def test_dense_answers_serve_other_policies_and_budgets(sol, tmp_path):
    path, task = str(tmp_path / "cache"), ["tiny_choices"]
    first = evaluate(sol(controller="dense", token_keep=0.5), task, use_cache=path)
    other = sol(controller="dense")
    change_policy_weights(other)
    assert answers(evaluate(other, task, use_cache=path)) == answers(first)


def test_another_model_finds_none_of_our_answers(sol, tmp_path):
    """`--model hf` looks up requests only: it would take answers of a budget for its own."""
    path, lm = str(tmp_path / "cache"), sol(**CHEAP)
    ours = evaluate(lm, ["tiny_choices"], use_cache=path)
    dense = HFLM(lm.sol.base, tokenizer=lm.tokenizer)
    found = answers(evaluate(dense, ["tiny_choices"], use_cache=path))
    assert found == answers(evaluate(dense, ["tiny_choices"])) != answers(ours)


def test_a_cached_run_reports_what_was_spent(sol, tmp_path):
    path = str(tmp_path / "cache")
    first = evaluate(sol(**CHEAP), use_cache=path)["config"]["sol"]
    again = sol(**CHEAP)
    found = evaluate(again, use_cache=path)["config"]["sol"]
    assert not again.spending.records, "it computed something"
    assert found["realised"] == first["realised"] and len(found["realised"]) == 3
    assert found == first


def test_a_run_that_is_cached_in_part_reports_its_own_requests(sol, tmp_path):
    path = str(tmp_path / "cache")
    evaluate(sol(**CHEAP), limit=2, use_cache=path)
    whole = evaluate(sol(**CHEAP), use_cache=path)["config"]["sol"]["realised"]
    assert whole == evaluate(sol(**CHEAP))["config"]["sol"]["realised"]
    part = evaluate(sol(**CHEAP), limit=2, use_cache=path)["config"]["sol"]["realised"]
    assert part == evaluate(sol(**CHEAP), limit=2)["config"]["sol"]["realised"]
    assert part["tiny_choices"]["steps"] < whole["tiny_choices"]["steps"]


def test_compute_is_an_argument_like_any_other(base, tmp_path):
    config = SOLConfig(
        token_keep=[0.2, 1.0], mlp_keep=[0.4, 1.0], bits=[4, 16], episode_length=6, policy_hidden_size=32
    )
    config.calibration = [dict(net_keep=0.4, token_keep=0.4, mlp_keep=0.5, bits=6, log_perplexity=3.0)]
    torch.manual_seed(0)
    SOLForCausalLM.from_base(AutoModelForCausalLM.from_pretrained(base), config).save_pretrained(tmp_path)
    arguments = dict(pretrained=str(tmp_path), base=base, device="cpu", dtype="float64", compute=0.4)
    results = evaluate("sol", ["tiny_choices"], model_args=arguments)
    assert results["config"]["sol"]["budget"] == {"token_keep": 0.4, "mlp_keep": 0.5, "bits": 6.0}
    assert results["config"]["sol"]["compute_unit"] == "net_keep"
    with pytest.raises(ValueError, match="no table in `bytes`, only in `net_keep`"):
        SOLLM(**arguments, compute_unit="bytes")
    with pytest.raises(ValueError, match="Pass either `compute` or a budget"):
        SOLLM(**arguments, bits=8)
    with pytest.raises(ValueError, match=r"`compute` must lie in 0.4..1"):
        SOLLM(**{**arguments, "compute": 0.2})


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("controller", "compute", "compute_unit")])
def test_every_option_of_generate_is_an_argument(sol, name):
    options = {**CHEAP, name: OTHER_VALUES[name]}
    if name == "budget":
        options = {axis: None for axis in AXES if axis in CHEAP} | {name: OTHER_VALUES[name]}
    if name == "cuda_graphs":
        with pytest.raises(ValueError, match="cuda_graphs"):
            evaluate(sol(**options), ["tiny_choices"], limit=1)
        return
    lm = sol(**{key: value for key, value in options.items() if value is not None})
    found = evaluate(lm, ["tiny_choices"], limit=1)["config"]["sol"]
    assert lm.is_dense if name == "lossless" else found["realised"]  # its answers are those of the base


def test_the_agreement_of_texts_is_refused(sol):
    with pytest.raises(ValueError, match="leave out `measure_agreement`"):
        sol(measure_agreement=True, **CHEAP)


def test_offloaded_weights_are_not_compared(sol, tmp_path):
    lm = sol(**CHEAP)
    mlp = lm.sol.base.model.layers[0].mlp
    mlp.up_proj.weight = torch.nn.Parameter(mlp.up_proj.weight.to("meta"), requires_grad=False)
    with pytest.raises(ValueError, match="needs to know the weights of the base, and some are offloaded"):
        evaluate(lm, ["tiny_choices"], use_cache=str(tmp_path / "cache"))


def test_the_tokenizer_of_the_base_is_the_default(base, policy):
    lm = SOLLM(policy, base=base, device="cpu", **CHEAP)
    assert lm.tok_encode("Rain") == AutoTokenizer.from_pretrained(base)("Rain")["input_ids"]
