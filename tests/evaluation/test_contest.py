# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Contests over several episodes, several contexts and all places of a page: what is played is what `score` plays."""

import pytest
import torch

from sol_hf import Budget, ScheduleController
from sol_hf.controllers.fixed import fixed_schedule
from sol_hf.episodes import block_runner
from sol_hf.episodes.played_texts import Begun
from sol_hf.episodes.spread_texts import SpreadTexts, block_length
from sol_hf.episodes.text_blocks import TextBlocks
from sol_hf.evaluation.contest_report import compare_with, divergence_table, gap_share
from sol_hf.evaluation.policy_evaluation import evaluate_budgets
from sol_hf.evaluation.sweep.table import SweepError
from support.bases import tiny_base
from support.cases import AXES, DENSE, SETTINGS, control


EPISODE = SETTINGS["episode_length"]
CONTEXTS, EPISODES, BLOCKS = (20, 20, 31, 31), 2, 4
STEPS = EPISODES * EPISODE
WANTED = [(0.5, 0.5, 8), (0.3, 1.0, 12)]
SCALE = torch.tensor([1.0, 1.0, 16.0])
DOCUMENTS = [0, 0, 1, 2]


@pytest.fixture
def model():
    """A policy that takes many different actions, on a tiny base in float64."""
    model = control(tiny_base("llama", torch.float64))
    generator = torch.Generator().manual_seed(1)
    for parameter in model.policy.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype) * 0.3
    return model


def texts() -> torch.Tensor:
    length = max(CONTEXTS) + STEPS + 1
    return torch.randint(3, 99, (BLOCKS, length), generator=torch.Generator().manual_seed(4))


def scored(model, row: int, **options):
    """One text alone, as a user scores it."""
    text = texts()[row : row + 1, : CONTEXTS[row] + STEPS + 1]
    return model.score(text, context_length=CONTEXTS[row], return_logits=True, **options)


def budget_of(requested) -> Budget:
    named = zip(AXES, requested, DENSE, strict=True)
    return Budget(**{axis: value for axis, value, dense in named if value != dense})


@pytest.mark.parametrize("how", [dict(hard=True), dict(hard=True, budget_horizon="episode"), dict(hard=False)])
def test_a_text_of_several_episodes_is_played_as_score_plays_it_alone(model, how):
    found = evaluate_budgets(model, texts(), CONTEXTS, WANTED, documents=DOCUMENTS, dense=True, **how)
    options = dict(budget_mode="hard" if how["hard"] else "soft", budget_horizon=how.get("budget_horizon"))
    for evaluation in found:
        realised = []
        for row in range(BLOCKS):
            output, dense = scored(model, row, budget=budget_of(evaluation.requested), **options), scored(model, row)
            assert evaluation.losses[row] == pytest.approx(-float(output.logprobs.mean()), abs=1e-5)
            assert evaluation.dense_losses[row] == pytest.approx(-float(dense.logprobs.mean()), abs=1e-5)
            sparse, wanted = (x.logits.double().log_softmax(-1) for x in (output, dense))
            divergence = (wanted.exp() * (wanted - sparse)).sum(-1).mean()
            assert evaluation.divergences[row] == pytest.approx(float(divergence), abs=1e-5)
            realised.append(output.realised[0])
        means = torch.stack(realised)
        assert evaluation.realised == pytest.approx(means.mean(0).tolist(), abs=1e-4)
        controlled = torch.tensor([x != y for x, y in zip(evaluation.requested, DENSE, strict=True)])
        distance = ((means - torch.tensor(evaluation.requested)) / SCALE).abs()[:, controlled].mean()
        assert evaluation.distance == pytest.approx(float(distance), abs=1e-5)
        if how == dict(hard=True):
            assert evaluation.above_guarantee <= 1e-5
    assert how["hard"] or max(x.above_guarantee for x in found) > 0.01  # a trusted policy keeps nothing


def test_fixed_is_played_at_what_the_policy_spent_on_the_same_texts(model):
    (found, _) = evaluate_budgets(model, texts(), CONTEXTS, WANTED, hard=True)
    counted = torch.ones(BLOCKS, STEPS, dtype=torch.bool)
    schedule = fixed_schedule(torch.tensor(found.realised) / SCALE, BLOCKS, counted, model.action_space)
    for row in range(BLOCKS):
        output = scored(model, row, controller=ScheduleController(schedule[row][:, None]))
        assert found.fixed_losses[row] == pytest.approx(-float(output.logprobs.mean()), abs=1e-5)
    assert found.fixed_realised == pytest.approx(found.realised, abs=0.5 * 12 / (BLOCKS * STEPS))


def test_the_kv_refresh_of_an_evaluation_is_that_of_the_stored_options(model):
    refreshed = evaluate_budgets(model, texts(), CONTEXTS, WANTED[:1])
    model.generation_config.kv_refresh = False
    (other,) = evaluate_budgets(model, texts(), CONTEXTS, WANTED[:1])
    assert other.divergences != pytest.approx(refreshed[0].divergences, abs=1e-4)


def test_dense_predictions_are_computed_once_a_text_and_memory_is_bounded(model, monkeypatch):
    begun, made, rows = Begun.of, [], []
    monkeypatch.setattr(Begun, "of", classmethod(lambda cls, *args: made.append(args[2]) or begun(*args)))
    play = block_runner.play
    monkeypatch.setattr(block_runner, "play", lambda *args: rows.append(len(args[2])) or play(*args))
    expected = evaluate_budgets(model, texts(), CONTEXTS, WANTED)
    assert sorted(made) == [20, 31] and set(rows) == {4}
    monkeypatch.setattr(block_runner, "MOST_KEPT_BYTES", 0)
    monkeypatch.setattr(block_runner, "MOST_TOKENS", 1)
    rows.clear()
    found = evaluate_budgets(model, texts(), CONTEXTS, WANTED)
    assert set(rows) == {2}  # two texts at a single budget at a time
    for one, other in zip(expected, found, strict=True):
        assert one.divergences == pytest.approx(other.divergences, abs=1e-6) and one.realised == other.realised


def test_a_stopped_evaluation_continues_in_its_folder(model, tmp_path, monkeypatch):
    arguments = dict(hard=True, others=("oracle",), documents=DOCUMENTS)
    expected = evaluate_budgets(model, texts(), CONTEXTS, WANTED, folder=tmp_path, **arguments)
    monkeypatch.setattr(block_runner, "play", lambda *_: pytest.fail("played again"))
    assert evaluate_budgets(model, texts(), CONTEXTS, WANTED, folder=tmp_path, **arguments) == expected
    with pytest.raises(SweepError, match="holds a sweep with another budgets"):
        evaluate_budgets(model, texts(), CONTEXTS, WANTED[:1], folder=tmp_path, **arguments)


def test_the_oracle_keeps_its_means_over_every_text_and_the_share_of_the_gap_is_stated(model):
    budgets = [(0.5, 0.6, 8.0), (0.4, 0.8, 6.0)]
    found = evaluate_budgets(model, texts(), CONTEXTS, budgets, hard=True, others=("oracle",), documents=DOCUMENTS)
    for evaluation in found:
        (oracle,) = evaluation.others
        assert all(x <= y + 1e-4 for x, y in zip(oracle.realised, evaluation.realised, strict=True))
        assert sum(oracle.divergences) < sum(evaluation.fixed_divergences)
    share, low, high = gap_share(found)
    assert low <= share <= high
    against = compare_with(found, "oracle")
    assert against.budgets == 2 and against.ratio[0] == pytest.approx(against.divergence / against.other)
    assert against.difference[0] == pytest.approx(against.divergence - against.other)
    table = divergence_table(found)
    assert "Against `fixed`" in table and "Share of the gap from `fixed` to `oracle`" in table
    assert table.splitlines()[0].count("|") == table.splitlines()[2].count("|")
    with pytest.raises(ValueError, match="'drift' did not take part: it must be one of fixed, oracle"):
        compare_with(found, "drift")


def test_texts_are_spread_over_contexts_and_places_and_keep_their_beginning():
    length = block_length((10, 20), 8, 6)
    blocks = TextBlocks(torch.arange(length)[None] + 100 * torch.arange(1, 6)[:, None], torch.arange(5))
    blocks.tokens[:, 0] = 1  # BOS
    spread = SpreadTexts.of(blocks, (10, 20), 8, 6, begin=1)
    assert spread.contexts == (10, 20, 11, 21, 12) and length == 27 + 7
    for row, (text, context) in enumerate(zip(spread.tokens, spread.contexts, strict=True)):
        own = text[: context + 7]
        assert own[0] == 1 and own[-1] == blocks.tokens[row, -1]
        assert torch.equal(own[1:], blocks.tokens[row, -context - 6 :])
    assert {context % 8 for context in SpreadTexts.of(blocks, (16,), 8, 6).contexts} == {0, 1, 2, 3, 4}


def test_as_many_contexts_as_blocks_are_asked_for(model):
    with pytest.raises(ValueError, match="There are 2 context lengths for 4 blocks: give one per block, or one"):
        evaluate_budgets(model, texts(), (20, 21), WANTED)
    with pytest.raises(ValueError, match=f"a block has {31 + EPISODE + 1} tokens, and {EPISODE} more for every"):
        evaluate_budgets(model, texts()[:, :-1], CONTEXTS, WANTED)
