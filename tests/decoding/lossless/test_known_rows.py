# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Rows that took a draft when another row did not are not drafted anew."""

import torch
from transformers import LogitsProcessor

from sol_hf import FixedController
from sol_hf.decoding.lossless.ahead import Ahead
from sol_hf.decoding.lossless.known_rows import KnownRows
from support.cases import prompts, sol_model


def made() -> tuple[Ahead, torch.Tensor]:
    tokens, logits = torch.tensor([[1, 2, 3], [4, 5, 6], [7, 8, 9]]), torch.randn(3, 4, 10)
    ahead = Ahead(tokens, [], logits, torch.zeros(3, 4, 2), {})
    ahead.used = 1  # the first token was taken in all rows, the second in the last two
    return ahead, torch.tensor([False, True, True])


def test_dense_logits_take_the_place_of_those_of_the_draft():
    ahead, taken = made()
    known = KnownRows.of(ahead, taken)
    drafted = torch.randn(3, 10)
    mixed = known.in_place_of(drafted)
    assert torch.equal(mixed[0], drafted[0]) and torch.equal(mixed[1:], ahead.logits[1:, 2])
    after = known.after(torch.tensor([0, 6, 0]))  # the second row goes on as before, the third does not
    assert after.rows.tolist() == [False, True, False]
    assert (
        torch.equal(after.in_place_of(drafted)[1], ahead.logits[1, 3]) and after.after(torch.tensor([0, 0, 0])) is None
    )


def test_nothing_is_known_if_no_row_took_the_token():
    assert KnownRows.of(made()[0], torch.zeros(3, dtype=torch.bool)) is None


def test_they_do_not_count_as_drafted_again():
    """A processor of the user bends the first row away from every draft; the others are drafted once."""

    class Bend(LogitsProcessor):
        def __call__(self, input_ids, scores):
            scores[0, (5 * input_ids.shape[1]) % 90 + 3] += 100
            return scores

    model = sol_model()
    call = dict(max_new_tokens=16, do_sample=False, pad_token_id=0, logits_processor=[Bend()])
    cheap = dict(token_keep=0.2, mlp_keep=0.7, bits=8, controller=FixedController())
    output = model.generate(prompts(3), lossless=4, return_dict_in_generate=True, **cheap, **call)
    assert torch.equal(output.sequences, model.base.generate(prompts(3), **call))
    assert output.tokens_per_forward < 1.3
