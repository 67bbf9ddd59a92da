# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""KV refresh: when an episode is refreshed, which of its tokens are processed, and what is computed."""

from types import SimpleNamespace

import pytest
import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import flash_attention_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from sol_hf import ScheduleController
from sol_hf.decoding import kv_refresh
from sol_hf.decoding.refresh_rule import LEAST_GAIN
from sol_hf.execution.attention.interface import register_attention
from sol_hf.execution.axes import mlp_keep
from sol_hf.execution.executors import AxisExecutor
from sol_hf.execution.plan import RefreshPlan, active_forward
from sol_hf.selection import criterion
from sol_hf.selection.criterion import CRITERIA
from sol_hf.selection.refresh_gain import RefreshGain
from sol_hf.selection.rule import SelectionRule
from support.bases import tiny_base
from support.cases import FIRST_CONTROLLABLE, constant_schedule, control, left_padded, prompts, sol_model
from support.extra_criterion import LongKeys, registered


EPISODE = 6
PROMPT = 20


@pytest.fixture(scope="module")
def model():
    return sol_model()


def schedule(model, *actions: str) -> ScheduleController:
    """One named action per step."""
    return ScheduleController(torch.cat([constant_schedule(model, action, 1) for action in actions]))


def generate(model, actions, steps: int = EPISODE + 1, **options):
    controller = schedule(model, *actions, *["dense"] * (steps - len(actions)))
    arguments = dict(max_new_tokens=steps, do_sample=False, return_dict_in_generate=True, controller=controller)
    return model.generate(prompts(length=PROMPT), **arguments, **options)


@pytest.fixture
def replayed(monkeypatch) -> list[int]:
    """How many tokens every refresh processed."""
    lengths, original = [], kv_refresh.dense_forward

    def counting(session, inputs, *args, **flags):
        if flags:
            lengths.append(inputs.length)
        return original(session, inputs, *args, **flags)

    monkeypatch.setattr(kv_refresh, "dense_forward", counting)
    return lengths


@pytest.mark.parametrize("dense", range(EPISODE + 1))
def test_the_replay_begins_at_the_first_sparse_step(model, replayed, dense):
    actions = ["dense"] * dense + ["cheapest", "dense", "cheapest"]
    cache = generate(model, actions[:EPISODE]).past_key_values
    assert replayed == ([EPISODE - dense] if dense < EPISODE else [])
    expected = model.new_cache()
    model(cache_tokens(model, actions)[:, : PROMPT - 1 + EPISODE], past_key_values=expected)
    for ours, theirs in zip(cache.layers, expected.layers, strict=True):
        kept = ours.keys[:, :, : PROMPT - 1 + EPISODE]
        torch.testing.assert_close(kept, theirs.keys, atol=1e-9, rtol=0)


def cache_tokens(model, actions) -> torch.Tensor:
    return generate(model, actions[:EPISODE]).sequences


def test_the_replay_computes_no_logits_and_knows_the_hidden_state(model, monkeypatch):
    widths, head = [], model.get_output_embeddings()
    handle = head.register_forward_hook(lambda module, args, output: widths.append(output.shape[1]))
    output = generate(model, ["cheapest"] * EPISODE)
    handle.remove()
    assert widths.count(0) == 1 and len(widths) == 1 + EPISODE + 2  # prefill, steps, replay
    cache = model.new_cache()
    model(output.sequences[:, : PROMPT - 1 + EPISODE], past_key_values=cache)
    state = output.past_key_values.episode.steps[0].previous_hidden
    torch.testing.assert_close(state, cache.episode.hidden_state, atol=1e-9, rtol=0)


@pytest.mark.parametrize("mask", [torch.ones(1, 8, dtype=torch.bool), torch.ones(1, 8).long(), object()])
def test_masks_of_other_kinds_are_for_the_implementation_that_made_them(mask):
    """Flash attention gets the padding, `(rows, slots)`, flex attention an object that is no tensor."""
    AttentionInterface.register("shows_its_mask", lambda module, query, key, value, mask, **arguments: (mask, None))
    AttentionMaskInterface.register("shows_its_mask", flash_attention_mask)
    twin = ALL_ATTENTION_FUNCTIONS[register_attention("shows_its_mask")]
    query, key = torch.randn(1, 4, 3, 8), torch.randn(1, 2, 8, 8)
    with active_forward(refresh=RefreshPlan(SimpleNamespace(layers=[None]))):
        shown, _ = twin(SimpleNamespace(layer_idx=0), query, key, key, mask)
    assert shown is mask


def test_a_controller_that_wants_logits_gets_those_of_the_replay(model):
    digests = []

    class Curious(ScheduleController):
        needs_logits = True

        def __call__(self, observation):
            digests.append(observation.logits_digest)
            return super().__call__(observation)

    controller = Curious(constant_schedule(model, "cheapest", EPISODE + 1))
    output = model.generate(prompts(length=PROMPT), max_new_tokens=EPISODE + 1, do_sample=False, controller=controller)
    dense = model.base(output[:, : PROMPT - 1 + EPISODE]).logits[:, -1]
    torch.testing.assert_close(digests[EPISODE], dense, atol=1e-8, rtol=0)


@pytest.mark.parametrize(
    "kv_refresh, action, refreshed",
    AUTO := [
        (True, "token_keep", True),
        (True, "bits", True),
        (False, "token_keep", False),
        ("auto", "token_keep", True),
        ("auto", "mlp_keep", True),
        ("auto", "bits", False),
        ("auto", "dense", False),
    ],
)
def test_auto_replays_where_little_was_kept(model, replayed, kv_refresh, action, refreshed):
    generate(model, [action] * EPISODE, kv_refresh=kv_refresh)
    assert bool(replayed) == refreshed


def test_auto_looks_at_the_row_that_read_the_fewest_keys(model, replayed):
    actions = torch.cat([constant_schedule(model, name, EPISODE + 1) for name in ("dense", "token_keep")], dim=1)
    arguments = dict(max_new_tokens=EPISODE + 1, do_sample=False, kv_refresh="auto")
    model.generate(prompts(length=PROMPT), controller=ScheduleController(actions), **arguments)
    assert replayed == [EPISODE]


@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_auto_leaves_rows_that_kept_enough_as_they_are(family):
    model = sol_model(family)
    names, steps, tokens = ("bits", "token_keep", "dense"), 2 * EPISODE + 3, prompts(3, PROMPT)
    actions = torch.cat([constant_schedule(model, name, steps) for name in names], dim=1)

    def logits(rows: slice) -> torch.Tensor:
        cache, found, text = model.new_cache(), [], tokens[rows]
        for new in (EPISODE + 3, EPISODE):  # the second turn begins within an episode
            options = dict(controller=ScheduleController(actions[:new, rows]), kv_refresh="auto", do_sample=False)
            options |= dict(max_new_tokens=new, output_logits=True, return_dict_in_generate=True)
            output = model.generate(text, past_key_values=cache, **options)
            found.append(torch.stack(output.logits, dim=1))
            text = torch.cat([output.sequences, tokens[rows, :4]], dim=1)
        return torch.cat(found, dim=1)

    together = logits(slice(0, 3))
    for row in range(3):
        torch.testing.assert_close(together[row : row + 1], logits(slice(row, row + 1)), atol=1e-6, rtol=0)


def refreshes(replayed, model, steps, **options) -> bool:
    """Whether an episode of steps `(token_keep, mlp_keep, bits)` is refreshed under `kv_refresh="auto"`."""
    replayed.clear()
    ids = [model.action_space.index(*levels) for levels in steps]
    arguments = dict(max_new_tokens=len(ids) + 1, do_sample=False, kv_refresh="auto") | options
    controller = ScheduleController(torch.tensor([*ids, model.action_space.dense_id])[:, None])
    model.generate(prompts(1, PROMPT), controller=controller, **arguments)
    return bool(replayed)


@pytest.mark.parametrize(
    ("settings", "keep", "refreshed"),
    [
        ({}, 0.2, True),
        ({}, 0.6, False),
        ({"anchor_pages": True}, 0.2, False),
        ({"criterion": "sketch", "selection": "layer"}, 0.2, False),
        ({"criterion": "relevancy"}, 0.2, False),
        ({"criterion": "recency"}, 0.2, False),
    ],
)
def test_auto_asks_the_criterion_what_a_refresh_gains(replayed, settings, keep, refreshed):
    model = control(tiny_base("llama", torch.float32), **settings)
    assert refreshes(replayed, model, [(keep, 1.0, 16)] * EPISODE) == refreshed


def test_auto_adds_up_axes_and_averages_steps(replayed, monkeypatch):
    half = RefreshGain(((0.6, 0.7 * LEAST_GAIN), (1.0, 0.0)))
    monkeypatch.setattr(criterion, "GAIN_OF_QUEST", half)
    monkeypatch.setattr(mlp_keep, "GAIN", half)
    model = control(tiny_base("llama", torch.float32), mlp_keep=[0.6, 1.0])
    keys, channels, both, dense = (0.6, 1.0, 16), (1.0, 0.6, 16), (0.6, 0.6, 16), (1.0, 1.0, 16)
    assert not refreshes(replayed, model, [keys] * EPISODE)
    assert not refreshes(replayed, model, [channels] * EPISODE)
    assert refreshes(replayed, model, [both] * EPISODE)
    assert refreshes(replayed, model, [*[both] * (EPISODE - 1), dense])
    assert not refreshes(replayed, model, [both, keys] * (EPISODE // 3) + [dense, dense])


def test_auto_knows_an_axis_of_another_package_and_a_criterion_without_figures(replayed):
    with registered("long_keys", LongKeys()):
        model = control(tiny_base("llama", torch.float32), criterion="long_keys")
        assert refreshes(replayed, model, [(0.2, 1.0, 16)] * EPISODE)
    assert AxisExecutor.refresh_gain(SelectionRule(), "fake").points == ()


@pytest.mark.parametrize("kv_refresh", [True, "auto"])
@pytest.mark.parametrize("lengths", [(20, 20), (20, 11), (20, 40)])
def test_steps_that_read_all_keys_are_dense_and_need_no_refresh(replayed, lengths, kv_refresh):
    """Pages of 32 hold all of a short text, so that the cheapest level leaves nothing out."""
    model = control(tiny_base("llama", torch.float64), page_size=32)
    ids = left_padded([prompts(1, length, seed=length)[0] for length in lengths])
    arguments = dict(**ids, max_new_tokens=EPISODE + 1, do_sample=False, output_logits=True)
    arguments |= dict(return_dict_in_generate=True, backend="reference")
    sparse = model.generate(
        **arguments, controller=schedule(model, *["token_keep"] * (EPISODE + 1)), kv_refresh=kv_refresh
    )
    if max(lengths) > 32:
        assert replayed == [EPISODE]
        return
    dense = model.generate(**arguments, controller=schedule(model, *["dense"] * (EPISODE + 1)))
    assert replayed == [] and sparse.past_key_values.episode.first_sparse is None
    assert torch.equal(torch.stack(sparse.logits), torch.stack(dense.logits))
    assert float(sparse.realised[0, 0]) == pytest.approx(0.2)  # the level that was chosen still counts


@pytest.mark.parametrize("settings", [{"criterion": "sketch", "selection": "layer"}, {"page_size": 8}])
def test_the_first_step_that_leaves_keys_out_begins_the_refresh(replayed, settings):
    model = control(tiny_base("llama", torch.float64), token_keep=[0.4, 1.0], **settings)
    controller = ScheduleController(torch.full((EPISODE + 1, 1), model.action_space.index(0.4, 1.0, 16)))
    model.generate(prompts(1, 7), max_new_tokens=EPISODE + 1, do_sample=False, controller=controller)
    assert replayed == [EPISODE - whole_steps(model, 7)] and 0 < replayed[0] < EPISODE


def whole_steps(model, first: int) -> int:
    """Steps that read all keys, or are not under control, of those that see `first` keys and more."""
    rule = model.config.selection_rule
    criterion, seen = CRITERIA[rule.criterion], range(first, first + EPISODE)
    return sum(keys < FIRST_CONTROLLABLE or criterion.keys_read(rule, 0.4, keys) == keys for keys in seen)


def test_a_sparse_step_after_a_crop_is_seen(model):
    cache = generate(model, ["dense", "dense", "cheapest"], steps=4).past_key_values
    assert cache.episode.first_sparse == 2
    cache.crop(-2)
    assert cache.episode.first_sparse is None and not cache.episode.polluted


def test_other_values_are_refused(model):
    with pytest.raises(ValueError, match="`kv_refresh` must be one of True, False, auto, got 'always'"):
        generate(model, [], kv_refresh="always")
