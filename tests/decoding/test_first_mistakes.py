# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""What a first call gets wrong is named before the base computes anything, with the way out."""

import numpy as np
import pytest
import torch
from transformers import BatchEncoding

from sol_hf import AxisBiasProcessor, FixedController
from support.cases import HALF, prompts, sol_model


FIXED = {"controller": FixedController(), **HALF}


@pytest.fixture(scope="module")
def model():
    """A model whose base fails if it computes anything."""
    model = sol_model()
    model.base.register_forward_pre_hook(lambda *_: pytest.fail("the base has run"))
    return model


class TestPrompts:
    @pytest.mark.parametrize(
        ("prompt", "message"),
        [
            ("The sea is", r"must be a tensor, got a text: pass `\*\*tokenizer\(text"),
            ([[1, 2, 3]], "must be a tensor, got list"),
            (np.array([[1, 2, 3]]), "must be a tensor, got ndarray"),
            (BatchEncoding({"input_ids": prompts()}), r"is the whole output of a tokenizer: pass .*\(\*\*inputs\)"),
            ({"input_ids": prompts()}, r"is the whole output of a tokenizer: pass .*\(\*\*inputs\)"),
        ],
        ids=["text", "list", "array", "encoding", "dict"],
    )
    @pytest.mark.parametrize("budget", [{}, FIXED], ids=["dense", "budget"])
    def test_of_another_kind_are_refused(self, model, prompt, message, budget):
        for arguments in ((prompt,), ()):
            named = {} if arguments else {"input_ids": prompt}
            with pytest.raises(ValueError, match=message):
                model.generate(*arguments, **named, **budget, max_new_tokens=2)
        with pytest.raises(ValueError, match=message):
            model.score(prompt, context_length=2, **budget)

    def test_a_mask_as_a_list_is_refused(self, model):
        with pytest.raises(ValueError, match="`attention_mask` must be a tensor, got list"):
            model.generate(prompts(), attention_mask=[[1] * 9], **FIXED)

    def test_an_empty_text_of_a_tokenizer_is_named(self, model):
        with pytest.raises(ValueError, match="The prompt is empty"):
            model.generate(torch.zeros(1, 0), **FIXED, max_new_tokens=2)  # tokenizers return floats for ""


class TestControllers:
    @pytest.mark.parametrize(
        ("controller", "message"),
        [
            ("fixed", "must be a Controller, got 'fixed': pass an object such as `FixedController"),
            (FixedController, r"must be an object, got a class: pass `FixedController\(\)`"),
            (lambda observation: None, "must be a Controller, got function"),
            (torch.nn.Linear(1, 1), "must be a Controller, got Linear"),
        ],
    )
    def test_of_another_kind_are_refused(self, model, controller, message):
        with pytest.raises(ValueError, match=message):
            model.generate(prompts(), token_keep=0.5, controller=controller)
        with pytest.raises(ValueError, match=message):
            model.score(prompts(), context_length=9, token_keep=0.5, controller=controller)

    @pytest.mark.parametrize(
        ("processors", "message"),
        [
            (AxisBiasProcessor(token_keep=1.0), "must be a list, got AxisBiasProcessor"),
            ([AxisBiasProcessor], "objects to call.*got the class AxisBiasProcessor"),
            (["bias"], "objects to call.*got 'bias'"),
        ],
    )
    def test_processors_of_another_kind_are_refused(self, model, processors, message):
        with pytest.raises(ValueError, match=message):
            model.generate(prompts(), **FIXED, action_processors=processors)


@pytest.mark.slow  # torch.compile takes seconds to import
class TestTorchCompile:
    @pytest.mark.parametrize("part", ["", "base", "base.model", "base.model.layers.1.mlp"])
    def test_a_compiled_module_is_refused(self, part):
        model = sol_model()
        model.get_submodule(part).compile(backend="eager")
        self.assert_refused(model, part)

    def test_a_compiled_forward_is_refused(self):
        model = sol_model()
        model.base.forward = torch.compile(model.base.forward, backend="eager")
        self.assert_refused(model, "base")

    @staticmethod
    def assert_refused(model, part):
        for call in (FIXED, {"lossless": True}, {"backend": "fast"}):
            with pytest.raises(ValueError, match="compiled by `torch.compile`.*Load the model anew"):
                model.generate(prompts(), **call, max_new_tokens=2)
        if part:
            with pytest.raises(ValueError, match="compiled by `torch.compile`"):
                model.score(prompts(), context_length=9, **FIXED)
