# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""What this package relies on in transformers, one fact a test, so that an upgrade fails by name.

Deprecations are errors here: what transformers is about to drop should be noticed before it is gone.
"""

import inspect
import json
import logging
import sys

import pytest
import torch
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    AutoModel,
    DynamicCache,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from bases import FAMILIES, tiny_base
from sol_hf import SOLConfig, SOLForCausalLM


pytestmark = [
    pytest.mark.filterwarnings("error::DeprecationWarning"),
    pytest.mark.filterwarnings("error::PendingDeprecationWarning"),
    pytest.mark.filterwarnings("error::FutureWarning"),
]
ATTENTION_ARGUMENTS = ["module", "query", "key", "value", "attention_mask"]
PROMPT = torch.tensor([[5, 6, 7, 8, 9, 10, 11], [12, 13, 14, 15, 16, 17, 18]])
LEFT_PADDED = torch.tensor([[0, 0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1, 1]])


@pytest.fixture
def spy():
    """Registers a spying attention function, with or without a mask function; `calls` are its arguments."""
    names, calls = [], []

    def attention(module, query, key, value, attention_mask, scaling=None, dropout=0.0, **kwargs):
        calls.append(dict(kwargs, module=module, query=query, key=key, mask=attention_mask, scaling=scaling))
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **kwargs
        )

    def register(with_mask: bool) -> str:
        name = f"test_spy_{with_mask}"
        AttentionInterface.register(name, attention)
        if with_mask:
            AttentionMaskInterface.register(name, sdpa_mask)
        names.append(name)
        return name

    register.calls = calls
    yield register
    for name in names:
        AttentionInterface._global_mapping.pop(name, None)
        AttentionMaskInterface._global_mapping.pop(name, None)


def with_attention(name: str, family: str = "llama", **overrides) -> PreTrainedModel:
    base = tiny_base(family, **overrides)
    base.config._attn_implementation = name
    return base


class TestAttention:
    @torch.no_grad()
    def test_without_a_mask_function_padding_is_silently_attended(self, spy):
        with_attention(spy(with_mask=False))(PROMPT, attention_mask=LEFT_PADDED)
        assert [call["mask"] for call in spy.calls] == [None, None]

    @torch.no_grad()
    def test_with_a_mask_function_padding_is_masked(self, spy):
        with_attention(spy(with_mask=True))(PROMPT, attention_mask=LEFT_PADDED)
        mask = spy.calls[0]["mask"]
        assert mask.dtype == torch.bool
        assert mask.shape == (2, 1, 7, 7)
        assert mask[0, 0, -1].tolist() == [False] * 3 + [True] * 4

    @torch.no_grad()
    def test_an_unpadded_prefill_gets_no_mask_from_sdpa(self, spy):
        with_attention(spy(with_mask=True))(PROMPT)
        assert spy.calls[0]["mask"] is None

    @torch.no_grad()
    def test_a_function_is_called_with_all_cached_keys_and_its_layer(self, spy):
        base, cache = with_attention(spy(with_mask=True)), DynamicCache()
        base(PROMPT, past_key_values=cache)
        spy.calls.clear()
        base(PROMPT[:, :1], past_key_values=cache)
        assert [call["module"].layer_idx for call in spy.calls] == [0, 1]
        for call in spy.calls:
            assert call["query"].shape == (2, 4, 1, 8)
            assert call["key"].shape == (2, 2, 8, 8)
            assert call["scaling"] == 8**-0.5
            assert "past_key_values" not in call

    @torch.no_grad()
    def test_a_function_returns_rows_tokens_heads(self):
        query, key = torch.randn(2, 4, 1, 8), torch.randn(2, 4, 5, 8)
        module = torch.nn.Module()
        module.is_causal = True
        output, weights = sdpa_attention_forward(module, query, key, key, None, scaling=0.5)
        assert output.shape == (2, 1, 4, 8)
        assert weights is None

    def test_the_signature_of_an_attention_function(self):
        parameters = inspect.signature(sdpa_attention_forward).parameters
        assert list(parameters)[:5] == ATTENTION_ARGUMENTS
        assert {"dropout", "scaling"} <= parameters.keys()
        assert parameters["kwargs"].kind is inspect.Parameter.VAR_KEYWORD

    @torch.no_grad()
    def test_the_implementation_is_looked_up_in_the_config_at_every_forward(self, spy):
        base = tiny_base("llama")
        base(PROMPT)
        assert spy.calls == []
        base.config._attn_implementation = spy(with_mask=True)
        base(PROMPT)
        assert len(spy.calls) == 2
        base.config._attn_implementation = "sdpa"
        base(PROMPT)
        assert len(spy.calls) == 2

    @pytest.mark.parametrize("family", FAMILIES)
    @torch.no_grad()
    def test_every_family_dispatches_to_a_registered_function(self, family, spy):
        base = with_attention(spy(with_mask=True), family)
        base(PROMPT)
        assert sorted(call["module"].layer_idx for call in spy.calls) == [0, 1]
        assert base._supports_attention_backend

    @pytest.mark.parametrize("family", FAMILIES)
    def test_eager_attention_is_a_function_of_the_model_file(self, family):
        assert "eager" not in ALL_ATTENTION_FUNCTIONS
        assert "eager" in ALL_MASK_ATTENTION_FUNCTIONS
        base = tiny_base(family)
        attention = next(m for m in base.modules() if hasattr(m, "layer_idx") and "Attention" in type(m).__name__)
        function = sys.modules[type(attention).__module__].eager_attention_forward
        assert list(inspect.signature(function).parameters)[:5] == [
            "module",
            "query",
            "key",
            "value",
            "attention_mask",
        ]


class TestHiddenState:
    @pytest.mark.parametrize("family", FAMILIES)
    @torch.no_grad()
    def test_the_head_receives_the_state_after_the_final_norm(self, family):
        base, seen = tiny_base(family), []
        handle = base.get_output_embeddings().register_forward_pre_hook(lambda module, args: seen.append(args[0]))
        output = base(PROMPT, output_hidden_states=True)
        handle.remove()
        assert len(seen) == 1
        assert torch.equal(seen[0], base.base_model(PROMPT).last_hidden_state)
        assert torch.equal(seen[0], output.hidden_states[-1])

    @torch.no_grad()
    def test_logits_to_keep_reaches_the_head_as_its_last_tokens(self):
        base, seen = tiny_base("llama"), []
        base.get_output_embeddings().register_forward_pre_hook(lambda module, args: seen.append(args[0]))
        logits = base(PROMPT, logits_to_keep=1).logits
        assert seen[0].shape == (2, 1, 32)
        torch.testing.assert_close(logits, base(PROMPT).logits[:, -1:])


class TestCache:
    def filled(self, layer=None):
        cache = DynamicCache()
        if layer is not None:
            cache.layers = [layer]
        cache.update(torch.arange(6.0).view(1, 1, 6, 1), torch.zeros(1, 1, 6, 1), 0)
        return cache

    def test_crop_takes_the_number_of_tokens_to_remove_as_a_negative_number(self):
        cache = self.filled()
        with pytest.raises(ValueError, match="positive value"):
            cache.crop(2)
        cache.crop(-2)
        assert cache.get_seq_length() == 4
        assert cache.layers[0].keys.flatten().tolist() == [0, 1, 2, 3]

    def test_a_cache_of_a_config_has_a_layer_of_its_kind_for_every_layer(self):
        kinds = {
            family: [type(layer) for layer in DynamicCache(config=tiny_base(family).config).layers]
            for family in ("llama", "gemma3_text", "mistral")
        }
        assert kinds == {
            "llama": [DynamicLayer, DynamicLayer],
            "gemma3_text": [DynamicSlidingWindowLayer, DynamicLayer],
            "mistral": [DynamicSlidingWindowLayer, DynamicSlidingWindowLayer],
        }

    def test_a_window_layer_forgets_unless_its_past_is_recorded(self):
        layer = DynamicSlidingWindowLayer(sliding_window=4)
        cache = self.filled(layer)
        assert layer.keys.flatten().tolist() == [3, 4, 5]
        with pytest.raises(RuntimeError, match="does not track past states"):
            cache.crop(-1)

    def test_a_window_layer_that_records_can_be_rolled_back_once(self):
        layer = DynamicSlidingWindowLayer(sliding_window=4)
        layer.activate_past_recording()
        cache = self.filled(layer)
        assert layer.keys.flatten().tolist() == [0, 1, 2, 3, 4, 5]
        cache.crop(-2)
        assert layer.get_seq_length() == 4
        assert layer.keys.flatten().tolist() == [1, 2, 3]

    def test_a_recording_window_layer_shows_its_window_only(self):
        layer = DynamicSlidingWindowLayer(sliding_window=4)
        layer.activate_past_recording()
        self.filled(layer)
        keys, _ = layer.update(torch.full((1, 1, 1, 1), 6.0), torch.zeros(1, 1, 1, 1))
        assert keys.flatten().tolist() == [3, 4, 5, 6]
        assert layer.get_seq_length() == 7
        assert layer.get_mask_sizes(1) == (4, 4)

    def test_row_operations_reach_every_layer(self):
        for method, argument, expected in [
            ("reorder_cache", torch.tensor([1, 0]), [1, 0]),
            ("batch_repeat_interleave", 2, [0, 0, 1, 1]),
            ("batch_select_indices", torch.tensor([1]), [1]),
        ]:
            cache = DynamicCache()
            for layer in range(2):
                key = torch.tensor([0.0, 1.0]).view(2, 1, 1, 1)
                cache.update(key, key, layer)
            getattr(cache, method)(argument)
            assert [layer.keys.flatten().tolist() for layer in cache.layers] == [expected] * 2

    def test_reset_makes_a_layer_uninitialised(self):
        cache = self.filled()
        cache.reset()
        assert cache.get_seq_length() == 0
        assert not cache.layers[0].is_initialized


class TestGenerate:
    def test_unknown_keywords_raise(self):
        with pytest.raises(ValueError, match="tokenkeep"):
            tiny_base("llama").generate(PROMPT, max_new_tokens=1, tokenkeep=0.5)

    def test_a_generation_config_keeps_and_saves_custom_entries(self, tmp_path):
        config = GenerationConfig(token_keep=0.5, budget_mode="soft")
        assert config.token_keep == 0.5
        config.save_pretrained(tmp_path)
        assert json.loads((tmp_path / "generation_config.json").read_text())["token_keep"] == 0.5
        loaded = GenerationConfig.from_pretrained(tmp_path)
        assert (loaded.token_keep, loaded.budget_mode) == (0.5, "soft")

    def test_keywords_of_generate_do_not_reach_custom_entries(self):
        config = GenerationConfig(token_keep=0.5)
        assert config.update(max_new_tokens=3, token_keep=0.25, unknown=1) == {"unknown": 1}
        assert config.token_keep == 0.25

    def lengths(self, **kwargs) -> list[int]:
        """Tokens of every forward of a `generate` call with five new tokens."""
        base, seen = tiny_base("llama"), []
        base.register_forward_pre_hook(
            lambda module, args, kwargs: seen.append(kwargs["input_ids"].shape[1]), with_kwargs=True
        )
        base.generate(PROMPT, max_new_tokens=5, do_sample=False, **kwargs)
        return seen

    def test_the_prefill_is_one_forward_and_every_new_token_another(self):
        lengths = self.lengths()
        assert lengths[:5] == [7, 1, 1, 1, 1]
        assert len(lengths) <= 6  # the stop check may come one step late

    def test_the_prefill_can_come_in_chunks(self):
        lengths = self.lengths(prefill_chunk_size=3, past_key_values=DynamicCache())
        assert lengths[:7] == [3, 3, 1, 1, 1, 1, 1]

    def test_a_given_cache_is_the_one_that_is_used_and_returned(self):
        cache = DynamicCache()
        output = tiny_base("llama").generate(
            PROMPT, past_key_values=cache, max_new_tokens=3, return_dict_in_generate=True
        )
        assert output.past_key_values is cache
        assert cache.get_seq_length() >= PROMPT.shape[1] + 2

    def test_beams_reorder_the_cache_by_its_own_method(self):
        orders = []

        class Noted(DynamicCache):
            def reorder_cache(self, beam_idx):
                orders.append(beam_idx.tolist())
                super().reorder_cache(beam_idx)

        tiny_base("llama").generate(PROMPT, past_key_values=Noted(), max_new_tokens=4, num_beams=2)
        assert len(orders) >= 3
        assert all(len(order) == 4 for order in orders)

    def test_prompts_are_expanded_row_by_row(self):
        output = tiny_base("llama").generate(PROMPT, max_new_tokens=1, do_sample=True, num_return_sequences=2)
        assert torch.equal(output[:, :7], PROMPT.repeat_interleave(2, dim=0))

    def test_a_processor_list_passes_keywords_to_those_that_take_them(self):
        class Two(LogitsProcessor):
            def __call__(self, input_ids, scores):
                return scores + 1

        class Three(LogitsProcessor):
            def __call__(self, input_ids, scores, observation):
                return scores + observation

        scores = LogitsProcessorList([Two(), Three()])(None, torch.zeros(1), observation=10)
        assert scores.tolist() == [11]
        with pytest.raises(ValueError, match="observation"):
            LogitsProcessorList([Three()])(None, torch.zeros(1))


class TestLoading:
    def test_a_model_is_made_on_the_meta_device(self, tmp_path):
        devices = []

        class ProbeConfig(PreTrainedConfig):
            model_type = "sol_hf_probe"

        class Probe(PreTrainedModel):
            config_class = ProbeConfig

            def __init__(self, config):
                super().__init__(config)
                self.linear = torch.nn.Linear(2, 2)
                devices.append(self.linear.weight.device.type)
                self.post_init()

        Probe(ProbeConfig()).save_pretrained(tmp_path)
        Probe.from_pretrained(tmp_path)
        assert devices == ["cpu", "meta"]

    def test_a_plain_config_keeps_misspelt_keys_in_silence(self):
        config = PreTrainedConfig(pagesize=4)
        assert config.pagesize == 4

    def test_the_head_and_the_embeddings_have_the_width_of_the_base(self):
        for family in FAMILIES:
            base = tiny_base(family)
            assert base.get_output_embeddings().weight.shape == base.get_input_embeddings().weight.shape == (99, 32)

    def test_an_auto_class_returns_a_registered_class(self, tmp_path):
        model = SOLForCausalLM.from_base(tiny_base("llama"), SOLConfig(policy_hidden_size=32, bits=[16]))
        model.policy.save_pretrained(tmp_path)
        assert type(AutoModel.from_pretrained(tmp_path)) is type(model.policy)


@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_that_a_generation_uses_is_deprecated(family):
    records: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: records.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("transformers")
    logger.addHandler(handler)
    try:
        config = SOLConfig(token_keep=[0.3, 1.0], mlp_keep=[0.5, 1.0], bits=[8, 16], policy_hidden_size=32)
        model = SOLForCausalLM.from_base(tiny_base(family), config)
        output = model.generate(PROMPT, attention_mask=LEFT_PADDED, token_keep=0.5, mlp_keep=0.7, max_new_tokens=4)
        model.score(PROMPT, context_length=3, bits=9)
    finally:
        logger.removeHandler(handler)
    assert output.shape[1] > PROMPT.shape[1]
    assert [message for message in records if "deprecat" in message.lower() or "will be removed" in message] == []
