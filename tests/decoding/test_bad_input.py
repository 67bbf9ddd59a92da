# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Wrong input raises before any compute, with a message that names it; unusual but valid input works."""

import json
import logging
import math

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import DynamicCache, GenerationConfig, StaticCache, TopKLogitsWarper

from sol_hf import (
    Budget,
    BudgetError,
    Controller,
    FixedController,
    ScheduleController,
    SOLConfig,
    SOLForCausalLM,
    SOLPolicyModel,
)
from sol_hf.decoding.options import resolve_options
from support.bases import tiny_base
from support.cases import (
    FIRST_CONTROLLABLE,
    HALF,
    LEVELS,
    SETTINGS,
    assert_budget_kept,
    left_padded,
    prompts,
    sol_model,
)
from support.extra_axis import registered


GREEDY = {"max_new_tokens": 6, "do_sample": False}
NAN = float("nan")


class Watched:
    """A model whose base records every forward."""

    def __init__(self, model: SOLForCausalLM):
        self.model, self.forwards = model, 0
        model.base.register_forward_pre_hook(self.count)

    def count(self, *_):
        self.forwards += 1

    def assert_refuses(
        self, message: str, *args, error: type[Exception] = ValueError, method: str = "generate", **kwargs
    ):
        """Assert that a call raises `error` with `message` before the base has computed anything."""
        before = self.forwards
        settings = {**GREEDY, **kwargs} if method == "generate" else kwargs
        with pytest.raises(error, match=message):
            getattr(self.model, method)(*args, **settings)
        assert self.forwards == before


@pytest.fixture(scope="module")
def watched() -> Watched:
    return Watched(sol_model())


@pytest.fixture
def folder(tmp_path):
    """A saved policy, `(folder, base)`."""
    model = sol_model(dtype=torch.float32)
    model.save_pretrained(tmp_path)
    return tmp_path, model.base


BAD_BUDGETS = [
    ({"token_keep": 0}, r"`token_keep` must lie in \(0, 1\], got 0"),
    ({"token_keep": -0.5}, r"`token_keep` must lie in \(0, 1\], got -0.5"),
    ({"token_keep": 1.01}, r"`token_keep` must lie in \(0, 1\], got 1.01"),
    ({"mlp_keep": 0.0}, r"`mlp_keep` must lie in \(0, 1\], got 0.0"),
    ({"mlp_keep": 2}, r"`mlp_keep` must lie in \(0, 1\], got 2"),
    ({"mlp_keep": [0.5, 1.5]}, r"`mlp_keep` must lie in \(0, 1\], got 1.5"),
    ({"bits": 1}, r"`bits` must lie in 2..16, got 1"),
    ({"bits": 17}, r"`bits` must lie in 2..16, got 17"),
    ({"bits": 0.5}, r"`bits` must lie in 2..16, got 0.5"),
    ({"token_keep": NAN}, r"`token_keep` must lie in \(0, 1\], got nan"),
    ({"mlp_keep": torch.tensor([0.5, NAN])}, r"`mlp_keep` must lie in \(0, 1\], got nan"),
    ({"bits": NAN}, r"`bits` must lie in 2..16, got nan"),
    ({"bits": math.inf}, r"`bits` must lie in 2..16, got inf"),
    ({"token_keep": 0.1}, r"`token_keep`=0.1 is below the smallest level of the action space, 0.2"),
    ({"token_keep": [0.5, 0.15]}, r"`token_keep`=0.15 is below the smallest level of the action space, 0.2"),
    ({"mlp_keep": 0.3}, r"`mlp_keep`=0.3 is below the smallest level of the action space, 0.4"),
    ({"bits": 2}, r"`bits`=2 is below the smallest level of the action space, 3"),
    ({"token_keep": [0.5, 0.6, 0.7]}, r"The budget has 3 rows, but the input has 2"),
    ({"token_keep": [0.5, 0.6], "bits": [4, 5, 6]}, r"different numbers of rows: \[2, 3\]"),
    ({"token_keep": "half"}, r"`token_keep` must be a number, or one number per row, got 'half'"),
    ({"token_keep": []}, r"`token_keep` must be a number, or one number per row"),
    ({"mlp_keep": True}, r"`mlp_keep` must be a number, or one number per row"),
    ({"mlp_keep": [0.5, None]}, r"`mlp_keep` must be a number, or one number per row"),
    ({"token_keep": torch.full((2, 1), 0.5)}, r"`token_keep` must be a number, or one number per row"),
]


class TestBudgets:
    @pytest.mark.parametrize(("budget", "message"), BAD_BUDGETS)
    def test_in_generate(self, watched, budget, message):
        watched.assert_refuses(message, prompts(), error=BudgetError, **budget)

    @pytest.mark.parametrize(("budget", "message"), BAD_BUDGETS)
    def test_in_score(self, watched, budget, message):
        watched.assert_refuses(message, prompts(), error=BudgetError, method="score", context_length=9, **budget)

    @pytest.mark.parametrize("method", ["generate", "score"])
    def test_object_and_numbers_at_once(self, watched, method):
        context = {"context_length": 9} if method == "score" else {}
        message = "either `budget` or `token_keep`, `mlp_keep`, `bits` and `neuron_keep`, not both"
        watched.assert_refuses(message, prompts(), method=method, budget=Budget(0.5), bits=8, **context)

    def test_stored_budget_is_checked_too(self, watched):
        config = GenerationConfig(token_keep=0.1, **GREEDY)
        watched.assert_refuses("smallest level of the action space, 0.2", prompts(), generation_config=config)

    def test_objects_of_another_kind(self, watched):
        watched.assert_refuses("`budget` must be a Budget, got float", prompts(), budget=0.5)
        watched.assert_refuses("`budget` must be a Budget, got dict", prompts(), budget=HALF)

    def test_other_options(self, watched):
        watched.assert_refuses(
            "`budget_mode` must be one of hard, soft, got 'firm'", prompts(), **HALF, budget_mode="firm"
        )
        watched.assert_refuses(
            "`backend` must be one of auto, reference, fast, got 'slow'", prompts(), **HALF, backend="slow"
        )
        watched.assert_refuses(
            "`bits_backend` must be one of fake, int8, nested, got 'int4'", prompts(), **HALF, bits_backend="int4"
        )
        watched.assert_refuses("`action_temperature` must be positive, got 0", prompts(), **HALF, action_temperature=0)
        watched.assert_refuses("`action_temperature` must be positive", prompts(), **HALF, action_temperature=NAN)
        watched.assert_refuses(
            "`action_processors` have nothing to act on", prompts(), action_processors=[TopKLogitsWarper(3)]
        )
        watched.assert_refuses("FixedController needs a budget", prompts(), controller=FixedController())

    def test_axis_without_a_dense_level_must_be_set(self):
        base = tiny_base("llama", torch.float64)
        model = SOLForCausalLM.from_base(base, SOLConfig(**{**SETTINGS, "mlp_keep": [0.4, 0.7]}))
        Watched(model).assert_refuses(
            "`mlp_keep` is not set, so it would stay dense.*largest level.*0.7", prompts(), bits=8
        )


UNKNOWN = [
    ("token_kep", r"token_kep.*did you mean `token_keep`"),
    ("mlp_kept", r"mlp_kept.*did you mean `mlp_keep`"),
    ("bit", r"bit.*did you mean `bits`"),
    ("budgets", r"budgets.*did you mean `budget`"),
    ("kv_refresher", r"kv_refresher.*did you mean `kv_refresh`"),
    ("do_sample_action", r"do_sample_action.*did you mean `do_sample_actions`"),
    ("back_end", r"back_end.*did you mean `backend`"),
    ("warp_factor", r"warp_factor(?!.*did you mean)"),
]


class TestUnknownKeywords:
    @pytest.mark.parametrize(("name", "message"), UNKNOWN)
    def test_in_generate(self, watched, name, message):
        watched.assert_refuses(message, prompts(), **{name: 0.5})
        watched.assert_refuses(message, prompts(), **HALF, **{name: 0.5})

    @pytest.mark.parametrize(("name", "message"), UNKNOWN)
    def test_in_score(self, watched, name, message):
        watched.assert_refuses(message, prompts(), method="score", context_length=9, **{name: 0.5})


class TestAddedAxis:
    """Targets of an axis that was added with `register_axis`, before a step runs."""

    @pytest.fixture
    def noisy(self, mlp_noise) -> Watched:
        """A model with the axis `mlp_noise` in its action space."""
        return Watched(SOLForCausalLM.from_base(tiny_base("llama"), SOLConfig(**SETTINGS, mlp_noise=[0.5, 1.0])))

    @pytest.mark.parametrize("method", ["generate", "score"])
    def test_it_is_a_keyword(self, noisy, method):
        given = {"method": method, **({"context_length": 9} if method == "score" else {})}
        message = "`mlp_noise`=0.4 is below the smallest level of the action space, 0.5"
        noisy.assert_refuses(message, prompts(), error=BudgetError, mlp_noise=0.4, **given)
        noisy.assert_refuses(message, prompts(), error=BudgetError, budget=Budget(mlp_noise=[0.6, 0.4]), **given)
        noisy.assert_refuses(r"`mlp_noise` must lie in \(0, 1\], got 0", prompts(), mlp_noise=0, **given)
        message = "either `budget` or `token_keep`, `mlp_keep`, `bits`, `neuron_keep` and `mlp_noise`, not both"
        noisy.assert_refuses(message, prompts(), budget=Budget(0.5), mlp_noise=1.0, **given)
        noisy.assert_refuses("mlp_noize.*did you mean `mlp_noise`", prompts(), mlp_noize=0.5, **given)

    def test_a_dense_target_is_the_base(self, noisy):
        model, ids = noisy.model, prompts()
        output = model.generate(ids, mlp_noise=1.0, **GREEDY, return_dict_in_generate=True)
        assert torch.equal(output.sequences, model.generate(ids, **GREEDY))
        assert output.realised.tolist() == [[1, 1, 16, 1]] * 2
        assert (output.actions == model.action_space.dense_id).all()
        assert torch.equal(model.generate(ids, mlp_noise=None, **GREEDY), output.sequences)
        scored = model.score(ids, context_length=9, mlp_noise=1.0)
        assert scored.realised.tolist() == [[1, 1, 16, 1]] * 2

    def test_a_stored_target_counts_where_the_call_has_none(self, noisy):
        model = noisy.model
        stored = GenerationConfig(mlp_noise=0.75, token_keep=0.5)

        def resolve(given, call=None):
            return resolve_options(given, call, stored, model.config).budget

        assert resolve({}) == Budget(token_keep=0.5, mlp_noise=0.75)
        assert resolve({"bits": 8}) == Budget(bits=8)
        assert resolve({}, GenerationConfig(mlp_noise=0.5)) == Budget(token_keep=0.5, mlp_noise=0.5)
        model.generation_config.mlp_noise = 0.4
        noisy.assert_refuses("`mlp_noise`=0.4 is below the smallest level", prompts())
        with pytest.raises(ValueError, match="sets both `compute` and mlp_noise"):
            resolve_options({}, None, GenerationConfig(compute=0.5, mlp_noise=0.5))

    def test_which_axes_are_controlled_and_which_stay_dense(self, noisy):
        space = noisy.model.action_space

        def axes(**given):
            options = resolve_options(given, None, GenerationConfig())
            return options.controlled_axes(space), options.dense_axes(space)

        assert axes(mlp_noise=0.75) == (["mlp_noise"], {"token_keep", "mlp_keep", "bits"})
        assert axes(bits=8, mlp_noise=1.0) == (["bits", "mlp_noise"], {"token_keep", "mlp_keep", "mlp_noise"})
        assert axes(bits=8) == (["bits"], {"token_keep", "mlp_keep", "mlp_noise"})
        assert axes(bits=8, mlp_noise=1.0, budget_mode="soft")[1] == {"token_keep", "mlp_keep"}
        assert axes(controller=FixedController()) == (list(space.axis_names), frozenset())

    def test_processors_pin_it_where_the_budget_has_no_target(self, noisy):
        options = resolve_options({"bits": 8}, None, GenerationConfig())
        pinning = options.controls(FixedController(), noisy.model.config).processors[0]
        assert pinning.pinned == (True, True, False, True)

    @pytest.mark.parametrize("method", ["generate", "score"])
    def test_a_model_without_it_says_so(self, watched, mlp_noise, method):
        given = {"method": method, **({"context_length": 9} if method == "score" else {})}
        message = "The action space has no axis `mlp_noise`: its axes are token_keep, mlp_keep, bits"
        watched.assert_refuses(message, prompts(), error=BudgetError, mlp_noise=0.5, **given)
        watched.assert_refuses(message, prompts(), error=BudgetError, budget=Budget(mlp_noise=1.0), **given)

    def test_an_axis_that_is_not_registered_is_an_unknown_keyword(self, watched):
        watched.assert_refuses("mlp_noise(?!.*did you mean)", prompts(), mlp_noise=0.5)
        watched.assert_refuses(
            "Unknown options: .'mlp_noise'.", prompts(), method="score", context_length=9, mlp_noise=0.5
        )

    def test_a_saved_policy_needs_its_axis_and_loads_with_it(self, tmp_path):
        base = tiny_base("llama")
        with registered():
            model = SOLForCausalLM.from_base(base, SOLConfig(**SETTINGS, mlp_noise=[0.5, 0.8, 1.0]))
            model.generation_config.mlp_noise = 0.8
            model.save_pretrained(tmp_path)
        with pytest.raises(ValueError, match="axis `mlp_noise`, which is not registered: import the package"):
            SOLForCausalLM.from_pretrained(tmp_path, base=base)
        with registered():
            loaded = SOLForCausalLM.from_pretrained(tmp_path, base=base)
            assert loaded.action_space == model.action_space
            assert loaded.action_space.levels["mlp_noise"] == (0.5, 0.8, 1.0)
            assert loaded.generation_config.mlp_noise == 0.8


class TestFit:
    def test_hidden_size(self):
        config = SOLConfig(**SETTINGS, base_hidden_size=48)
        with pytest.raises(ValueError, match="hidden size 48, but LlamaForCausalLM has 32"):
            SOLForCausalLM.from_base(tiny_base("llama"), config)

    def test_embedding_size(self):
        config = SOLConfig(**SETTINGS, base_embedding_size=48)
        with pytest.raises(ValueError, match="embedding size 48, but LlamaForCausalLM has 32"):
            SOLForCausalLM.from_base(tiny_base("llama"), config)

    def test_vocabulary_when_loading(self, folder):
        other = tiny_base("llama", vocab_size=120)
        with pytest.raises(ValueError, match="vocab size 99, but LlamaForCausalLM has 120"):
            SOLForCausalLM.from_pretrained(folder[0], base=other)

    def test_hidden_size_when_loading(self, folder):
        other = tiny_base("llama", hidden_size=48, head_dim=12)
        with pytest.raises(ValueError, match="hidden size 32, but LlamaForCausalLM has 48"):
            SOLForCausalLM.from_pretrained(folder[0], base=other)

    def test_number_of_actions(self):
        base = tiny_base("llama")
        sizes = {"base_hidden_size": 32, "base_embedding_size": 32, "base_vocab_size": 99}
        policy = SOLPolicyModel(SOLConfig(**SETTINGS, **sizes))
        config = SOLConfig(**{**SETTINGS, "bits": [8, 16]}, **sizes)
        with pytest.raises(ValueError, match="The policy has 27 actions, but its config describes 18"):
            SOLForCausalLM(config, base, policy)

    def test_number_of_actions_when_loading(self, folder):
        path = folder[0] / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "bits": [8, 16]}))
        with pytest.raises(ValueError, match=r"do not fit their config.*action_head.*\(27.*asks for \(18"):
            SOLForCausalLM.from_pretrained(folder[0], base=folder[1])

    def test_neither_base_nor_policy(self):
        with pytest.raises(ValueError, match="use `from_base` or `from_pretrained`"):
            SOLForCausalLM(SOLConfig(**SETTINGS))

    def test_config_that_names_no_base(self, folder):
        with pytest.raises(ValueError, match="The config names no base model: pass `base=`"):
            SOLForCausalLM.from_pretrained(folder[0])


class TestFiles:
    def weights(self, folder):
        return folder / "model.safetensors"

    @pytest.mark.parametrize("kept", [0, 4, 100, 0.5, 0.999])
    def test_truncated(self, folder, kept):
        path = self.weights(folder[0])
        data = path.read_bytes()
        path.write_bytes(data[: int(kept * len(data)) if isinstance(kept, float) else kept])
        with pytest.raises(ValueError, match="truncated or corrupt"):
            SOLForCausalLM.from_pretrained(folder[0], base=folder[1])

    @pytest.mark.parametrize("place", [0, 12])
    def test_corrupt_header(self, folder, place):
        path = self.weights(folder[0])
        data = bytearray(path.read_bytes())
        data[place : place + 40] = b"\xff" * 40
        path.write_bytes(data)
        with pytest.raises(ValueError, match="truncated or corrupt"):
            SOLForCausalLM.from_pretrained(folder[0], base=folder[1])

    def test_missing_and_unexpected_tensors(self, folder):
        path = self.weights(folder[0])
        tensors = load_file(path)
        tensors["surprise"] = tensors.pop("final_norm.weight")
        save_file(tensors, path, metadata={"format": "pt"})
        with pytest.raises(ValueError, match=r"missing final_norm\.weight.*unexpected surprise"):
            SOLForCausalLM.from_pretrained(folder[0], base=folder[1])

    def test_no_weights_at_all(self, folder):
        self.weights(folder[0]).unlink()
        with pytest.raises(OSError, match="model.safetensors"):
            SOLForCausalLM.from_pretrained(folder[0], base=folder[1])

    def test_unknown_key_in_the_constructor(self):
        with pytest.raises(ValueError, match=r"no field `page_sise` \(did you mean `page_size`\?\)"):
            SOLConfig(**SETTINGS, page_sise=4)

    def test_unknown_key_in_a_file_warns_once(self, folder, caplog, monkeypatch):
        monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
        path = folder[0] / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "flux_capacity": 1.21, "sol_hf_version": "9.9"}))
        with caplog.at_level("WARNING"):
            model = SOLForCausalLM.from_pretrained(folder[0], base=folder[1])
        named = [record.getMessage() for record in caplog.records if "flux_capacity" in record.getMessage()]
        assert len(named) == 1 and "sol_hf 9.9" in named[0]
        assert not hasattr(model.config, "flux_capacity")
        assert model.generate(prompts(), **GREEDY, **HALF).shape == (2, 26)


BAD_CONFIGS = [
    ({"token_keep": [0.0, 1.0]}, r"`token_keep` must lie in \(0, 1\]"),
    ({"bits": [1, 16]}, r"`bits` must lie in 2..16"),
    ({"bits": [8, 8]}, "`bits` has a repeated level"),
    ({"criterion": "guess"}, "Unknown criterion 'guess': it must be one of quest, .*. Did you mean 'quest'"),
    ({"page_size": 0}, "`page_size` must be at least 1"),
    ({"episode_length": 0}, "`episode_length` must be at least 1"),
    ({"sink_tokens": -1}, "cannot be negative"),
    ({"policy_num_heads": 3}, "must be a multiple of `policy_num_heads`"),
]


@pytest.mark.parametrize(("change", "message"), BAD_CONFIGS)
def test_bad_config(change, message):
    with pytest.raises(ValueError, match=message):
        SOLConfig(**{**SETTINGS, **change})


class TestPrompts:
    def test_empty(self, watched):
        watched.assert_refuses("The prompt is empty", prompts()[:, :0], **HALF)
        watched.assert_refuses("shape|0..-2", prompts()[:, :0], method="score", context_length=0, **HALF)

    @pytest.mark.parametrize("length", [1, 3, 6])
    def test_shorter_than_sink_and_window(self, watched, length):
        model = watched.model
        output = model.generate(
            prompts(length=length), max_new_tokens=14, do_sample=False, return_dict_in_generate=True, **HALF
        )
        uncontrollable = FIRST_CONTROLLABLE - length
        assert output.actions[:, :uncontrollable].eq(model.action_space.dense_id).all()
        assert output.actions[:, uncontrollable:].ne(model.action_space.dense_id).any()
        counted = model.action_space.values[output.actions[:, uncontrollable:]]
        torch.testing.assert_close(output.realised, counted.mean(dim=1))
        assert_budget_kept(model, output.actions, [length] * 2, **HALF)

    def test_a_generation_that_is_never_controllable(self, watched):
        output = watched.model.generate(prompts(length=2), **GREEDY, return_dict_in_generate=True, **HALF)
        assert output.actions.eq(watched.model.action_space.dense_id).all()
        assert output.realised.tolist() == [[1.0, 1.0, 16.0]] * 2
        assert torch.equal(output.sequences, watched.model.base.generate(prompts(length=2), **GREEDY))

    def test_no_new_tokens(self, watched):
        watched.assert_refuses("`max_new_tokens` must be greater than 0", prompts(), **HALF, max_new_tokens=0)
        watched.assert_refuses("`max_length` is set to 20", prompts(), **HALF, max_new_tokens=None, max_length=20)

    @pytest.mark.parametrize("context", [-1, 19, 20, [9, 19], [9, 9, 9]])
    def test_context_that_leaves_nothing_to_score(self, watched, context):
        message = "3 entries, but the input has 2 rows" if context == [9, 9, 9] else r"must lie in 0..18"
        watched.assert_refuses(message, prompts(), method="score", context_length=context, **HALF)

    def test_one_dimension(self, watched):
        watched.assert_refuses(
            r"shape \(rows, length\), got \(20,\)", prompts()[0], method="score", context_length=9, **HALF
        )


def mask_with(row: list[int]) -> torch.Tensor:
    mask = torch.ones(2, 20, dtype=torch.long)
    mask[0, row] = 0
    return mask


GAPS = {"in the middle": [7, 8], "on the right": [18, 19], "after left padding": [0, 1, 5], "all": list(range(20))}


class TestMasks:
    @pytest.mark.parametrize("gap", GAPS)
    def test_gap_in_generate(self, watched, gap):
        watched.assert_refuses("`attention_mask` must", prompts(), attention_mask=mask_with(GAPS[gap]), **HALF)

    @pytest.mark.parametrize("gap", ["in the middle", "after left padding"])
    def test_gap_in_score(self, watched, gap):
        mask = mask_with(GAPS[gap])
        watched.assert_refuses("`attention_mask`", prompts(), mask, method="score", context_length=9, **HALF)

    def test_of_another_length(self, watched):
        watched.assert_refuses("`attention_mask` must", prompts(), attention_mask=mask_with([0])[:, 2:], **HALF)
        short = mask_with([0])[:, 2:]
        watched.assert_refuses(
            "`attention_mask` has shape", prompts(), short, method="score", context_length=9, **HALF
        )

    def test_gap_between_two_turns(self, watched):
        model, batch = watched.model, left_padded([prompts(1)[0], prompts(1, 14)[0]])
        turn = model.generate(**batch, **GREEDY, return_dict_in_generate=True, **HALF)
        conversation = torch.cat([turn.sequences, prompts(length=4)], dim=1)
        mask = torch.cat([batch["attention_mask"], torch.ones(2, 10, dtype=torch.long)], dim=1)
        mask[1, 26] = 0
        cache = turn.past_key_values
        watched.assert_refuses("a gap", conversation, attention_mask=mask, past_key_values=cache, **HALF)


class TestCaches:
    def test_foreign_cache(self, watched):
        config = watched.model.base.config
        watched.assert_refuses("needs a SOLCache, got DynamicCache", prompts(), past_key_values=DynamicCache(), **HALF)
        static = StaticCache(config=config, max_cache_len=64)
        watched.assert_refuses("needs a SOLCache, got StaticCache", prompts(), past_key_values=static, **HALF)

    @pytest.mark.parametrize("kind", ["static", "quantized", "offloaded", "paged"])
    def test_cache_implementation(self, watched, kind):
        watched.assert_refuses("cache", prompts(), cache_implementation=kind, **HALF)
        stored = GenerationConfig(cache_implementation=kind, **GREEDY)
        watched.assert_refuses("cache", prompts(), generation_config=stored, **HALF)

    def test_without_a_cache(self, watched):
        watched.assert_refuses("remove `use_cache=False`", prompts(), use_cache=False, **HALF)
        stored = GenerationConfig(use_cache=False, **GREEDY)
        watched.assert_refuses("`use_cache=False`", prompts(), generation_config=stored, **HALF)

    def test_other_number_of_rows(self, watched):
        turn = watched.model.generate(prompts(), **GREEDY, return_dict_in_generate=True, **HALF)
        ids = torch.cat([turn.sequences, prompts(length=4)], dim=1)[:1]
        watched.assert_refuses("holds 2 rows, but the input has 1", ids, past_key_values=turn.past_key_values, **HALF)

    def test_labels(self, watched):
        cache = watched.model.new_cache()
        watched.assert_refuses("use `score`", prompts(), method="forward", past_key_values=cache, labels=prompts())


class TestControllers:
    def test_schedule_that_does_not_fit(self, watched):
        with pytest.raises(ValueError, match=r"shape \(steps, rows\)"):
            ScheduleController(torch.zeros(4, dtype=torch.long))
        with pytest.raises(ValueError, match=r"shape \(steps, rows\)"):
            ScheduleController(torch.zeros(4, 2))
        for actions, message in (([[27]], r"outside of 0..26"), ([[-1]], r"outside of 0..26"), ([[1] * 3], "3 rows")):
            with pytest.raises(ValueError, match=message):
                watched.model.generate(prompts(), **GREEDY, controller=ScheduleController(torch.tensor(actions)))

    def test_schedule_that_is_too_short(self, watched):
        with pytest.raises(ValueError, match="has 3 steps, but step 4 was reached"):
            controller = ScheduleController(torch.zeros(3, 1, dtype=torch.long))
            watched.model.generate(prompts(), **GREEDY, controller=controller)

    def test_scores_of_the_wrong_shape(self, watched):
        class Short(Controller):
            def __call__(self, observation):
                return torch.zeros(observation.rows, 5)

        with pytest.raises(ValueError, match=r"Short returned scores of shape \(2, 5\), expected \(2, 27\)"):
            watched.model.generate(prompts(), **GREEDY, **HALF, controller=Short())


DROPOUTS = {
    "llama": {"attention_dropout": 0.5},
    "gpt2": {"resid_pdrop": 0.5, "embd_pdrop": 0.5, "attn_pdrop": 0.5},
    "phi3": {"resid_pdrop": 0.5, "embd_pdrop": 0.5},
}


class TestTrainingMode:
    @pytest.mark.parametrize("family", DROPOUTS)
    def test_evaluated_as_eval_and_restored(self, family):
        model = sol_model(family, **DROPOUTS[family])
        settings = {**GREEDY, "return_dict_in_generate": True, **HALF}
        expected = model.generate(prompts(), **settings)
        scores = [model.score(prompts(), context_length=9, **options).logprobs for options in (HALF, {})]
        model.base.train()
        next(model.base.children()).eval()
        flags = {name: module.training for name, module in model.base.named_modules()}
        output = model.generate(prompts(), **settings)
        assert torch.equal(output.sequences, expected.sequences) and torch.equal(output.actions, expected.actions)
        model.base.train()
        flags = dict.fromkeys(flags, True)
        assert torch.equal(model.generate(prompts(), **settings).sequences, expected.sequences)
        for options, logprobs in zip((HALF, {}), scores, strict=True):
            assert torch.equal(model.score(prompts(), context_length=9, **options).logprobs, logprobs)
        assert {name: module.training for name, module in model.base.named_modules()} == flags
        assert not torch.equal(model.base(prompts()).logits, model.base(prompts()).logits)


class TestDevices:
    def test_policy_elsewhere(self):
        model = sol_model()
        model.policy.to("meta")
        watched = Watched(model)
        watched.assert_refuses("The policy is on meta, the base on cpu", prompts(), **HALF)
        watched.assert_refuses("The policy is on meta", prompts(), method="score", context_length=9, **HALF)

    def test_prompt_elsewhere(self, watched):
        watched.assert_refuses("The prompt is on meta, the model on cpu", prompts().to("meta"), **HALF)
        watched.assert_refuses("are on meta, the model on cpu", prompts().to("meta"), method="score", context_length=9)

    def test_base_elsewhere(self):
        model = sol_model()
        model.base.to("meta")
        Watched(model).assert_refuses("is on the meta device, without weights", prompts(), **HALF)


def test_levels_are_what_these_messages_assume():
    assert [min(levels) for levels in LEVELS.values()] == [0.2, 0.4, 3]
