# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""What a budget excludes of transformers' generation: the base's without one, refused under one, with a way out."""

from typing import Any

import pytest
import torch
from transformers import DynamicCache, StaticCache

from sol_hf import SOLForCausalLM
from support.cases import prompts
from support.generation_ways import DICT, LENGTH, NEW, RUN, assert_like, model_of, run, run_base


steps = pytest.mark.parametrize("way", ["fast", "stored"])


def static_cache() -> StaticCache:
    return StaticCache(config=model_of("no budget").base.config, max_cache_len=LENGTH + NEW)


ASSISTED = "`assisted_generation` cannot run under a budget"
EXCLUDED: dict[str, tuple[dict[str, Any], str]] = {
    "assistant": ({"assistant_model": "the model itself"}, ASSISTED),
    "assistant, sampling": ({"assistant_model": "the model itself", "do_sample": True}, ASSISTED),
    "prompt lookup": ({"prompt_lookup_num_tokens": 2}, ASSISTED),
    "early exit": ({"assistant_early_exit": 1}, ASSISTED),
    "attention weights": ({"output_attentions": True}, "`output_attentions` cannot be used under a budget"),
    "no cache": ({"use_cache": False}, "A budget needs the cache"),
    "static": ({"cache_implementation": "static"}, "A budget needs its own cache"),
    "a static cache": ({"past_key_values": static_cache}, "A budget needs a SOLCache, got StaticCache"),
    "a dynamic cache": ({"past_key_values": DynamicCache}, "A budget needs a SOLCache, got DynamicCache"),
    "guidance": ({"guidance_scale": 1.5}, "`guidance_scale=1.5` runs the base a second time"),
}
LOOPS_OF_REPOSITORIES: dict[str, dict[str, Any]] = {
    "contrastive": {"penalty_alpha": 0.6, "top_k": 5},
    "dola": {"dola_layers": "low"},
    "groups": {"num_beams": 2, "num_beam_groups": 2, "diversity_penalty": 2.0},
    "constraints": {"num_beams": 2, "force_words_ids": [[5]]},
}
WAY_OUT = {"fast": r"`backend='fast'` runs it by the same steps", "stored": r"`compute=1.0` runs a call without it"}


class TestExcluded:
    def arguments(self, name: str, model: SOLForCausalLM) -> dict[str, Any]:
        asked = {key: value() if key == "past_key_values" else value for key, value in EXCLUDED[name][0].items()}
        if "assistant_model" in asked:
            asked["assistant_model"] = model
        return {**RUN, **DICT, **asked}

    @pytest.mark.parametrize("name", EXCLUDED)
    def test_without_a_budget_it_is_what_the_base_gives(self, name):
        model = model_of("no budget")
        output = run("no budget", prompts(1), **self.arguments(name, model))
        assert_like("no budget", output, run_base(prompts(1), **self.arguments(name, model.base)))

    @pytest.mark.parametrize("name", EXCLUDED)
    @steps
    def test_it_is_refused_before_any_compute(self, way, name):
        model = model_of(way)
        ran = []
        handle = model.base.register_forward_pre_hook(lambda *_: ran.append(1))
        try:
            with pytest.raises(ValueError, match=f"{EXCLUDED[name][1]}.*{WAY_OUT[way]}"):
                run(way, prompts(1), **self.arguments(name, model))
        finally:
            handle.remove()
        assert not ran

    @pytest.mark.parametrize("name", EXCLUDED)
    def test_a_stored_budget_can_be_left_out_of_a_call(self, name):
        model = model_of("stored")
        output = run("stored", prompts(1), **self.arguments(name, model), compute=1.0)
        expected = run_base(prompts(1), **self.arguments(name, model.base))
        if "assistant" not in name:
            assert_like("no budget", output, expected)
        else:  # the drafts are those of the policy, which a draw depends on, and how many are checked at once
            assert torch.equal(output.sequences, expected.sequences) or "sampling" in name

    @pytest.mark.parametrize("name", LOOPS_OF_REPOSITORIES)
    def test_loops_of_repositories(self, name):
        with pytest.raises(ValueError, match="requires `trust_remote_code=True`"):
            run("no budget", prompts(), **RUN, **LOOPS_OF_REPOSITORIES[name])
        for way, way_out in WAY_OUT.items():
            with pytest.raises(ValueError, match=f"cannot run under a budget.*{way_out}"):
                run(way, prompts(), **RUN, **LOOPS_OF_REPOSITORIES[name])

    @steps
    def test_masks(self, way):
        with pytest.raises(ValueError, match="`attention_mask` must have shape"):
            run(way, prompts(), attention_mask=torch.ones(2, 1, LENGTH, LENGTH).tril(), **RUN)
        mask = torch.ones(2, LENGTH, dtype=torch.long)
        mask[:, -2:] = 0
        with pytest.raises(ValueError, match="padding on the right"):
            run(way, prompts(), attention_mask=mask, **RUN)

    def test_lossless_names_itself(self):
        with pytest.raises(ValueError, match="`lossless` drafts under a budget: leave it out"):
            run("stored", prompts(1), **RUN, lossless=True, output_attentions=True)

    def test_a_budget_of_the_call_needs_no_explanation(self):
        with pytest.raises(ValueError, match=r"`output_attentions`.*`model.base.generate`\.$"):
            run("no budget", prompts(1), **RUN, token_keep=0.5, output_attentions=True)
