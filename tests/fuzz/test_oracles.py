# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Every oracle finds the fault that it is for: the package is broken in one place, and a case has to show it."""

import pytest
import torch

from fuzz.case import Case
from fuzz.claims import Violation
from fuzz.examine import examine
from fuzz.minimise import minimise
from fuzz.mistakes import MISTAKES, Mistake
from fuzz.rounding import claim_close
from sol_hf.controllers.processors import HardBudgetProcessor
from sol_hf.decoding import outputs, step
from sol_hf.decoding.lossless.look_ahead import LookAhead
from sol_hf.execution import dispatch
from sol_hf.execution.instrumentation import Instrumentation
from support.bases import tiny_base


HALF = {"token_keep": 0.5, "mlp_keep": 0.5, "bits": 8}
PADDED = Case(budget=HALF, lengths=(20, 13), turns=(4,))


def found(case: Case) -> dict[str, str]:
    return examine(case).violations


def broken(function, change):
    """A function whose result is changed."""
    return lambda *args, **kwargs: change(function(*args, **kwargs))


def shifted(output):
    output.logits = output.logits + 1e-6
    return output


def test_dense_logits_that_are_not_the_base_s(monkeypatch):
    monkeypatch.setattr(step, "dense_forward", broken(step.dense_forward, shifted))
    assert "differ" in found(Case())["dense"]


def test_checks_of_drafts_with_logits_that_are_not_the_base_s(monkeypatch):
    def changed(ahead):
        ahead.logits = ahead.logits * 1.01
        return ahead

    monkeypatch.setattr(LookAhead, "_check", broken(LookAhead._check, changed))
    assert list(found(PADDED)) == ["lossless"]


def test_a_budget_that_is_not_kept(monkeypatch):
    monkeypatch.setattr(HardBudgetProcessor, "__call__", lambda self, action_ids, scores, observation: scores)
    assert "exceeded" in found(PADDED.but(controller="dearest"))["budget"]


def test_a_wrong_realised_mean(monkeypatch):
    monkeypatch.setattr(outputs, "realised_means", broken(outputs.realised_means, lambda means: means * 0.99))
    assert "`realised`" in found(PADDED)["trace"]


def test_rows_that_get_the_actions_of_others(monkeypatch):
    monkeypatch.setattr(step, "choose", broken(step.choose, lambda actions: actions.roll(1, dims=0)))
    assert "alone and in a batch" in found(PADDED)["rows"]


def test_an_episode_that_is_not_refreshed(monkeypatch):
    monkeypatch.setattr(step, "needs_refresh", lambda session: False)
    assert "turn 1" in found(Case(budget=HALF, lengths=(20,), turns=(3, 3), added=(2,)))["replay"]


def test_a_fast_path_that_computes_something_else(monkeypatch):
    original = dispatch.Operation.run

    def off(self, call, backend):
        result = original(self, call, backend)
        return result * 1.01 if backend == "fast" and result is not None else result

    monkeypatch.setattr(dispatch.Operation, "run", off)
    case = Case(budget=HALF, lengths=(40,), turns=(3,), dtype="float32", options={"backend": "fast"})
    assert "differ" in found(case)["replay"]


def test_a_base_that_is_not_cleaned_up(monkeypatch):
    case = Case(budget=HALF, base={"num_hidden_layers": 3})  # a base of its own
    monkeypatch.setattr(Instrumentation, "__exit__", lambda self, *exception: None)
    assert "modules changed" in found(case)["aftermath"]


def test_a_mistake_that_is_not_refused(monkeypatch):
    monkeypatch.setitem(MISTAKES, "none", Mistake(lambda case, model: {}, "a message"))
    assert "not refused, although ['a message']" in found(PADDED.but(wrong="none"))["call"]


def refuse(*arguments, **further):
    raise ValueError("not today")


def test_a_mistake_that_is_refused_too_late(monkeypatch):
    late = Mistake(lambda case, model: {"stopping_criteria": [refuse]}, "not today")
    monkeypatch.setitem(MISTAKES, "late", late)
    assert "refused after 2 forwards" in found(PADDED.but(wrong="late"))["call"]


def test_a_call_that_is_refused_without_reason(monkeypatch):
    monkeypatch.setattr("sol_hf.decoding.call_session.check_generate_arguments", refuse)
    assert found(PADDED)["call"] == "refused: not today"


def test_a_difference_above_rounding_is_no_tie():
    base, logits = tiny_base("llama"), torch.randn(1, 3, 9)
    compared = dict(steps=torch.ones(1, 3, dtype=torch.bool), base=base)
    case, wrong = Case(dtype="float32"), logits.index_fill(1, torch.tensor([1]), 5.0)
    claim_close(case, "same", logits, logits + 1e-6, again=lambda base: logits, **compared)
    with pytest.raises(Violation, match="row 0 differ from step 1 on"):
        claim_close(case, "different", wrong, logits, again=lambda base: logits, **compared)
    later = logits.index_fill(1, torch.tensor([2]), 5.0)  # by noise
    with pytest.raises(Violation, match="row 0 differ from step 1 on"):
        claim_close(case, "different", wrong, logits, again=lambda base: later, **compared)
    claim_close(case, "a tie", wrong, logits, again=lambda base: wrong, **compared)


def test_a_case_is_made_simple():
    case = Case(family="gpt2", budget=HALF, lengths=(20, 13), turns=(4, 5), added=(2,), options={"backend": "fast"})
    simple = minimise(case, lambda case: "bits" in case.budget and case.lengths[0] > 12)
    assert simple == Case(budget={"bits": 8}, lengths=(13,))
