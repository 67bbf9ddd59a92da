# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""`net_keep` and `bytes_share` of outputs: what was spent on the mean of the axes, and in bytes."""

import pickle

import pytest
import torch

from sol_hf import FixedController
from sol_hf.costs.compute_costs import ComputeCosts
from support.cases import SETTINGS, prompts, sol_model


EPISODE = SETTINGS["episode_length"]
STEPS, BUDGET = 2 * EPISODE, dict(token_keep=0.5, mlp_keep=0.6, bits=8)
RUN = dict(max_new_tokens=STEPS, do_sample=False, return_dict_in_generate=True, pad_token_id=0)


@pytest.fixture
def model():
    return sol_model()


def counted(model, actions: torch.Tensor, context: int, with_policy: bool) -> float:
    """As the tables of sweeps count, for whole episodes."""
    costs = ComputeCosts.of(model, context + (actions.shape[0] - EPISODE) // 2)
    found = costs.per_token(actions.view(-1, EPISODE), with_policy)
    return found["bytes_per_token"] / found["dense_bytes_per_token"]


@pytest.mark.parametrize("controller", [None, FixedController()])
def test_a_generation_says_what_it_kept_and_read(model, controller):
    ids = prompts()
    output = model.generate(ids, **BUDGET, **RUN, controller=controller)
    ratios = output.realised / torch.tensor([1, 1, 16])
    assert torch.allclose(output.net_keep, ratios.mean(dim=1)) and output.net_keep.shape == (len(ids),)
    for row, share in enumerate(output.bytes_share.tolist()):
        assert share == pytest.approx(counted(model, output.actions[row], ids.shape[1] - 1, controller is None))
    assert torch.equal(pickle.loads(pickle.dumps(output)).bytes_share, output.bytes_share)
    other = pickle.dumps(model.generate(ids, **BUDGET, **RUN, controller=controller))
    assert b"modeling_llama" not in other and pickle.loads(other).bytes_share is None


def test_a_padded_row_reads_as_much_as_alone(model):
    ids = prompts(2)
    padded = torch.cat([torch.zeros(2, 5, dtype=torch.long), ids], dim=1)
    mask = torch.cat([torch.zeros_like(padded[:, :5]), torch.ones_like(ids)], dim=1)
    alone, together = (
        model.generate(ids, **BUDGET, **RUN),
        model.generate(padded, attention_mask=mask, **BUDGET, **RUN),
    )
    assert torch.equal(alone.bytes_share, together.bytes_share)


def test_returned_sequences_and_beams_have_a_share_each(model):
    for how in (dict(num_beams=2, num_return_sequences=2), dict(do_sample=True, num_return_sequences=3)):
        output = model.generate(prompts(2), **BUDGET, **{**RUN, **how})
        assert output.bytes_share.shape == output.net_keep.shape == (len(output.sequences),)


def test_score_says_the_same(model):
    ids = prompts(2, 10 + STEPS + 1)
    output = model.score(ids, context_length=10, **BUDGET)
    for row, share in enumerate(output.bytes_share.tolist()):
        assert share == pytest.approx(counted(model, output.actions[row], 10, True))
    assert torch.allclose(output.net_keep, (output.realised / torch.tensor([1, 1, 16])).mean(dim=1))


def test_a_dense_call_reads_what_a_dense_call_reads(model):
    dense = dict(token_keep=1.0, mlp_keep=1.0, bits=16)
    for output in (model.generate(prompts(2), **dense, **RUN), model.score(prompts(2), context_length=4)):
        assert output.bytes_share.tolist() == [1, 1] and output.net_keep.tolist() == [1, 1]


def test_bytes_are_counted_only_when_they_are_asked_for_and_not_of_drafts(model, monkeypatch):
    monkeypatch.setattr(ComputeCosts, "of", lambda *_: pytest.fail("counted"))
    model.generate(prompts(2), **BUDGET, **RUN)
    assert model.generate(prompts(1), lossless=True, **RUN).bytes_share is None
