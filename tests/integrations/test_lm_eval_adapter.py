# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""lm-eval under a budget: equal to `hf` if dense, different if not, and independent of the batch."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from peft import get_peft_model
from transformers import AutoModelForCausalLM

from sol_hf import Controller, FixedController, SOLConfig, SOLForCausalLM
from sol_hf.controllers.registry import CONTROLLERS, register_controller
from sol_hf.decoding import scoring
from sol_hf.decoding.lossless.look_ahead import LookAhead
from sol_hf.integrations import lm_eval_adapter
from sol_hf.integrations.lm_eval_adapter import SOLLM, main
from sol_hf.integrations.lm_eval_arguments import find_base
from support.adapters import LORA
from support.lm_eval_runs import CHEAP, EVERY_TASK, FULL, TASK_FOLDER, answers, evaluate
from support.policy_folders import change_json


pytestmark = pytest.mark.usefixtures("without_environment")
TASKS = list(EVERY_TASK)
DEVICE = dict(device="cpu", dtype="float64")


def loglikelihoods(lm: HFLM, pairs: list[tuple[str, str]]) -> list[tuple[float, bool]]:
    requests = [
        Instance("loglikelihood", {}, pair, number, ("some_task", number, 1)) for number, pair in enumerate(pairs)
    ]
    return lm.loglikelihood(requests, disable_tqdm=True)


PAIRS = [
    ("Q: What is frozen water called?\nA:", " ice"),
    ("Q: What is frozen water called?\nA:", " steam"),
    ("A much longer question that has more tokens in its context than the others have. Q: Two?\nA:", " 4"),
    ("", "No context at all"),
    ("Q: What is frozen water called?\nA:", " ice"),
    ("x", "y"),
]


class TestDense:
    @pytest.mark.parametrize("arguments", [FULL, {"controller": "dense"}, {"controller": "dense", **CHEAP}])
    def test_results_are_those_of_hf(self, base, policy, arguments):
        hf = evaluate("hf", model_args={"pretrained": base, **DEVICE}, batch_size=4)
        own = evaluate("sol", model_args={"pretrained": policy, "base": base, **arguments, **DEVICE}, batch_size=4)
        assert own["results"] == hf["results"]
        assert answers(own) == answers(hf)
        assert own["config"]["sol"]["controller"] == "dense"

    @pytest.mark.parametrize("arguments", [{}, CHEAP | {"controller": "fixed"}], ids=["default", "budget"])
    def test_lossless_results_are_those_of_hf_and_texts_are_drafted(self, base, policy, arguments, monkeypatch):
        checks, own = [], LookAhead._check
        monkeypatch.setattr(LookAhead, "_check", lambda *given: checks.append(1) or own(*given))
        hf = evaluate("hf", model_args={"pretrained": base, **DEVICE}, batch_size=4)
        found = {"pretrained": policy, "base": base, "lossless": 3, **arguments, **DEVICE}
        lossless = evaluate("sol", model_args=found, batch_size=4)
        assert lossless["results"] == hf["results"] and answers(lossless) == answers(hf) and checks

    def test_steps_at_the_dense_levels_give_the_values_of_hf(self, base, sol):
        """Soft mode with an explicit controller runs step by step, also if all steps are dense."""
        stepwise = sol(controller="entropy", budget_mode="soft", **FULL)
        assert not stepwise.is_dense
        hf = HFLM(stepwise.sol.base, tokenizer=stepwise.tokenizer)
        for found, expected in zip(loglikelihoods(stepwise, PAIRS), loglikelihoods(hf, PAIRS), strict=True):
            assert found[0] == pytest.approx(expected[0], abs=1e-4) and found[1] == expected[1]


class TestUnderABudget:
    @pytest.mark.parametrize("controller", ["policy", "fixed", "random", "entropy", "drift"])
    def test_every_kind_of_request_differs_from_dense(self, sol, controller):
        dense, cheap = evaluate(sol(controller="dense")), evaluate(sol(controller=controller, seed=3, **CHEAP))
        for task in TASKS:
            assert answers(cheap)[task] != answers(dense)[task]

    def test_values_are_those_of_score(self, sol):
        lm = sol(controller="fixed", **CHEAP)
        for (context, continuation), found in zip(PAIRS[:3], loglikelihoods(lm, PAIRS)[:3], strict=True):
            whole, before = lm.tok_encode(context + continuation), len(lm.tok_encode(context))
            options = dict(controller=FixedController(), return_logits=True)
            output = lm.sol.score(torch.tensor([whole]), context_length=before - 1, **CHEAP, **options)
            assert found[0] == pytest.approx(output.logprobs.sum().item(), abs=1e-4)
            assert found[1] == (output.logits[0].argmax(-1).tolist() == whole[before:])

    def test_greedy_continuations_are_recognised(self, sol):
        lm = sol(controller="fixed", **CHEAP)
        ids = torch.tensor([lm.tok_encode("Q: Which animal barks?\nA:")])
        longer = lm.sol.generate(ids, max_new_tokens=3, do_sample=False, controller=FixedController(), **CHEAP)
        tokens = longer[0].tolist()
        split = ids.shape[1]
        other = [*tokens[:-1], (tokens[-1] + 1) % 200]
        found = lm._loglikelihood_tokens([(None, row[:split], row[split:]) for row in (tokens, other)], True)
        assert [greedy for _, greedy in found] == [True, False]

    @pytest.mark.parametrize("controller", ["policy", "fixed", "entropy", "drift"])
    def test_batches_do_not_matter(self, sol, controller):
        runs = [
            loglikelihoods(sol(controller=controller, batch_size=size, **CHEAP), PAIRS) for size in (1, 3, 16, "auto")
        ]
        for run in runs[1:]:
            for found, expected in zip(run, runs[0], strict=True):
                assert found[0] == pytest.approx(expected[0], abs=1e-4) and found[1] == expected[1]

    def test_requests_in_a_batch_share_what_they_begin_with(self, sol, monkeypatch):
        rows: dict[str, list[int]] = {"context": [], "steps": []}
        dense, stepwise = scoring.dense_forward, scoring.decode_forward
        monkeypatch.setattr(
            scoring, "dense_forward", lambda *args: rows["context"].append(len(args[1].tokens)) or dense(*args)
        )
        monkeypatch.setattr(
            scoring,
            "decode_forward",
            lambda *args, **kwargs: rows["steps"].append(len(args[1].tokens)) or stepwise(*args, **kwargs),
        )
        question = PAIRS[0][0]
        loglikelihoods(
            sol(controller="fixed", **CHEAP),
            [(question, " ice"), (question, " ink"), (question, " ice"), (question, " a"), PAIRS[2]],
        )
        # Two contexts; after " " and " i" both questions' rows; " a" and " 4" end with their second step.
        assert rows == {"context": [2], "steps": [2, 2, 1, 2]}

    def test_a_text_is_the_sum_of_its_windows(self, sol):
        lm = sol(controller="fixed", max_length=16, batch_size=4, **CHEAP)
        text = "Rain fell on the roof all night, and the river rose."
        request = Instance("loglikelihood_rolling", {}, (text,), 0, ("some_task", 0, 1))
        (total,) = lm.loglikelihood_rolling([request], disable_tqdm=True)
        tokens, expected = lm.tok_encode(text), 0.0
        for begin in range(0, len(tokens), 16):
            cut = tokens[begin : begin + 16]
            row = ([lm.prefix_token_id] if begin == 0 else tokens[begin - 1 : begin]) + cut
            if len(cut) < 16:
                row = tokens[-17:]
            options = dict(context_length=len(row) - len(cut) - 1, controller=FixedController())
            expected += lm.sol.score(torch.tensor([row]), **options, **CHEAP).logprobs.sum().item()
        assert total == pytest.approx(expected, abs=1e-4)

    def test_a_parallel_forward_is_refused(self, sol):
        lm = sol(**CHEAP)
        with pytest.raises(RuntimeError, match="A parallel forward cannot run under a budget"):
            lm._model_call(torch.ones(1, 4, dtype=torch.long))
        assert sol(controller="dense")._model_call(torch.ones(1, 4, dtype=torch.long)).shape[:2] == (1, 4)

    def test_chat_templates(self, sol):
        lm = sol(controller="fixed", **CHEAP)
        results = evaluate(lm, apply_chat_template=True)
        prompt = results["samples"]["tiny_choices"][0]["arguments"][0][0]
        assert prompt.startswith("<user>Q: A shape of") and prompt.endswith("<assistant>")


class TestReport:
    def test_what_every_task_realised_is_in_the_results(self, sol):
        lm = sol(controller="entropy", kv_refresh=False, seed=5, **CHEAP)
        found = json.loads(json.dumps(evaluate(lm)["config"]["sol"]))
        assert found["controller"] == "entropy" and found["seed"] == 5 and found["kv_refresh"] is False
        assert found["budget"] == CHEAP and found["budget_mode"] == "hard"
        assert sorted(found["realised"]) == sorted(TASKS)
        for realised in found["realised"].values():
            assert 0 < realised["controllable_steps"] <= realised["steps"]
            assert 0.2 <= realised["token_keep"] < 0.8
            assert 0.4 <= realised["mlp_keep"] < 1 and 4 <= realised["bits"] < 16

    def test_means_by_hand(self, sol):
        lm = sol(controller="fixed", **CHEAP)
        evaluate(lm, ["tiny_choices"])
        realised = lm.get_model_info()["sol"]["realised"]["tiny_choices"]
        lengths = [
            sum(len(c) + 1 for c in json.loads(line)["choices"])
            for line in Path(TASK_FOLDER, "tiny_choices.jsonl").read_text().splitlines()
        ]
        assert realised["steps"] == realised["controllable_steps"] == sum(lengths)
        assert (realised["token_keep"], realised["bits"]) == (0.5, 8.0)
        assert realised["mlp_keep"] == pytest.approx(0.7)

    def test_a_dense_run_spends_nothing_to_speak_of(self, sol):
        found = evaluate(sol(controller="dense"))["config"]["sol"]
        assert found["realised"] == {} and found["budget"] is None

    def test_a_response_cache_serves_one_budget_only(self, sol, tmp_path):
        path = str(tmp_path / "cache")
        first = evaluate(sol(controller="fixed", **CHEAP), use_cache=path)
        again = sol(controller="fixed", **CHEAP)
        assert answers(evaluate(again, use_cache=path)) == answers(first)
        assert again.spending.sums == {}
        with pytest.raises(ValueError, match="response cache was filled under other settings.*give `--use_cache`"):
            evaluate(sol(controller="drift", **CHEAP), use_cache=path)
        with pytest.raises(ValueError, match="response cache was filled under other settings"):
            evaluate(sol(controller="dense"), use_cache=path)

    def test_a_cache_of_another_model_is_refused(self, sol, tmp_path):
        path, lm = str(tmp_path / "cache"), sol(**CHEAP)
        evaluate(HFLM(lm.sol.base, tokenizer=lm.tokenizer), ["tiny_choices"], use_cache=path)
        with pytest.raises(ValueError, match=r"other settings \(another model"):
            evaluate(lm, use_cache=path)


class TestWrongArguments:
    def test_an_unknown_controller(self, policy, base):
        with pytest.raises(ValueError, match="Unknown controller 'polcy'.*Did you mean 'policy'"):
            SOLLM(policy, base=base, controller="polcy", device="cpu", **CHEAP)

    def test_a_dtype_of_keys_for_the_base_itself(self, policy, base):
        with pytest.raises(ValueError, match="`kv_dtype` needs a cache of ours; `controller=dense` runs the base"):
            SOLLM(policy, base=base, controller="dense", kv_dtype="bfloat16", device="cpu")

    def test_no_budget(self, policy, base):
        with pytest.raises(ValueError, match="There is no budget: give `token_keep`"):
            SOLLM(policy, base=base, device="cpu")

    def test_a_misspelt_option(self, policy, base):
        with pytest.raises(ValueError, match="Unknown model argument `token_kep`: did you mean `token_keep`?"):
            SOLLM(policy, base=base, device="cpu", token_kep=0.5)

    def test_a_budget_below_the_smallest_level(self, policy, base):
        with pytest.raises(ValueError, match="`token_keep`=0.1 is below the smallest level"):
            SOLLM(policy, base=base, device="cpu", token_keep=0.1)

    def test_a_wrong_mode(self, policy, base):
        with pytest.raises(ValueError, match="`budget_mode` must be one of"):
            SOLLM(policy, base=base, device="cpu", budget_mode="firm", **CHEAP)

    def test_a_policy_without_a_base(self, base, tmp_path):
        model = SOLForCausalLM.from_base(AutoModelForCausalLM.from_pretrained(base))
        model.config.base_model_name_or_path = None
        model.save_pretrained(tmp_path)
        with pytest.raises(ValueError, match="names no base model: add `base=`"):
            SOLLM(str(tmp_path), device="cpu", **CHEAP)

    def test_a_base_that_is_not_here_or_of_a_pull_request(self, policy, tmp_path):
        copied = Path(shutil.copytree(policy, tmp_path / "policy"))
        change_json(copied / "config.json", base_model_name_or_path="/home/somebody/base")
        with pytest.raises(ValueError, match="the folder /home/somebody/base, which is not here: add `base=`"):
            SOLLM(str(copied), device="cpu", **CHEAP)
        change_json(copied / "config.json", base_model_name_or_path="a/base", base_model_revision="refs/pr/7")
        with pytest.raises(ValueError, match="at refs/pr/7. Anybody can open .*with lm-eval, `revision=`"):
            SOLLM(str(copied), device="cpu", **CHEAP)
        found = find_base(SOLConfig.from_pretrained(copied), str(copied), None, {"revision": "refs/pr/7"})
        assert found == ("a/base", {"revision": "refs/pr/7"})


def test_an_adapter_that_names_its_policy(policy, base, tmp_path):
    model = SOLForCausalLM.from_pretrained(policy, base=AutoModelForCausalLM.from_pretrained(base))
    get_peft_model(model.policy, LORA).save_pretrained(tmp_path)
    assert not (tmp_path / "config.json").exists()
    lm = SOLLM(str(tmp_path), base=base, device="cpu", **CHEAP)
    assert any("lora" in name for name in lm.sol.policy.state_dict())


class TestCommandLine:
    def arguments(self, policy, base, *options, tasks="tiny_choices"):
        given = f"pretrained={policy},base={base},token_keep=0.5,mlp_keep=0.7,bits=8,controller=fixed,dtype=float64"
        command = ["--model", "sol", "--model_args", given, "--tasks", tasks, "--include_path", TASK_FOLDER]
        return [*command, "--batch_size", "4", *options]

    def results(self, folder: Path) -> dict:
        (path,) = folder.rglob("results_*.json")
        return json.loads(path.read_text())

    def test_arguments_are_passed_on(self, monkeypatch):
        seen, before = [], list(sys.argv)
        monkeypatch.setattr(lm_eval_adapter, "cli_evaluate", lambda: seen.append(list(sys.argv)))
        main(["--tasks", "x"])
        main()
        assert seen == [["sol-hf lm-eval", "--tasks", "x"], before] and sys.argv == before

    @pytest.mark.slow
    def test_it_is_that_of_lm_eval(self, policy, base, tmp_path, monkeypatch, capsys, sol):
        options = self.arguments(policy, base, "--output_path", str(tmp_path))
        monkeypatch.setattr(sys, "argv", ["lm_eval", *options])
        main()
        assert "tiny_choices" in capsys.readouterr().out
        written = self.results(tmp_path)
        assert written["config"]["sol"]["realised"]["tiny_choices"]["bits"] == 8.0
        expected = evaluate(sol(controller="fixed", **CHEAP), ["tiny_choices"])
        assert written["results"]["tiny_choices"]["acc,none"] == expected["results"]["tiny_choices"]["acc,none"]

    @pytest.mark.slow
    def test_a_task_that_would_have_to_be_downloaded(self, policy, base, monkeypatch):
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        monkeypatch.setattr(sys, "argv", ["lm_eval", *self.arguments(policy, base, tasks="arc_easy")])
        with pytest.raises(SystemExit, match="needs files from the Hub while HF_HUB_OFFLINE is set"):
            main()

    @pytest.mark.slow
    def test_two_processes_give_the_results_of_one(self, policy, base, tmp_path):
        found = []
        for processes in (1, 2):
            folder = tmp_path / str(processes)
            launch = ["-m", "accelerate.commands.launch", "--cpu", "--num_processes", str(processes)]
            command = [sys.executable, *launch, "-m", "sol_hf.integrations.lm_eval_adapter"]
            options = self.arguments(policy, base, "--output_path", str(folder), tasks=",".join(TASKS))
            environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "CI": "1"}
            subprocess.run([*command, *options], check=True, env=environment, timeout=280)
            found.append(self.results(folder))
        one, two = found
        assert two["config"]["sol"] == one["config"]["sol"]
        for task in TASKS:
            values = [{k: v for k, v in run["results"][task].items() if isinstance(v, float)} for run in found]
            assert values[1] == pytest.approx(values[0], rel=1e-6)


class Tilted(Controller):
    """Chooses the action whose mean ratio is nearest to a given percentage."""

    def __init__(self, percent: int):
        self.percent = percent

    def __call__(self, observation):
        ratios = observation.action_space.ratios.mean(dim=-1)
        return -(ratios - self.percent / 100).abs().expand(observation.rows, -1)


@pytest.fixture
def tilted():
    register_controller("tilted", lambda model, number: Tilted(number), number="percentage")
    yield
    CONTROLLERS.unregister("tilted")


def test_a_registered_controller_spends_the_budget(sol, tilted):
    lm = sol(controller="tilted:40", budget_mode="soft", **CHEAP)
    assert isinstance(lm.options["controller"], Tilted) and lm.options["controller"].percent == 40
    assert lm.settings["controller"] == "tilted:40" and lm.settings["seed"] == 0
    loglikelihoods(lm, PAIRS[:2])
    (spent,) = lm.spending.report().values()
    assert (spent["token_keep"], spent["mlp_keep"], spent["bits"]) == pytest.approx((0.2, 0.7, 4.0))
    with pytest.raises(ValueError, match="Unknown controller 'tited'.* Did you mean 'tilted'"):
        sol(controller="tited", **CHEAP)


def test_a_seed_is_that_of_the_controller_or_of_the_argument(sol):
    assert sol(controller="random:5", **CHEAP).settings["seed"] == 5
    lm = sol(controller="random", seed=7, **CHEAP)
    assert (lm.settings["controller"], lm.settings["seed"]) == ("random", 7)
