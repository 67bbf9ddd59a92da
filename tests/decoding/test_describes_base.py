# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""What transformers asks a model about its cache and its loop is answered by the base."""

import json

import pytest
import torch
from transformers import DynamicCache, GenerationConfig, StaticCache

from sol_hf import SOLConfig, SOLForCausalLM
from support.bases import tiny_base
from support.cases import SETTINGS, prompts, sol_model


RUN = {"max_new_tokens": 6, "do_sample": False}


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "mistral", "gpt2"])
def test_caches_are_made_from_the_config_of_the_model(family):
    model = sol_model(family)
    for kind, room in ((DynamicCache, {}), (StaticCache, {"max_cache_len": 40})):
        cache, expected = (kind(config=owner.config, **room) for owner in (model, model.base))
        assert [type(layer) for layer in cache.layers] == [type(layer) for layer in expected.layers]
        output = model.generate(prompts(), past_key_values=cache, **RUN)
        assert torch.equal(output, model.base.generate(prompts(), past_key_values=expected, **RUN))


def test_the_base_is_not_written_with_the_config(tmp_path):
    model = SOLForCausalLM.from_base(tiny_base("llama"), SOLConfig(**SETTINGS))
    assert model.config.get_text_config() is model.config
    assert model.config.get_text_config(decoder=True) is model.base.config
    model.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    assert "num_hidden_layers" not in written and "_config_of_base" not in written
    loaded = SOLForCausalLM.from_pretrained(tmp_path, base=model.base)
    assert len(DynamicCache(config=loaded.config).layers) == 2


@pytest.mark.parametrize("method", ["generate_batch", "init_continuous_batching"])
def test_continuous_batching_is_refused(method):
    model, message = sol_model(), "Continuous batching .*call the base's own `model.base.generate_batch`"
    given = ([[5, 6, 7]],) if method == "generate_batch" else ()
    with pytest.raises(ValueError, match=message):
        getattr(model, method)(*given, generation_config=GenerationConfig(max_new_tokens=2))
    with pytest.raises(ValueError, match=message):
        model.continuous_batching_context_manager()


def test_the_loop_calls_what_the_base_overrides():
    base = tiny_base("llama", torch.float64)

    class Shifted(type(base)):
        def _prepare_position_ids_for_generation(self, inputs_tensor, model_kwargs):
            return super()._prepare_position_ids_for_generation(inputs_tensor, model_kwargs) * 2

    base.__class__ = Shifted
    model = SOLForCausalLM.from_base(base, SOLConfig(**SETTINGS))
    expected = base.generate(prompts(), **RUN)
    assert torch.equal(model.generate(prompts(), **RUN), expected)
    assert not torch.equal(tiny_base("llama", torch.float64).generate(prompts(), **RUN), expected)
