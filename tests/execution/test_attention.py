# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Attention over the selected keys equals attention over all keys under the equivalent mask."""

import threading
from fractions import Fraction
from types import SimpleNamespace

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import LlamaConfig, MistralConfig
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from sol_hf import ActionSpace, ScheduleController, SOLCache, SOLConfig, SOLForCausalLM, UnsupportedAxisError
from sol_hf.evaluation.families.tiny_configs import family_base
from sol_hf.execution.attention.interface import register_attention
from sol_hf.execution.attention.masks import ADDS, HIDES, PLAIN, kind_of_mask
from sol_hf.execution.plan import ACTIVE, ForwardContext, StepPlan, active_forward
from sol_hf.selection.candidates import Candidates
from sol_hf.selection.criterion import CRITERIA
from sol_hf.selection.ranking import group_queries
from sol_hf.selection.rule import SelectionRule
from support.bases import tiny_base
from support.cases import HALF, constant_schedule, control, prompts, sol_model
from support.naive_criteria import naive_quest, naive_recency, naive_relevancy, naive_sketch


SPACE = ActionSpace([0.2, 1.0], [1.0], [16])
KV_HEADS, DIM, LAYER = 2, 8, 1
KEEP = [Fraction(7, 20), Fraction(1, 20), Fraction(1)]


def filled_cache(prefill: int, steps: int, padding: list[int], window: int | None = None, page_size: int = 4, **to):
    """A cache of two layers after a prefill and some steps, with all keys and values that went into layer 1."""
    sizes = dict(num_hidden_layers=2, hidden_size=32, num_attention_heads=4)
    config = LlamaConfig(**sizes) if window is None else MistralConfig(**sizes, sliding_window=window)
    cache = SOLCache(config, SPACE, page_size)
    keys = torch.randn(len(padding), KV_HEADS, prefill + steps, DIM, **to)
    values = torch.randn(len(padding), KV_HEADS, prefill + steps, DIM, **to)
    cache.set_padding(torch.tensor(padding))
    pieces = [slice(0, prefill)] + [slice(n, n + 1) for n in range(prefill, prefill + steps)]
    for piece in pieces:
        shown = [cache.update(keys[:, :, piece], values[:, :, piece], layer) for layer in range(2)][LAYER]
        if window is not None:
            cache.crop(0)
    return cache, *shown


def attend(cache, rule, keep, query, key, value, scaling=None, backend="auto") -> torch.Tensor:
    """Output of the registered attention function under a plan."""
    plan = StepPlan(
        cache=cache, rule=rule, levels={"token_keep": torch.tensor([float(k) for k in keep])}, backend=backend
    )
    function = ALL_ATTENTION_FUNCTIONS[register_attention("sdpa")]
    with active_forward(plan):
        output, weights = function(SimpleNamespace(layer_idx=LAYER), query, key, value, None, scaling=scaling)
    assert weights is None
    return output


def masked_attention(query, key, value, allowed, scaling=None) -> torch.Tensor:
    """Dense attention in float64 where `allowed` `(rows, heads, slots)`; `(rows, 1, heads, dim)`."""
    group = query.shape[1] // key.shape[1]
    key, value = (x.double().repeat_interleave(group, dim=1) for x in (key, value))
    output = scaled_dot_product_attention(query.double(), key, value, attn_mask=allowed[:, :, None], scale=scaling)
    return output.transpose(1, 2)


def naive_mask(query, key, keep, rule, padding, gone=0) -> torch.Tensor:
    """Slots that every query head may read, by the reference of the criterion; `gone` slots are no longer cached."""
    rows, heads, slots = query.shape[0], query.shape[1], key.shape[2]
    allowed = torch.zeros(rows, heads, slots, dtype=torch.bool)
    for row in range(rows):
        start, gone_of_row = max(padding[row] - gone, 0), max(gone - padding[row], 0)
        keys, count = key[row, :, start:], slots - start
        if rule.criterion == "quest":
            read = naive_quest(query[row, :, 0], keys, keep[row], rule, gone_of_row)
        elif rule.criterion == "relevancy":
            read = naive_relevancy(query[row, :, 0], keys, keep[row], rule)
        elif rule.criterion == "sketch":
            read = naive_sketch(query[row, :, 0], keys, keep[row], rule)
        else:
            read = [naive_recency(count, keep[row], rule)]
        for head in range(heads):
            ranks = sorted(read[head * len(read) // heads])
            allowed[row, head, start + torch.tensor(ranks)] = True
    return allowed


@pytest.mark.parametrize("selection", ["head", "group"])
@pytest.mark.parametrize("group", [1, 3])
@pytest.mark.parametrize("padding", [[0, 0, 0], [0, 9, 21]])
@pytest.mark.parametrize("criterion", list(CRITERIA))
def test_attention_over_selected_keys(criterion, padding, group, selection):
    rule = SelectionRule(criterion, page_size=4, selection=selection)
    cache, key, value = filled_cache(30, 7, padding)
    query = torch.randn(3, KV_HEADS * group, 1, DIM)
    allowed = naive_mask(query, key, KEEP, rule, padding)
    assert 0 < allowed[1].float().mean() < 0.6
    output = attend(cache, rule, KEEP, query, key, value)
    expected = masked_attention(query, key, value, allowed)
    torch.testing.assert_close(output.double(), expected, atol=1e-5, rtol=0)
    assert (expected - masked_attention(query, key, value, torch.ones_like(allowed)))[1].abs().max() > 0.05


@pytest.mark.parametrize("criterion", list(CRITERIA))
@pytest.mark.parametrize("padding", [[0, 0, 0], [0, 9, 21]])
def test_attention_in_bfloat16(criterion, padding):
    # Scores have ties in bfloat16, so the mask comes from the criterion in the same precision.
    rule = SelectionRule(criterion, page_size=4)
    cache, key, value = filled_cache(30, 7, padding, dtype=torch.bfloat16)
    query = torch.randn(3, 6, 1, DIM, dtype=torch.bfloat16)
    keep, first, slots = torch.tensor([float(k) for k in KEEP]), torch.tensor(padding), key.shape[2]
    candidates = Candidates(group_queries(query, key.shape[1]), key, first, first, page_size=4)
    selection = CRITERIA[criterion].select(candidates, keep, rule)
    slot = (selection.ranks + first[:, None, None]).expand(3, 6, -1)
    valid = selection.in_use & (slot >= first[:, None, None]) & (slot < slots)
    allowed = torch.zeros(3, 6, slots, dtype=torch.long)
    allowed = allowed.scatter_add(2, slot.clamp(0, slots - 1), valid.expand_as(slot).long()) > 0
    output = attend(cache, rule, KEEP, query, key, value)
    assert output.dtype == torch.bfloat16
    torch.testing.assert_close(output.double(), masked_attention(query, key, value, allowed), atol=3e-2, rtol=0)


@pytest.mark.parametrize("window", [12, 13])
@pytest.mark.parametrize("prefill", [5, 11, 13, 16, 31])
@pytest.mark.parametrize("padding", [[0, 0, 0], [0, 2, 4]])
@pytest.mark.parametrize("criterion", list(CRITERIA))
def test_attention_where_all_layers_have_a_window(criterion, padding, prefill, window):
    # The window moves past the padding and through the pages, which stay aligned to the row's first token.
    rule = SelectionRule(criterion, page_size=4)
    for steps in (1, 2, 3, 4, 5):
        cache, key, value = filled_cache(prefill, steps, padding, window)
        length = prefill + steps
        assert key.shape[2] == min(length, window)
        assert cache.sparse_layers == {0, 1}
        query = torch.randn(3, 4, 1, DIM)
        allowed = naive_mask(query, key, KEEP, rule, padding, gone=length - key.shape[2])
        output = attend(cache, rule, KEEP, query, key, value)
        torch.testing.assert_close(output.double(), masked_attention(query, key, value, allowed), atol=1e-5, rtol=0)


def test_scaling_is_passed_on():
    cache, key, value = filled_cache(20, 1, [0, 0, 0])
    query, rule = torch.randn(3, 4, 1, DIM), SelectionRule(page_size=4)
    allowed = naive_mask(query, key, KEEP, rule, [0, 0, 0])
    output = attend(cache, rule, KEEP, query, key, value, scaling=0.9)
    torch.testing.assert_close(
        output.double(), masked_attention(query, key, value, allowed, scaling=0.9), atol=1e-5, rtol=0
    )
    assert not torch.allclose(output, attend(cache, rule, KEEP, query, key, value), atol=1e-3)


def test_padding_is_never_read():
    cache, key, value = filled_cache(12, 3, [0, 6, 11])
    query, rule = torch.randn(3, 4, 1, DIM), SelectionRule(page_size=4)
    expected = attend(cache, rule, KEEP, query, key, value)
    for row, padding in enumerate([0, 6, 11]):
        key[row, :, :padding] = 1e4
        value[row, :, :padding] = 1e4
    assert torch.equal(attend(cache, rule, KEEP, query, key, value), expected)


@pytest.mark.parametrize("criterion", list(CRITERIA))
@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_a_dense_row_beside_a_sparse_one_stays_dense(family, criterion):
    config = SOLConfig(token_keep=[0.2, 1.0], mlp_keep=[1.0], bits=[16], criterion=criterion, policy_hidden_size=32)
    model = SOLForCausalLM.from_base(tiny_base(family), config)
    ids = torch.randint(2, 99, (2, 49))
    schedule = ScheduleController(torch.tensor([[1, 0]] * 16))
    output = model.score(ids, context_length=32, controller=schedule, kv_refresh=False, return_logits=True)
    dense = model.score(ids, context_length=32, return_logits=True)
    torch.testing.assert_close(output.logits[0], dense.logits[0], atol=1e-4, rtol=0)
    assert (output.logits[1] - dense.logits[1]).abs().max() > 0.1


@pytest.mark.parametrize("plan", ["none", "dense", "other layer"])
def test_without_a_selection_it_is_the_original_function(plan):
    cache, key, value = filled_cache(6, 1, [0])
    cache.layers[LAYER] = torch.nn.Identity() if plan == "other layer" else cache.layers[LAYER]
    keep = None if plan == "dense" else torch.tensor([0.1])
    step = None if plan == "none" else StepPlan(cache=cache, rule=SelectionRule(), levels={"token_keep": keep})
    module = SimpleNamespace(layer_idx=LAYER, num_key_value_groups=2, is_causal=True)
    query, mask = torch.randn(1, 4, 1, DIM), torch.randn(1, 1, 1, 7)
    arguments = (module, query, key, value, mask)
    with active_forward(step):
        output, _ = ALL_ATTENTION_FUNCTIONS[register_attention("sdpa")](*arguments, scaling=0.3, dropout=0.0)
    expected, _ = ALL_ATTENTION_FUNCTIONS["sdpa"](*arguments, scaling=0.3, dropout=0.0)
    assert torch.equal(output, expected)


@pytest.mark.parametrize(
    ("family", "reason"),
    [("deepseek_v32", "an indexer of its own.*set `index_topk`"), ("falcon_h1", "none of its cache layers holds all")],
)
def test_it_is_said_why_no_layer_can_choose_its_keys(family, reason):
    model = SOLForCausalLM.from_base(family_base(family))
    with pytest.raises(UnsupportedAxisError, match=reason):
        model.generate(torch.arange(5, 25)[None], max_new_tokens=2, token_keep=0.5)


@pytest.mark.parametrize("argument", ["softcap", "s_aux", "position_bias"])
def test_arguments_that_selection_cannot_serve_are_refused(argument):
    cache, key, value = filled_cache(6, 1, [0])
    plan = StepPlan(cache=cache, rule=SelectionRule(), levels={"token_keep": torch.tensor([0.5])})
    function = ALL_ATTENTION_FUNCTIONS[register_attention("sdpa")]
    query, module = torch.randn(1, 4, 1, DIM), SimpleNamespace(layer_idx=LAYER)
    with active_forward(plan), pytest.raises(ValueError, match=f"`token_keep` cannot be controlled.*`{argument}`"):
        function(module, query, key, value, None, **{argument: 1.0})


@pytest.mark.parametrize("backend", ["auto", "reference", "fast"])
def test_dense_steps_of_a_base_with_a_mask_of_its_own_keep_it(backend):
    """Doge computes a mask from the values. It is not a padding mask, so no kernel may ignore it."""
    model, ids = control(tiny_base("doge", keep_window_size=16)), prompts(1, 150)
    schedule = ScheduleController(constant_schedule(model, "mlp_keep", 6))
    output = model.score(
        ids, context_length=144, controller=schedule, return_logits=True, kv_refresh=False, backend=backend
    )
    expected = model.score(
        ids, context_length=144, controller=schedule, return_logits=True, kv_refresh=False, backend="reference"
    )
    torch.testing.assert_close(output.logits, expected.logits, atol=1e-3, rtol=0)


def test_sparse_steps_of_a_base_with_a_mask_of_its_own_are_refused():
    model = control(tiny_base("doge", keep_window_size=16))
    with pytest.raises(UnsupportedAxisError, match="`token_keep` cannot be controlled on DogeAttention.*mask adds"):
        model.generate(prompts(1, 20), max_new_tokens=3, token_keep=0.5)


def test_masks_that_hide_padding_hide_more_or_add():
    least = torch.finfo(torch.float32).min
    first_key = torch.tensor([1])
    padding = torch.tensor([least, 0.0, 0.0]).view(1, 1, 1, 3)
    further = torch.tensor([-torch.inf, least, 0.0]).view(1, 1, 1, 3)
    for mask in (None, padding, padding, padding == 0, (padding == 0).long()):
        assert kind_of_mask(ForwardContext(), mask, first_key) == PLAIN
    for mask in (further, further == 0, (further == 0).long()):
        assert kind_of_mask(ForwardContext(), mask, first_key) == HIDES
    assert kind_of_mask(ForwardContext(), torch.full((1, 1, 1, 3), -0.5), first_key) == ADDS
    causal = torch.ones(2, 4, dtype=torch.bool).tril(2)[None, None]
    assert kind_of_mask(ForwardContext(), causal) == PLAIN
    assert kind_of_mask(ForwardContext(), causal.tril(1)) == HIDES


def test_masks_on_a_device_are_judged_by_their_origin():
    """Their values are not read: that would stall the device."""
    made, other = torch.ones(1, 1, 1, 3, dtype=torch.bool), torch.ones(1, 1, 1, 3, dtype=torch.bool)
    on_device = type("OnDevice", (torch.Tensor,), {"device": SimpleNamespace(type="cuda")})

    def elsewhere(mask):
        return mask.as_subclass(on_device)

    context = ForwardContext(masks=[elsewhere(made)])
    assert kind_of_mask(context, elsewhere(made)[..., :2]) == PLAIN
    assert kind_of_mask(context, elsewhere(other)) == HIDES
    assert kind_of_mask(context, elsewhere(torch.zeros(1, 4, 1, 3))) == ADDS


def test_keys_that_a_base_has_changed_are_read_as_they_are():
    """The layer has the keys before the change, so neither its storage nor its page index can be used."""
    rule = SelectionRule(page_size=4)
    cache, key, value = filled_cache(30, 7, [0, 0, 0])
    query, changed = torch.randn(3, 4, 1, DIM), -3 * key
    allowed = naive_mask(query, changed, KEEP, rule, [0, 0, 0])
    expected = masked_attention(query, changed, value, allowed)
    for backend in ("reference", "fast"):
        output = attend(cache, rule, KEEP, query, changed, value, backend=backend)
        torch.testing.assert_close(output.double(), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_function_and_mask_are_registered_together_and_once(implementation):
    name = register_attention(implementation)
    function = ALL_ATTENTION_FUNCTIONS[name]
    assert name == "sol_" + implementation
    own, ours = ALL_MASK_ATTENTION_FUNCTIONS[implementation], ALL_MASK_ATTENTION_FUNCTIONS[name]
    sizes = {"batch_size": 1, "q_length": 3, "kv_length": 5, "q_offset": 2, "dtype": torch.float32}
    assert torch.equal(ours(**sizes), own(**sizes))
    assert register_attention(implementation) == name
    assert ALL_ATTENTION_FUNCTIONS[name] is function


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_the_twin_of_every_implementation_selects_the_same(implementation):
    config = SOLConfig(token_keep=[0.2, 1.0], mlp_keep=[1.0], bits=[16], policy_hidden_size=32)
    ids, logits = torch.arange(2, 80)[None], []
    for name in ("sdpa", implementation):
        base = tiny_base("llama")
        base.set_attn_implementation(name)
        model = SOLForCausalLM.from_base(base, config)
        output = model.score(ids, context_length=60, token_keep=0.3, return_logits=True)
        logits.append(output.logits)
        assert base.config._attn_implementation == name
    torch.testing.assert_close(*logits, atol=1e-4, rtol=0)


def test_plans_nest_and_end_with_their_block():
    cache, *_ = filled_cache(3, 1, [0])
    outer, inner = (StepPlan(cache=cache, rule=SelectionRule(), levels={"bits": torch.tensor([b])}) for b in (4, 8))
    with active_forward(outer) as context:
        with pytest.raises(RuntimeError, match="inside"), active_forward(inner):
            assert ACTIVE.get().plan is inner
            raise RuntimeError("inside")
        assert ACTIVE.get() is context
        assert context.plan is outer
    assert ACTIVE.get() is None


def test_other_threads_see_no_plan():
    cache, *_ = filled_cache(3, 1, [0])
    seen = []
    with active_forward(StepPlan(cache=cache, rule=SelectionRule(), levels={"bits": torch.tensor([4])})):
        thread = threading.Thread(target=lambda: seen.append(ACTIVE.get()))
        thread.start()
        thread.join()
    assert seen == [None]


def test_axes_that_all_rows_leave_dense_are_not_planned():
    cache, *_ = filled_cache(3, 1, [0, 0])
    rule = SelectionRule()
    plan = StepPlan.from_values(torch.tensor([[1.0, 0.5, 16], [1.0, 1.0, 16]]), cache, rule)
    assert set(plan.levels) == {"mlp_keep"} and not plan.is_dense
    assert plan.levels["mlp_keep"].tolist() == [0.5, 1.0]
    assert plan.cache is cache
    assert plan.rule is rule
    assert StepPlan.from_values(torch.tensor([[1.0, 1.0, 16]]), cache, rule).is_dense


@pytest.mark.parametrize("stored", [True, False])
def test_the_backends_of_a_call_are_those_of_its_plans(stored):
    model, plans = sol_model(), []
    names = {"backend": "reference", "bits_backend": "int8"}
    model.base.model.layers[0].register_forward_pre_hook(lambda *_: plans.append(ACTIVE.get().plan))
    for name, value in names.items() if stored else ():
        setattr(model.generation_config, name, value)
    model.generate(prompts(), max_new_tokens=3, do_sample=False, **HALF, **({} if stored else names))
    steps = [plan for plan in plans if plan is not None]
    assert len(steps) == 3 and all((plan.backend, plan.bits_backend) == ("reference", "int8") for plan in steps)
