# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""`measure_agreement=True`: how often the most likely token of a text under a budget is the dense one."""

import pytest
import torch

from sol_hf import Budget, FixedController, ScheduleController
from support.cases import HALF, constant_schedule, left_padded, prompts, sol_model


CALL = dict(max_new_tokens=12, pad_token_id=0, return_dict_in_generate=True, output_logits=True)


def batch() -> dict[str, torch.Tensor]:
    return left_padded([prompts(1, length, seed=length)[0] for length in (20, 13)])


@pytest.mark.parametrize("options", [dict(do_sample=False), dict(do_sample=True, temperature=2.0)])
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3_text"])
def test_it_is_the_share_of_equal_most_likely_tokens(family, options):
    model = sol_model(family)
    torch.manual_seed(3)
    output = model.generate(**batch(), **CALL, **options, **HALF, controller=FixedController(), measure_agreement=True)
    own = torch.stack(output.logits, dim=1).argmax(dim=-1)
    new = torch.ones(2, CALL["max_new_tokens"] - 1, dtype=torch.long)
    mask = torch.cat([batch()["attention_mask"], new], dim=1)
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
    dense = model.base(output.sequences[:, :-1], attention_mask=mask, position_ids=positions)
    dense = dense.logits[:, -12:].argmax(dim=-1)
    assert output.agreement == pytest.approx(float((own == dense).double().mean())) and output.checks is None


def test_dense_steps_agree_and_cheap_ones_do_not():
    model = sol_model()
    agreements = []
    for action in ("dense", "cheapest"):
        controller = ScheduleController(constant_schedule(model, action, 20))
        output = model.generate(**batch(), **CALL, do_sample=False, controller=controller, measure_agreement=True)
        agreements.append(output.agreement)
    assert agreements[0] == 1 > agreements[1]


def test_tokens_after_the_end_of_a_row_do_not_count():
    model = sol_model()
    call = CALL | dict(do_sample=False, controller=FixedController(), **HALF)
    free = model.generate(**batch(), **call)
    end = int(free.sequences[0, 20])
    output = model.generate(**batch(), **call, eos_token_id=end, measure_agreement=True)
    counted = (output.actions >= 0).sum()
    assert counted < output.actions.numel() and (output.agreement * counted).item() == pytest.approx(
        round((output.agreement * counted).item())
    )


def test_the_text_is_the_same_without():
    model = sol_model()
    call = CALL | dict(do_sample=False, controller=FixedController(), **HALF)
    texts = [model.generate(**batch(), **call, measure_agreement=measure).sequences for measure in (False, True)]
    assert torch.equal(*texts)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(budget=Budget(token_keep=1.0)), "All steps of this call are dense"),
        ({}, "All steps of this call are dense"),
        (HALF | dict(return_dict_in_generate=False), "pass `return_dict_in_generate=True`"),
        (HALF | dict(num_beams=2), "cannot be used with beams"),
        (HALF | dict(attention_mask=torch.ones(2, 30)), "pass all of it"),
        (HALF | dict(pixel_values=torch.zeros(2, 3, 8, 8)), "without `pixel_values`: leave one of them out"),
    ],
    ids=["dense", "none", "no dict", "beams", "a part", "images"],
)
def test_refused(options, message):
    with pytest.raises(ValueError, match=message):
        sol_model().generate(prompts(), **(CALL | dict(measure_agreement=True) | options))


def test_embeddings_are_refused():
    model = sol_model()
    embeds = model.base.get_input_embeddings()(prompts())
    with pytest.raises(ValueError, match="pass the prompt as `input_ids`"):
        model.generate(inputs_embeds=embeds, **CALL, **HALF, measure_agreement=True)
