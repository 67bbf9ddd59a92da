# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Behaviour of transformers on which this package relies, one fact per test, so that upgrades fail in a named test.

Deprecation warnings are errors here, so that functions are replaced before transformers removes them.
"""

import dataclasses
import inspect
import json
import logging
import sys

import pytest
import torch
from datasets import Dataset
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    AutoModel,
    AutoModelForCausalLM,
    DynamicCache,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedConfig,
    PreTrainedModel,
    Trainer,
    TrainingArguments,
)
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, HubStrategy, get_last_checkpoint, rotate_checkpoints
from transformers.utils import PushInProgress
from trl import GRPOConfig, GRPOTrainer, TrlParser
from trl.trainer.utils import RepeatSampler, shuffle_sequence_dict, split_tensor_dict

from sol_hf import SOLConfig, SOLForCausalLM
from support.bases import FAMILIES, tiny_base


pytestmark = [
    pytest.mark.filterwarnings("error::DeprecationWarning"),
    pytest.mark.filterwarnings("error::PendingDeprecationWarning"),
    pytest.mark.filterwarnings("error::FutureWarning"),
]
ATTENTION_ARGUMENTS = ["module", "query", "key", "value", "attention_mask"]
CHECKPOINTING = "activation_checkpointing"
if CHECKPOINTING not in {argument.name for argument in dataclasses.fields(TrainingArguments)}:
    CHECKPOINTING = "gradient_checkpointing"  # before transformers 5.23
LATER_CHECKPOINTING = {"activation_checkpointing", "activation_checkpointing_kwargs"}
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

    def test_configs_are_read_by_a_method_that_can_be_replaced(self, tmp_path, monkeypatch):
        read = []
        monkeypatch.setattr(
            SOLConfig, "_dict_from_json_file", classmethod(lambda cls, path: read.append(str(path)) or {})
        )
        (tmp_path / "config.json").write_text("null")
        SOLConfig.from_pretrained(tmp_path)
        assert read == [str(tmp_path / "config.json")]

    def test_an_auto_class_names_the_adapter_that_it_has_found(self, tmp_path, monkeypatch):
        asked = {}
        monkeypatch.setattr(
            SOLForCausalLM, "from_pretrained", classmethod(lambda cls, name, **kwargs: asked.update(kwargs, name=name))
        )
        SOLConfig().save_pretrained(tmp_path / "policy")
        (tmp_path / "adapter").mkdir()
        (tmp_path / "adapter" / "adapter_config.json").write_text(
            json.dumps({"base_model_name_or_path": str(tmp_path / "policy")})
        )
        AutoModelForCausalLM.from_pretrained(tmp_path / "adapter", token="hf_x")
        assert asked["name"] == str(tmp_path / "policy") and asked["token"] == "hf_x"
        assert asked["adapter_kwargs"]["_adapter_model_path"] == tmp_path / "adapter"

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


TRAINING_METHODS: dict[str, tuple[type, list[str]]] = {
    "_set_signature_columns_if_needed": (GRPOTrainer, []),
    "_prepare_inputs": (GRPOTrainer, ["generation_batch"]),
    "_generate_and_score_completions": (GRPOTrainer, ["inputs"]),
    "_compute_loss": (GRPOTrainer, ["model", "inputs"]),
    "_get_per_token_logps_and_entropies": (GRPOTrainer, ["model", "input_ids", "attention_mask", "logits_to_keep"]),
    "_save_checkpoint": (GRPOTrainer, ["model", "trial"]),
    "_load_optimizer_and_scheduler": (GRPOTrainer, ["checkpoint"]),
    "create_model_card": (GRPOTrainer, ["model_name", "dataset_name", "tags"]),
    "_get_output_dir": (Trainer, ["trial"]),
    "_save": (Trainer, ["output_dir", "state_dict"]),
    "_save_rng_state": (Trainer, ["output_dir"]),
    "_push_from_checkpoint": (Trainer, ["checkpoint_folder"]),
    "save_state": (Trainer, []),
    "save_metrics": (Trainer, ["split", "metrics"]),
}
TRAINING_MODEL_ARGUMENTS = """
    model reward_funcs args train_dataset eval_dataset processing_class callbacks optimizers peft_config
""".split()


class Policy(PreTrainedModel):
    """One parameter that is every log-probability: what the losses below are made of."""

    config_class = PreTrainedConfig

    def __init__(self, config):
        super().__init__(config)
        self.logprob = torch.nn.Parameter(torch.tensor(-1.0))
        self.post_init()
        self.generation_config = GenerationConfig()

    def forward(self, input_ids=None):
        return self.logprob


class PlainTrainer(GRPOTrainer):
    """TRL's trainer with the seams that SOLGRPOTrainer uses, and nothing else."""

    def _set_signature_columns_if_needed(self):
        self._signature_columns = ["input_ids"]

    def _generate_and_score_completions(self, inputs):
        self.seen = [example["input_ids"][0] for example in inputs]
        rows = len(inputs)
        empty = torch.zeros(rows, 0, dtype=torch.long)
        return {
            "prompt_ids": empty,
            "prompt_mask": empty,
            "completion_ids": torch.arange(3).expand(rows, 3),
            "completion_mask": torch.tensor([1, 1, 0]).expand(rows, 3),
            "advantages": torch.tensor([1.0, 3.0, 100.0]).expand(rows, 3),
            "num_items_in_batch": torch.tensor(2.0 * rows),
            "extra": torch.arange(rows)[:, None],
        }

    def _get_per_token_logps_and_entropies(self, model, *args, **kwargs):
        assert kwargs["compute_entropy"] is True
        logprobs = model(None).expand(args[0].shape)
        return logprobs, logprobs.detach() * 0 + 2.0, None


def plain_trainer(folder, **arguments) -> PlainTrainer:
    from sol_hf.training.grpo_trainer import action_tokenizer

    settings = dict(
        num_generations=2,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        max_steps=1,
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        save_strategy="no",
        **{CHECKPOINTING: False},
    )
    return PlainTrainer(
        model=Policy(PreTrainedConfig()),
        reward_funcs=lambda completions, **kwargs: [0.0] * len(completions),
        args=GRPOConfig(str(folder), **{**settings, **arguments}),
        train_dataset=Dataset.from_dict({"input_ids": [[number] for number in range(8)]}),
        processing_class=action_tokenizer(SOLConfig(bits=[8, 16]).action_space),
    )


class TestTraining:
    @pytest.mark.parametrize("name", TRAINING_METHODS)
    def test_the_methods_that_are_overridden_or_called(self, name):
        owner, arguments = TRAINING_METHODS[name]
        assert list(inspect.signature(getattr(owner, name)).parameters)[1 : 1 + len(arguments)] == arguments

    def test_the_arguments_of_the_trainer(self):
        assert set(TRAINING_MODEL_ARGUMENTS) <= inspect.signature(GRPOTrainer.__init__).parameters.keys()

    def test_the_arguments_that_are_refused_exist_and_have_plain_defaults(self):
        from dataclasses import MISSING, fields

        from sol_hf.training.option_kinds import REFUSED

        plain = {x.name for x in fields(GRPOConfig) if (x.default, x.default_factory) != (MISSING, MISSING)}
        later = set() if CHECKPOINTING == "activation_checkpointing" else LATER_CHECKPOINTING
        assert set(REFUSED) - plain == later

    def test_attributes_of_a_trainer(self, tmp_path):
        trainer = plain_trainer(tmp_path)
        assert (trainer._step, trainer._buffered_inputs, trainer.ref_model) == (0, None, None)
        assert (trainer.num_generations, trainer.num_iterations, trainer.beta, trainer.temperature) == (2, 1, 0.0, 1.0)
        assert trainer.hub_model_id is None
        assert trainer.args.steps_per_generation == 2
        assert set(trainer._metrics) == {"train", "eval"}
        trainer._metrics["train"]["new"].append(1.0)

    def test_a_fused_head_is_taken_off_the_model_with_its_attribute(self, tmp_path):
        """TRL puts one there since 1.15."""
        model = plain_trainer(tmp_path).model
        vars(model).pop("forward", None)
        assert model.forward.__func__ is Policy.forward

    def test_a_batch_holds_its_groups_as_adjacent_rows(self, tmp_path):
        trainer = plain_trainer(tmp_path)
        trainer.train()
        assert len(trainer.seen) == 8
        assert trainer.seen[::2] == trainer.seen[1::2]
        assert len(set(trainer.seen)) == 4
        order = list(RepeatSampler(range(4), mini_repeat_count=2, batch_size=2, repeat_count=2, shuffle=False))
        assert order == [0, 0, 1, 1] * 2 + [2, 2, 3, 3] * 2

    def test_the_steps_of_a_batch_are_slices_of_what_was_generated(self, tmp_path):
        trainer = plain_trainer(tmp_path)
        trainer.train()
        assert trainer._step == 2 and len(trainer._buffered_inputs) == 2
        assert sorted(torch.cat([part["extra"] for part in trainer._buffered_inputs]).flatten().tolist()) == [
            *range(8)
        ]
        assert [part["num_items_in_batch"].item() for part in trainer._buffered_inputs] == [16.0, 16.0]

    def test_every_value_is_shuffled_and_split_on_its_first_dimension(self):
        batch = {"one": torch.arange(4)[:, None], "other": torch.arange(4), "scalar": torch.tensor(7)}
        shuffled = shuffle_sequence_dict(batch)
        assert torch.equal(shuffled["one"].flatten(), shuffled["other"])
        first, second = split_tensor_dict(shuffled, 2)
        assert (first["one"].shape, second["other"].shape) == ((2, 1), (2,))
        assert first["scalar"] == second["scalar"] == 7

    @pytest.mark.parametrize("loss_type", ["dapo", "grpo", "bnpo"])
    def test_the_loss_takes_an_advantage_per_step(self, tmp_path, loss_type):
        trainer = plain_trainer(tmp_path, loss_type=loss_type, entropy_coef=0.5)
        trainer.current_gradient_accumulation_steps = 2
        trainer.model.train()
        inputs = trainer._generate_and_score_completions([{"input_ids": [0]}] * 8)
        inputs = split_tensor_dict(inputs, 2)[0]
        loss = trainer._compute_loss(trainer.model, inputs)
        loss.backward()
        mean_advantage, entropy = (1.0 + 3.0) / 2, 2.0
        assert loss.item() == pytest.approx((-mean_advantage - 0.5 * entropy) / 2)
        assert trainer.model.logprob.grad.item() == pytest.approx(-mean_advantage / 2)

    def test_the_loss_clips_against_the_log_probabilities_of_the_rollout(self, tmp_path):
        trainer = plain_trainer(tmp_path, loss_type="bnpo", epsilon=0.2)
        trainer.current_gradient_accumulation_steps = 1
        trainer.model.train()
        inputs = trainer._generate_and_score_completions([{"input_ids": [0]}] * 4)
        inputs["old_per_token_logps"] = torch.full((4, 3), -2.0)
        loss = trainer._compute_loss(trainer.model, inputs)
        assert loss.item() == pytest.approx(-1.2 * 2)

    def test_the_loss_reads_the_reference(self, tmp_path):
        trainer = plain_trainer(tmp_path, loss_type="bnpo")
        trainer.current_gradient_accumulation_steps, trainer.beta = 1, 0.1
        trainer.model.train()
        inputs = trainer._generate_and_score_completions([{"input_ids": [0]}] * 4)
        inputs["ref_per_token_logps"] = torch.full((4, 3), -2.0)
        divergence = torch.tensor(-1.0).exp().item() + 1 - 1  # exp(ref - own) - (ref - own) - 1
        assert trainer._compute_loss(trainer.model, inputs).item() == pytest.approx(-2 + 0.1 * divergence)

    def test_a_checkpoint_is_written_where_the_output_folder_says(self, tmp_path):
        class Elsewhere(PlainTrainer):
            def _get_output_dir(self, trial):
                return str(tmp_path / "elsewhere")

        trainer = plain_trainer(tmp_path, save_strategy="steps", save_steps=1)
        trainer.__class__ = Elsewhere
        trainer.train()
        folder = tmp_path / "elsewhere" / f"{PREFIX_CHECKPOINT_DIR}-1"
        assert {"optimizer.pt", "scheduler.pt", "trainer_state.json"} <= {path.name for path in folder.iterdir()}
        assert get_last_checkpoint(str(tmp_path / "elsewhere")) == str(folder)
        rotate_checkpoints(
            output_dir=str(folder.parent), save_total_limit=1, best_model_checkpoint=None, use_mtime=True
        )
        assert folder.exists()

    def test_pushes_in_the_background(self):
        assert PushInProgress([]).is_done()
        assert {"END", "EVERY_SAVE", "CHECKPOINT", "ALL_CHECKPOINTS"} == set(HubStrategy.__members__)

    def test_the_parser_reads_numbers_that_yaml_takes_for_text(self, tmp_path):
        settings = f"use_cpu: true\n{CHECKPOINTING}: false\n"
        (tmp_path / "config.yaml").write_text(f"learning_rate: 1e-4\n{settings}")
        arguments = ["--config", str(tmp_path / "config.yaml"), "--temperature", "1.3"]
        (args,) = TrlParser(GRPOConfig).parse_args_and_config(arguments)
        assert (args.learning_rate, args.temperature) == (1e-4, 1.3)
        (tmp_path / "config.yaml").write_text(f"{settings}lerning_rate: 1e-4\n")
        with pytest.raises(ValueError, match="lerning_rate"):
            TrlParser(GRPOConfig).parse_args_and_config(arguments[:2])


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
