# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Every supported family: exact if dense, controllable, independent rows, clean-up, saving and loading.

Comparisons of independent computations run in float64, where rounding cannot flip a choice.
"""

import copy
import pickle
import threading

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache, GenerationConfig, PreTrainedModel

from sol_hf import Controller, ScheduleController, SOLForCausalLM, UnsupportedAxisError
from sol_hf.execution.instrumentation import Instrumentation
from sol_hf.execution.mlp.discovery import find_mlps
from sol_hf.execution.mlp.step_mlp import StepMLP
from support.bases import FAMILIES, SIZES, tiny_base
from support.cases import (
    ACTIONS,
    BUDGETS,
    CONTROLLERS,
    DENSE_BUDGETS,
    HALF,
    assert_budget_kept,
    constant_schedule,
    control,
    left_padded,
    mixed_schedule,
    prompts,
    sol_model,
)


STEPS = 8  # crosses the end of an episode of 6
GREEDY = {"max_new_tokens": STEPS, "do_sample": False, "return_dict_in_generate": True, "output_logits": True}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
EXACT = {"atol": 1e-9, "rtol": 1e-9}
AS_FLOAT32 = {"atol": 1e-4, "rtol": 1e-4}

every_family = pytest.mark.parametrize("family", FAMILIES)


def base_logits(base: PreTrainedModel, tokens: torch.Tensor, prefix: int) -> torch.Tensor:
    """The base's own logits `(rows, steps, vocab)` of tokens `prefix..`: a prefill, then one token at a time."""
    cache, logits = DynamicCache(config=base.config), []
    with torch.no_grad():
        base(tokens[:, :prefix], past_key_values=cache)
        for place in range(prefix, tokens.shape[1]):
            logits.append(base(tokens[:, place : place + 1], past_key_values=cache).logits)
    return torch.cat(logits, dim=1)


def stacked(logits: tuple[torch.Tensor, ...]) -> torch.Tensor:
    return torch.stack(logits, dim=1)


def score_schedule(model: SOLForCausalLM, tokens: torch.Tensor, schedule: torch.Tensor, **options):
    context = tokens.shape[1] - 1 - len(schedule)
    controller = ScheduleController(schedule)
    return model.score(tokens, context_length=context, controller=controller, return_logits=True, **options)


def assert_dense_exact(model: SOLForCausalLM) -> None:
    """Every way to ask for the dense model gives the base's logits, bit for bit, and its tokens."""
    ids = prompts()
    expected = model.base.generate(ids, **GREEDY)
    for options in DENSE_BUDGETS.values():
        output = model.generate(ids, **GREEDY, **options)
        assert torch.equal(output.sequences, expected.sequences)
        assert torch.equal(stacked(output.logits), stacked(expected.logits))
    schedule = constant_schedule(model, "dense", STEPS)
    output = model.generate(ids, **GREEDY, controller=ScheduleController(schedule))
    alone = base_logits(model.base, output.sequences[:, :-1], ids.shape[1] - 1)
    assert torch.equal(stacked(output.logits), alone.float())
    assert torch.equal(score_schedule(model, output.sequences, schedule).logits, alone)


class TestDense:
    @every_family
    def test_bitwise_in_float64(self, family):
        model = sol_model(family)
        assert_dense_exact(model)

    @pytest.mark.parametrize("dtype", DTYPES)
    @every_family
    def test_bitwise_in_other_dtypes(self, family, dtype):
        model = sol_model(family, DTYPES[dtype])
        assert_dense_exact(model)
        output = model.generate(prompts(), **GREEDY, **HALF)
        assert stacked(output.logits).isfinite().all()
        assert output.past_key_values.layers[0].keys.dtype == DTYPES[dtype]
        assert_budget_kept(model, output.actions, [20, 20], **HALF)

    @every_family
    def test_bitwise_on_eager_attention(self, family):
        model = sol_model(family, attn_implementation="eager")
        assert model.base.config._attn_implementation == "eager"
        assert_dense_exact(model)

    @every_family
    def test_score_without_a_budget_is_one_forward_of_the_base(self, family):
        model, ids = sol_model(family), prompts(length=30)
        with torch.no_grad():
            expected = model.base(ids).logits[:, 19:-1]
        output = model.score(ids, context_length=19, return_logits=True)
        torch.testing.assert_close(output.logits, expected, **EXACT)
        assert output.actions.eq(model.action_space.dense_id).all()
        assert output.realised.tolist() == [[1.0, 1.0, 16.0]] * 2


class TestControl:
    @pytest.mark.parametrize("axis", ["token_keep", "mlp_keep", "bits"])
    @every_family
    def test_each_axis_alone_changes_the_logits(self, family, axis):
        model, ids = sol_model(family), prompts(length=40)
        dense = score_schedule(model, ids, constant_schedule(model, "dense", 9)).logits
        reduced = score_schedule(model, ids, constant_schedule(model, axis, 9)).logits
        assert ((dense - reduced).abs().amax(dim=-1) > 1e-3).float().mean() > 0.9

    def test_token_keep_reaches_the_sliding_layers_of_a_base_without_full_ones(self):
        base = tiny_base("mistral", torch.float64)
        model, ids = control(base), prompts(length=60)
        assert model.new_cache().sparse_layers == {0, 1}
        cheap = score_schedule(model, ids, constant_schedule(model, "token_keep", 9))
        dense = score_schedule(model, ids, constant_schedule(model, "dense", 9))
        assert ((dense.logits - cheap.logits).abs().amax(dim=-1) > 1e-3).all()

    def test_token_keep_leaves_sliding_layers_beside_full_ones_alone(self):
        assert sol_model("gemma3_text").new_cache().sparse_layers == {1}

    @every_family
    def test_eager_and_sdpa_agree(self, family):
        ids = prompts(length=40)
        models = [sol_model(family, attn_implementation=name) for name in ("sdpa", "eager")]
        for action in ("token_keep", "cheapest"):
            sdpa, eager = (score_schedule(model, ids, constant_schedule(model, action, 5)) for model in models)
            torch.testing.assert_close(sdpa.logits, eager.logits, **AS_FLOAT32)  # eager softmax is in float32

    @every_family
    def test_the_policy_keeps_budgets(self, family):
        model = sol_model(family)
        for name in ("half", "rows"):
            output = model.generate(prompts(), **GREEDY, **BUDGETS[name])
            assert_budget_kept(model, output.actions, [20, 20], **BUDGETS[name])

    @pytest.mark.parametrize("budget", BUDGETS)
    @pytest.mark.parametrize("controller", CONTROLLERS)
    def test_every_controller_keeps_every_budget(self, controller, budget):
        model = sol_model()
        output = model.generate(prompts(), **GREEDY, **BUDGETS[budget], controller=CONTROLLERS[controller](model))
        assert output.sequences.shape == (2, 20 + STEPS)
        assert_budget_kept(model, output.actions, [20, 20], **BUDGETS[budget])


class TestRows:
    LENGTHS = (20, 13, 6)

    def rows(self):
        return [prompts(1, length, seed=length)[0] for length in self.LENGTHS]

    @every_family
    def test_left_padded_batch_of_mixed_actions_equals_one_by_one(self, family):
        model = sol_model(family)
        schedule = mixed_schedule(model, STEPS, rows=3)
        together = model.generate(**left_padded(self.rows()), **GREEDY, controller=ScheduleController(schedule))
        for index, row in enumerate(self.rows()):
            controller = ScheduleController(schedule[:, index : index + 1])
            alone = model.generate(row[None], **GREEDY, controller=controller)
            assert torch.equal(alone.sequences[0, len(row) :], together.sequences[index, 20:])
            assert torch.equal(alone.actions[0], together.actions[index])
            torch.testing.assert_close(stacked(alone.logits)[0], stacked(together.logits)[index], **AS_FLOAT32)

    def test_a_page_is_as_full_for_a_padded_row_as_for_the_row_alone(self):
        model = control(tiny_base("llama", torch.float64), observe_page_fill=True)
        torch.nn.init.normal_(model.policy.page_embedding.weight, std=3.0)
        together = model.generate(**left_padded(self.rows()), **GREEDY, **HALF)
        for row, alone in enumerate(self.rows()):
            expected = model.generate(alone[None], **GREEDY, **HALF)
            assert torch.equal(together.actions[row], expected.actions[0])
            assert torch.equal(together.sequences[row, -STEPS:], expected.sequences[0, -STEPS:])
        torch.nn.init.zeros_(model.policy.page_embedding.weight)
        other = model.generate(**left_padded(self.rows()), **GREEDY, **HALF)
        assert not torch.equal(other.actions, together.actions)

    @every_family
    def test_left_padded_batch_under_the_policy_equals_one_by_one(self, family):
        model = sol_model(family)
        together = model.generate(**left_padded(self.rows()), **GREEDY, **HALF)
        for index, row in enumerate(self.rows()):
            alone = model.generate(row[None], **GREEDY, **HALF)
            assert torch.equal(alone.actions[0], together.actions[index])
            assert torch.equal(alone.sequences[0, len(row) :], together.sequences[index, 20:])
            torch.testing.assert_close(alone.realised[0], together.realised[index])

    @every_family
    def test_chunked_prefill_equals_one_shot(self, family):
        model, batch = sol_model(family), left_padded(self.rows())
        expected = model.generate(**batch, **GREEDY, **HALF)
        for size in (16, 19):
            output = model.generate(
                **batch, generation_config=GenerationConfig(prefill_chunk_size=size, **GREEDY), **HALF
            )
            assert torch.equal(output.sequences, expected.sequences), size
            assert torch.equal(output.actions, expected.actions), size
            torch.testing.assert_close(stacked(output.logits), stacked(expected.logits), **AS_FLOAT32)

    @pytest.mark.parametrize("size", [1, 3, 5])
    def test_prefill_chunks_that_hold_nothing_but_padding(self, size):
        model, batch = sol_model(), left_padded(self.rows())
        chunks = GenerationConfig(prefill_chunk_size=size, **GREEDY)
        assert torch.equal(
            model.base.generate(**batch, generation_config=chunks).sequences,
            model.base.generate(**batch, **GREEDY).sequences,
        )
        expected = model.generate(**batch, **GREEDY, **HALF)
        output = model.generate(**batch, generation_config=chunks, **HALF)
        assert torch.equal(output.sequences, expected.sequences)
        assert torch.equal(output.actions, expected.actions)

    @every_family
    def test_score_of_rows_with_different_contexts_equals_alone(self, family):
        model, lengths, contexts = sol_model(family), (34, 25, 21), (22, 19, 7)
        rows = [prompts(1, length, seed=length)[0] for length in lengths]
        schedule = mixed_schedule(model, 13, rows=3)
        together = model.score(
            **left_padded(rows),
            context_length=contexts,
            controller=ScheduleController(schedule),
            return_logits=True,
        )
        for index, (row, context) in enumerate(zip(rows, contexts, strict=True)):
            controller = ScheduleController(schedule[:, index : index + 1])
            alone = model.score(row[None], context_length=context, controller=controller, return_logits=True)
            steps = len(row) - context - 1
            assert together.step_mask[index].sum() == steps == alone.logprobs.shape[1]
            torch.testing.assert_close(together.logits[index, :steps], alone.logits[0], **EXACT)
            torch.testing.assert_close(together.logprobs[index, :steps], alone.logprobs[0])
            torch.testing.assert_close(together.realised[index], alone.realised[0])
            assert torch.equal(together.actions[index, :steps], alone.actions[0])
            assert together.actions[index, steps:].eq(-1).all() and together.logprobs[index, steps:].eq(0).all()

    @every_family
    def test_other_actions_in_row_0_do_not_touch_row_1(self, family):
        model, ids = sol_model(family), prompts(length=40)
        schedule = mixed_schedule(model, STEPS, rows=2)
        changed = schedule.clone()
        changed[:, 0] = (schedule[:, 0] + 11) % len(model.action_space)
        before, after = (score_schedule(model, ids, actions).logits for actions in (schedule, changed))
        assert ((before - after)[0].abs().amax(dim=-1) > 1e-6).all()
        torch.testing.assert_close(before[1], after[1], **EXACT)


def fingerprint(base: PreTrainedModel) -> dict:
    """Everything that must not change on a base: attributes, hooks, training flags, implementation, weights."""
    state = {"implementation": base.config._attn_implementation, "config": base.config.to_dict()}
    for name, module in base.named_modules():
        hooks = {key: list(value) for key, value in vars(module).items() if "hooks" in key and value is not None}
        state[name] = (sorted(vars(module)), hooks, module.training, module.forward.__func__)
    state["weights"] = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    return state


def assert_untouched(base: PreTrainedModel, before: dict) -> None:
    after = fingerprint(base)
    weights = before.pop("weights")
    assert after.pop("weights").keys() == weights.keys()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in base.state_dict().items())
    assert after == before


class Failing(Controller):
    """Chooses the cheapest action for some steps, then raises."""

    needs_budget = False

    def __call__(self, observation):
        if observation.total_step == 3:
            raise RuntimeError("failed in step 3")
        return torch.zeros(observation.rows, len(observation.action_space)).index_fill(1, torch.tensor([0]), 1.0)


class InStep(Controller):
    """Follows a schedule in lockstep with another thread, as long as both are running."""

    needs_budget = False

    def __init__(self, actions: torch.Tensor, barrier: threading.Barrier, shared: int):
        self.schedule, self.barrier, self.shared = ScheduleController(actions), barrier, shared

    def __call__(self, observation):
        if observation.total_step < self.shared:
            self.barrier.wait(timeout=60)
        return self.schedule(observation)


class TestNothingIsLeftBehind:
    @every_family
    def test_after_generate_and_score(self, family):
        model = sol_model(family)
        model.base.get_submodule(next(n for n, _ in model.base.named_modules() if n.endswith("mlp"))).train()
        before = fingerprint(model.base)
        model.generate(prompts(), **GREEDY, **HALF)
        model.score(prompts(), context_length=9, **HALF)
        assert_untouched(model.base, before)

    @every_family
    def test_after_an_exception_inside(self, family):
        model = sol_model(family)
        model.base.train()
        before = fingerprint(model.base)
        with pytest.raises(RuntimeError, match="failed in step 3"):
            model.generate(prompts(), **GREEDY, controller=Failing())
        with pytest.raises(RuntimeError, match="failed in step 3"):
            model.score(prompts(), context_length=9, controller=Failing())
        assert_untouched(model.base, before)

    @pytest.mark.parametrize("order", ["last in, first out", "first in, first out"])
    def test_two_bases_with_the_same_modules(self, order):
        model = sol_model()
        base, other = model.base, copy.copy(model.base)
        base.model.train()
        before, expected = fingerprint(base), model.generate(prompts(), **GREEDY, **HALF)
        first, second = Instrumentation.of(base), Instrumentation.of(other)
        assert first is not second
        first.__enter__(), second.__enter__()
        leaving = [second, first] if order.startswith("last") else [first, second]
        leaving[0].__exit__()
        mlps = find_mlps(base)
        assert base.config._attn_implementation == "sol_sdpa" and not base.model.training
        assert all(isinstance(mlp.forward, StepMLP) and not mlp.training for mlp in mlps)
        assert len(base.get_output_embeddings()._forward_pre_hooks) == 1
        for number in range(2):
            output = model.generate(prompts(), **GREEDY, **HALF)
            assert torch.equal(output.sequences, expected.sequences)
            assert torch.equal(stacked(output.logits), stacked(expected.logits))
            if number == 0:
                leaving[1].__exit__()
        assert_untouched(base, before)

    def test_a_base_is_not_copied_during_a_generation(self):
        model = sol_model()
        with Instrumentation.of(model.base):
            for make in (copy.deepcopy, pickle.dumps):
                with pytest.raises(TypeError, match="cannot be copied or pickled during a generation"):
                    make(model.base)
        assert_untouched(copy.deepcopy(model.base), fingerprint(model.base))

    @every_family
    def test_two_threads_on_one_model(self, family):
        model, ids, steps = sol_model(family), prompts(), (5, STEPS)
        schedules = [mixed_schedule(model, count, rows=2, seed=count) for count in steps]
        settings = [{**GREEDY, "max_new_tokens": count} for count in steps]
        expected = [
            model.generate(ids, **kw, controller=ScheduleController(schedule))
            for schedule, kw in zip(schedules, settings, strict=True)
        ]
        before, outputs, barrier = fingerprint(model.base), [None, None], threading.Barrier(2)

        def work(index: int) -> None:
            controller = InStep(schedules[index], barrier, shared=min(steps))
            outputs[index] = model.generate(ids, **settings[index], controller=controller)

        threads = [threading.Thread(target=work, args=(index,)) for index in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=120)
        for output, alone in zip(outputs, expected, strict=True):
            assert torch.equal(output.sequences, alone.sequences)
            assert torch.equal(stacked(output.logits), stacked(alone.logits))
        assert_untouched(model.base, before)

    @every_family
    def test_the_base_stays_dense_while_a_budget_is_in_force(self, family):
        model, ids = sol_model(family), prompts()
        with torch.no_grad():
            expected = model.base(ids).logits
        seen = []

        class Asking(ScheduleController):
            def __call__(self, observation):
                seen.append(model.base(ids).logits)
                return super().__call__(observation)

        model.generate(ids, **GREEDY, controller=Asking(constant_schedule(model, "cheapest", STEPS)))
        assert len(seen) == STEPS and all(torch.equal(logits, expected) for logits in seen)


class TestFiles:
    @every_family
    def test_saved_and_loaded(self, family, tmp_path):
        model, ids = sol_model(family), prompts(length=30)
        model.policy.float()
        model.save_pretrained(tmp_path)
        other = SOLForCausalLM.from_pretrained(tmp_path, base=tiny_base(family, torch.float64))
        inputs = {
            "hidden_states": torch.randn(2, 6, model.config.base_hidden_size),
            "token_embeddings": torch.randn(2, 6, model.config.base_embedding_size),
            "scalars": torch.rand(2, 6, 8),
            "previous_actions": torch.randint(len(model.action_space), (2, 6)),
        }
        assert torch.equal(model.policy(**inputs).logits, other.policy(**inputs).logits)
        before, after = (m.score(ids, context_length=14, return_logits=True, **HALF) for m in (model, other))
        assert torch.equal(before.actions, after.actions)
        assert torch.equal(before.logits, after.logits)
        assert before.actions.unique().numel() > 1

    @every_family
    def test_the_file_holds_no_base_tensor(self, family, tmp_path):
        model = sol_model(family)
        model.save_pretrained(tmp_path)
        stored = {}
        for path in tmp_path.glob("*.safetensors"):
            stored.update(load_file(path))
        assert stored.keys() == model.policy.state_dict().keys()
        assert not list(tmp_path.glob("*.bin")) + list(tmp_path.glob("*.pt"))
        of_base = [tensor for tensor in model.base.state_dict().values() if tensor.unique().numel() > 1]
        for tensor in stored.values():
            assert not any(tensor.shape == x.shape and torch.equal(tensor, x) for x in of_base)


EXPERTS = {
    "num_local_experts": 4,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "decoder_sparse_step": 1,
}
CONVOLUTION = {"layer_types": ["conv", "full_attention"]}
HYBRID = {"layer_types": ["linear_attention", "full_attention"]}
OUTSIDERS: dict[str, dict] = {
    "mixtral": EXPERTS,
    "qwen3_moe": EXPERTS,
    "jetmoe": EXPERTS,
    "stablelm": {},
    "bloom": {"n_layer": 2},
    "mamba": {"state_size": 8},
    "rwkv": {},
    "lfm2": CONVOLUTION,
    "olmo_hybrid": HYBRID,
    "gemma2": {},
}
OWN_CACHE = r"`\w+` cannot be controlled.*(takes no `past_key_values`|keeps a cache of its own kind)"
NO_INTERFACE = r"`token_keep` cannot be controlled.*AttentionInterface"
NO_TOKENS = r"`mlp_keep` and `bits` cannot be controlled on JetMoe.*gets its tokens in another way"
NO_ROLLBACK = r"cannot be controlled.*cannot be rolled back.*kv_refresh=False"
REFUSED = [
    ("jetmoe", "mlp_keep", NO_TOKENS),
    ("jetmoe", "bits", NO_TOKENS),
    ("bloom", "token_keep", NO_INTERFACE),
    ("mamba", "token_keep", OWN_CACHE),
    ("mamba", "mlp_keep", OWN_CACHE),
    ("rwkv", "token_keep", OWN_CACHE),
    ("rwkv", "mlp_keep", OWN_CACHE),
    ("lfm2", "token_keep", NO_ROLLBACK),
    ("lfm2", "mlp_keep", NO_ROLLBACK),
    ("olmo_hybrid", "token_keep", NO_ROLLBACK),
    ("olmo_hybrid", "mlp_keep", NO_ROLLBACK),
]
CONTROLLED = [
    ("mixtral", {"token_keep": 0.3, "mlp_keep": 0.5, "bits": 8}),
    ("qwen3_moe", {"mlp_keep": 0.5}),
    ("jetmoe", {"token_keep": 0.3}),
    ("stablelm", {"token_keep": 0.3, "mlp_keep": 0.5, "bits": 8}),
    ("bloom", {"mlp_keep": 0.5, "bits": 8}),
    ("lfm2", {"mlp_keep": 0.5, "kv_refresh": False}),
    ("lfm2", {"token_keep": 0.3, "kv_refresh": False}),
    ("olmo_hybrid", {"token_keep": 0.3, "mlp_keep": 0.5, "kv_refresh": False}),
    ("gemma2", {"token_keep": 0.3, "mlp_keep": 0.5}),
]


def outsider(family: str) -> SOLForCausalLM:
    """A small policy on a tiny base outside of the supported families, in float32: some have no float64 kernels."""
    torch.manual_seed(7)
    config = AutoConfig.for_model(family, **SIZES, **OUTSIDERS[family])
    base = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    base.generation_config.pad_token_id = 0
    return control(base)


class TestOtherBases:
    @pytest.mark.parametrize("family", OUTSIDERS)
    def test_dense_is_exact(self, family):
        model, ids = outsider(family), prompts()
        expected = model.base.generate(ids, **GREEDY)
        for options in DENSE_BUDGETS.values():
            output = model.generate(ids, **GREEDY, **options)
            assert torch.equal(output.sequences, expected.sequences)
            assert torch.equal(stacked(output.logits), stacked(expected.logits))

    @pytest.mark.parametrize(("family", "axis", "message"), REFUSED)
    def test_unsupported_axis_is_named_before_any_compute(self, family, axis, message):
        model, calls = outsider(family), []
        model.base.register_forward_pre_hook(lambda *_: calls.append(1))
        with pytest.raises(UnsupportedAxisError, match=message):
            model.generate(prompts(), **GREEDY, **{axis: 8 if axis == "bits" else 0.5})
        assert not calls

    @pytest.mark.parametrize(("family", "options"), CONTROLLED)
    def test_the_other_axes_work(self, family, options):
        model, ids = outsider(family), prompts()
        output = model.generate(ids, **GREEDY, **options)
        budget = {axis: value for axis, value in options.items() if axis in ACTIONS}
        assert_budget_kept(model, output.actions, [20, 20], **budget)
        dense = model.base.generate(ids, **GREEDY)
        assert not torch.allclose(stacked(output.logits)[:, :2], stacked(dense.logits)[:, :2], atol=1e-5)
