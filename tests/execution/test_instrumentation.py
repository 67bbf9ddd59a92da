# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""What an instrumentation remembers of a base, and that it does not keep the base alive."""

import gc
import weakref

import pytest

from sol_hf import FixedController
from sol_hf.errors import UnsupportedAxisError
from sol_hf.execution.executors import EXECUTORS
from sol_hf.execution.instrumentation import Instrumentation
from support.bases import tiny_base
from support.cases import control, prompts, sol_model


@pytest.mark.parametrize("family", ["llama", "mixtral", "jetmoe"])
def test_base_and_cache_are_freed(family):
    """`jetmoe` cannot be controlled on two axes; the errors that say so must not keep what they came across."""

    def generate():
        model = control(tiny_base(family))
        arguments = {"max_new_tokens": 3, "do_sample": False, "controller": FixedController()}
        output = model.generate(prompts(), token_keep=0.5, return_dict_in_generate=True, **arguments)
        if family == "jetmoe":
            with pytest.raises(UnsupportedAxisError, match="gets its tokens in another way"):
                model.generate(prompts(), bits=8, **arguments)
        assert model.coverage().layers["token_keep"] == (0, 1)
        return weakref.ref(model), weakref.ref(model.base), weakref.ref(output.past_key_values)

    references = generate()
    gc.collect()
    assert [reference() for reference in references] == [None, None, None]


def test_an_executor_can_be_registered_after_the_first_question(monkeypatch):
    model, executor = sol_model(), EXECUTORS["bits"]
    instrumentation = Instrumentation.of(model.base)
    monkeypatch.delitem(EXECUTORS._members, "bits")
    with pytest.raises(UnsupportedAxisError, match="has no executor"):
        instrumentation.executor("bits")
    monkeypatch.setitem(EXECUTORS._members, "bits", executor)
    assert instrumentation.unsupported("bits") is None and isinstance(instrumentation.executor("bits"), executor)
