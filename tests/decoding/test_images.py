# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Images in prompts: positions after them, prompts that cannot be cut, later turns, and `score`."""

import pytest
import torch

from sol_hf import FixedController, UnsupportedAxisError
from sol_hf.decoding.base_arguments import first_position
from support.vision import CONTEXT, IMAGE, LENGTH, vision_model, with_images


FAMILIES = ["llava", "qwen2_vl", "paligemma"]
WORDS = {"max_new_tokens": 8, "do_sample": False, "suppress_tokens": [95, 96, 97, 98]}
RUN = {**WORDS, "return_dict_in_generate": True, "output_logits": True}
CLOSE = {"atol": 1e-9, "rtol": 0}
NAMES = ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids")


def budget(**targets: float) -> dict:
    return {"controller": FixedController(across_rows=False), **(targets or {"token_keep": 0.5, "mlp_keep": 0.6})}


STEPS = {"token_keep": 0.999, "budget_mode": "soft"}
"""A budget under which the fixed schedule only has dense steps."""


def logits_of(output) -> torch.Tensor:
    return torch.stack(output.logits, dim=1).double()


def padded(arguments: dict, columns: int = 5) -> dict:
    """Arguments with padding on the left of every row."""
    return {
        name: torch.cat([value.new_zeros(len(value), columns), value], 1) if name in NAMES else value
        for name, value in arguments.items()
    }


def next_turn(turn, arguments: dict, generated: int) -> dict:
    """Arguments of a second turn, without images."""
    rows = len(turn.sequences)
    text = torch.cat([turn.sequences, torch.tensor([[5, 6, 7]]).expand(rows, -1)], dim=1)
    second = {"input_ids": text, "attention_mask": torch.ones_like(text)}
    for name in ("token_type_ids", "mm_token_type_ids"):
        if name in arguments:
            new = torch.full((rows, generated + 3), int(name == "token_type_ids"))
            second[name] = torch.cat([arguments[name], new], dim=1)
    return second


@pytest.mark.parametrize("family", FAMILIES)
class TestGenerate:
    def test_dense_steps_are_the_base_alone_and_padded(self, family):
        model, arguments = vision_model(family), with_images(family)
        for prompt in (arguments, padded(arguments)):
            expected = logits_of(model.base.generate(**prompt, **RUN))
            torch.testing.assert_close(
                logits_of(model.generate(**prompt, **RUN, **budget(**STEPS))), expected, atol=1e-6, rtol=0
            )

    def test_a_row_is_the_same_alone(self, family):
        model, both = vision_model(family), with_images(family)
        each = 1 if family != "qwen2_vl" else 16
        first = {name: value[: each if name == "pixel_values" else 1] for name, value in both.items()}
        together, alone = (model.generate(**x, **RUN, **budget()) for x in (both, first))
        assert torch.equal(together.actions[:1], alone.actions)
        torch.testing.assert_close(logits_of(together)[:1], logits_of(alone), atol=1e-6, rtol=0)

    def test_a_prompt_that_ends_with_an_image(self, family):
        model, whole = vision_model(family), with_images(family)
        prompt = {name: value[:, :8] if name in NAMES else value for name, value in whole.items()}
        assert (prompt["input_ids"][:, -1] == IMAGE).all()
        expected = model.base.generate(**prompt, **RUN)
        output = model.generate(**prompt, **RUN, **budget(**STEPS))
        torch.testing.assert_close(logits_of(output), logits_of(expected), atol=1e-6, rtol=0)
        assert output.actions.shape == (2, 8)
        exact = model.generate(**prompt, **RUN, **budget(token_keep=0.5), exact=True)
        assert exact.realised[:, 0].le(0.5).all()

    def test_a_second_turn_after_another_text(self, family):
        """What a base remembers of the images of the last text is not taken for those of this one."""
        model, arguments = vision_model(family), with_images(family)
        turn = model.generate(**arguments, **RUN, **budget())
        model.generate(torch.arange(3, 12)[None], **WORDS, **budget())
        second = next_turn(turn, arguments, generated=8)
        output = model.generate(**second, **RUN, **budget(**STEPS), past_key_values=turn.past_key_values)
        expected = model.base.generate(**{**arguments, **second}, **RUN)
        torch.testing.assert_close(logits_of(output), logits_of(expected), atol=1e-6, rtol=0)

    def test_images_of_an_earlier_turn_are_refused_before_any_compute(self, family):
        model, arguments = vision_model(family), with_images(family)
        turn = model.generate(**arguments, **RUN, **budget())
        calls: list[int] = []
        model.base.register_forward_pre_hook(lambda *_: calls.append(1))
        again = {**arguments, **next_turn(turn, arguments, generated=8)}
        with pytest.raises(ValueError, match="leave out `pixel_values`, or pass those of new images only"):
            model.generate(**again, **RUN, **budget(), past_key_values=turn.past_key_values)
        assert not calls


def test_too_many_images_in_a_second_turn_say_what_to_do():
    model, arguments = vision_model("llava"), with_images("llava")
    turn = model.generate(**arguments, **RUN, **budget())
    second = next_turn(turn, arguments, generated=8)
    second["input_ids"][:, -3:-1] = IMAGE
    with pytest.raises(
        ValueError, match="The cache holds 27 tokens with their images .* only those of the new tokens"
    ):
        model.generate(**arguments | second, **RUN, **budget(), past_key_values=turn.past_key_values)


@pytest.mark.parametrize("family", FAMILIES)
class TestScore:
    def expected(self, model, arguments: dict) -> torch.Tensor:
        """Log-probabilities by one forward of the base."""
        logits = model.base(**arguments).logits[:, CONTEXT:-1].log_softmax(dim=-1)
        return logits.gather(-1, arguments["input_ids"][:, CONTEXT + 1 :, None])[..., 0]

    @pytest.mark.parametrize("options", [{}, budget(**STEPS)], ids=["dense", "steps"])
    def test_is_the_base(self, family, options):
        model, arguments = vision_model(family), with_images(family, generated=LENGTH - CONTEXT)
        with torch.no_grad():
            expected = self.expected(model, arguments)
        for given in (arguments, padded(arguments)):
            scores = model.score(**given, context_length=CONTEXT, **options).logprobs
            torch.testing.assert_close(scores.double(), expected, atol=1e-5, rtol=0)

    def test_rows_of_other_lengths(self, family):
        model, arguments = vision_model(family), with_images(family, generated=LENGTH - CONTEXT)
        together = model.score(**arguments, context_length=[CONTEXT, CONTEXT + 3], **budget())
        alone = model.score(**arguments, context_length=CONTEXT, **budget())
        assert torch.equal(together.actions[0], alone.actions[0])
        torch.testing.assert_close(together.logprobs[0], alone.logprobs[0], atol=1e-5, rtol=0)

    def test_images_after_the_context_are_refused(self, family):
        model, arguments = vision_model(family), with_images(family)
        with pytest.raises(ValueError, match="must be within its `context_length`"):
            model.score(**arguments, context_length=6, **budget())


@pytest.mark.parametrize("options", [{}, budget()], ids=["dense", "budget"])
def test_text_after_images_of_another_number_of_rows(options):
    model, text = vision_model("qwen2_vl"), torch.arange(3, 23)[None]
    expected = model.score(text, context_length=8, **options).logprobs
    model.base.generate(**with_images("qwen2_vl"), **WORDS)
    assert torch.equal(model.score(text, context_length=8, **options).logprobs, expected)


def test_scores_of_tokens_that_are_shown_before_are_refused():
    model, arguments = vision_model("paligemma"), with_images("paligemma")
    for given in (arguments, {"input_ids": torch.arange(3, 23)[None]}):
        with pytest.raises(ValueError, match="pass `token_type_ids`"):
            model.score(**given, context_length=CONTEXT)


def test_the_first_position_is_what_the_base_prepares():
    assert [first_position(vision_model(family).base) for family in FAMILIES] == [0, 0, 1]


def test_layers_that_attend_to_images_only_are_refused():
    model = vision_model("mllama")
    with pytest.raises(UnsupportedAxisError, match="layer 1 attends to images and not to the text"):
        model.generate(torch.arange(3, 12)[None], **WORDS, **budget(mlp_keep=0.6))
    expected = model.base.generate(torch.arange(3, 12)[None], **WORDS)
    assert torch.equal(model.generate(torch.arange(3, 12)[None], **WORDS), expected)
