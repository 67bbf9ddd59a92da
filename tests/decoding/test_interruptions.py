# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""A forward that is interrupted at any point leaves the cache as it was, and going on gives the same text."""

import copy
import weakref

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from sol_hf import FixedController, PolicyController, RandomController, SOLForCausalLM
from sol_hf.cache.paged_layer import PagedLayer
from sol_hf.decoding.session import DecodingSession
from support.cases import HALF, left_padded, prompts, sol_model


STEPS, PROMPT = 9, 20
RUN = {"do_sample": False, "return_dict_in_generate": True, "output_logits": True}
STATE = ("hidden_state", "first_sparse", "token_before", "logits_digest")


class Interrupted(BaseException):
    """Like KeyboardInterrupt, no `Exception`."""


class Alarm:
    """Raises at the n-th call of any module of a model, before or after the call."""

    def __init__(self, model: SOLForCausalLM, at: int | None = None):
        self.calls, self.at = 0, at
        modules = [*model.base.modules(), *model.policy.modules()]
        self.handles = [x for m in modules for x in (m.register_forward_pre_hook(self), m.register_forward_hook(self))]

    def __call__(self, *_):
        self.calls += 1
        if self.calls == self.at:
            raise Interrupted

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for handle in self.handles:
            handle.remove()


def snapshot(cache) -> dict:
    """All of a cache's state that a later call can depend on."""
    episode, ledger = cache.episode, cache.ledger
    layers = [(layer.get_seq_length(), layer.keys.clone(), layer.values.clone()) for layer in cache.layers]
    policy = episode.controller_state.get("cache")
    return {
        "layers": layers,
        "steps": [(step.token, step.action, step.counted, step.previous_hidden) for step in episode.steps],
        "episode": [getattr(episode, name) for name in STATE],
        "ledger": [x.clone() for x in vars(ledger).values() if isinstance(x, torch.Tensor)],
        "trace": list(cache.trace),
        "padding": (cache.padding, cache.padding_range),
        "rows": (cache.rows, cache.processed),
        "policy": None if policy is None else [(x.keys.clone(), x.values.clone()) for x in policy.layers],
    }


def same(first, second) -> bool:
    if isinstance(first, torch.Tensor):
        return torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[name], second[name]) for name in first)
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(same, first, second))
    return first == second


def calls_of(model, batch, steps, **options) -> int:
    """How many times modules are called in a generation."""
    with Alarm(model) as alarm:
        model.generate(**batch, **RUN, max_new_tokens=steps, **options)
    return alarm.calls


def interrupt(model, batch, cache, at, steps, **options) -> None:
    with Alarm(model, at), pytest.raises(Interrupted):
        model.generate(**batch, **RUN, max_new_tokens=steps, past_key_values=cache, **options)


def draw(highest: int, number: int, seed: int) -> list[int]:
    drawn = torch.randint(1, highest + 1, (number,), generator=torch.Generator().manual_seed(seed))
    return sorted({1, highest, *drawn.tolist()})


def batch_of(padded: bool) -> dict:
    return left_padded([prompts(1, length, seed=length)[0] for length in (PROMPT, 13 if padded else PROMPT)])


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("family", ["llama", "gemma3_text", "mistral"])
def test_going_on_gives_the_same_text(family, padded):
    model, batch = sol_model(family), batch_of(padded)
    expected = model.generate(**batch, **RUN, max_new_tokens=STEPS, **HALF)
    ones = torch.ones(2, STEPS, dtype=torch.long)
    mask = torch.cat([batch["attention_mask"], ones], dim=1)
    for at in draw(calls_of(model, batch, STEPS, **HALF), 7, seed=len(family)):
        cache = model.new_cache()
        interrupt(model, batch, cache, at, STEPS, **HALF)
        assert DecodingSession.current() is None
        known = max(cache.get_seq_length() + 1, PROMPT)
        text = expected.sequences[:, :known]
        rest = model.generate(
            text,
            attention_mask=mask[:, :known],
            **RUN,
            max_new_tokens=PROMPT + STEPS - known,
            past_key_values=cache,
            **HALF,
        )
        assert torch.equal(rest.sequences, expected.sequences), at
        assert torch.equal(rest.actions, expected.actions[:, known - PROMPT :]), at
        ours, theirs = torch.stack(rest.logits), torch.stack(expected.logits[known - PROMPT :])
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0)


@pytest.mark.parametrize("backend", ["reference", "fast"])
@pytest.mark.parametrize("controller", [None, FixedController, lambda: RandomController(1)])
def test_every_forward_is_taken_back(controller, backend):
    """In the prompt, in a step, and in a step with a refresh: the state after is the state before."""
    model = sol_model(dtype=torch.float32)
    model.policy.float()
    for length in (PROMPT, PROMPT + 3, PROMPT + 6):

        def options(backend=backend):
            return {**HALF, "backend": backend, "controller": controller() if controller else None}

        text = model.generate(prompts(), **RUN, max_new_tokens=length - PROMPT + 1, **options()).sequences
        caches = []
        for _ in range(2):
            turn = model.generate(prompts(), **RUN, max_new_tokens=length - PROMPT + 1, **options())
            caches.append(turn.past_key_values)
        assert torch.equal(turn.sequences, text)
        tokens = turn.sequences
        for at in draw(calls_on(model, tokens, caches[0], options()), 6, seed=length):
            before = taken(caches[1])
            interrupt(model, {"input_ids": tokens}, caches[1], at, 1, **options())
            assert same(taken(caches[1]), before), (length, at)


def taken(cache) -> dict:
    """The state, without what begins anew with every call."""
    state = snapshot(cache)
    return {name: value for name, value in state.items() if name not in ("trace", "ledger")}


def calls_on(model, tokens, cache, options) -> int:
    with Alarm(model) as alarm:
        model.generate(tokens, **RUN, max_new_tokens=1, past_key_values=cache, **options)
    return alarm.calls


def test_a_policy_that_is_interrupted_remembers_no_step_twice():
    """The policy has its own cache, which is part of the state."""
    model = sol_model()
    turn = model.generate(prompts(), **RUN, max_new_tokens=4, **HALF)
    cache, policy = turn.past_key_values, turn.past_key_values.episode.controller_state["cache"]
    assert policy.get_seq_length() == 4

    def fail(*_):
        raise Interrupted

    handle = model.base.register_forward_pre_hook(fail)
    with pytest.raises(Interrupted):
        model.generate(turn.sequences, **RUN, max_new_tokens=1, past_key_values=cache, **HALF)
    handle.remove()
    assert cache.episode.controller_state["cache"].get_seq_length() == 4 == cache.episode.length


def test_an_interrupted_dense_turn():
    model = sol_model()
    turn = model.generate(prompts(), **RUN, max_new_tokens=4, **HALF)
    text = torch.cat([turn.sequences, prompts(2, 3, seed=5)], dim=1)
    settings = {"attention_mask": torch.ones_like(text), **RUN, "max_new_tokens": 5}
    expected = model.base.generate(text, **settings)
    for at in draw(60, 5, seed=3):
        with Alarm(model, at), pytest.raises(Interrupted):
            model.generate(text, **settings, past_key_values=turn.past_key_values)
        turn.past_key_values.crop(23 - turn.past_key_values.get_seq_length())
    output = model.generate(text, **settings, past_key_values=turn.past_key_values)
    assert torch.equal(output.sequences, expected.sequences)


def test_a_controller_that_raises_changes_nothing():
    model = sol_model()

    class Moody(PolicyController):
        def __call__(self, observation):
            scores = super().__call__(observation)
            if observation.total_step == 3:
                raise Interrupted
            return scores

    cache = model.new_cache()
    with pytest.raises(Interrupted):
        model.generate(
            prompts(), **RUN, max_new_tokens=STEPS, past_key_values=cache, controller=Moody(model.policy), **HALF
        )
    assert cache.get_seq_length() == 22 and cache.episode.length == 3
    assert cache.episode.controller_state["cache"].get_seq_length() == 3


def test_layers_that_cannot_be_rolled_back_are_not_used_again():
    model = sol_model()
    cache = model.generate(prompts(), **RUN, max_new_tokens=3, **HALF).past_key_values
    text = torch.cat([prompts(), prompts(2, 3, seed=5)], dim=1)
    for layer in cache.layers:
        layer.is_croppable = False
    with Alarm(model, 9), pytest.raises(Interrupted):
        model(text[:, 20:], past_key_values=cache)
    with pytest.raises(ValueError, match="A forward over this cache was interrupted, and PagedLayer cannot be rolled"):
        model(text[:, 20:], past_key_values=cache)
    cache.reset()
    assert model(prompts(), past_key_values=cache).logits.shape[1] == 20


class OutOfMemory(TorchDispatchMode):
    """Memory runs out at the n-th allocation of storage for keys, values or pages."""

    def __init__(self, at: int | None = None):
        super().__init__()
        self.calls, self.at = 0, at

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.overloadpacket.__name__ in ("new_empty", "new_zeros") and args[0].dim() == 4:
            self.calls += 1
            if self.calls == self.at:
                raise Interrupted
        return function(*args, **(kwargs or {}))


class Stop(TorchDispatchMode):
    """Interrupts at the n-th operation."""

    def __init__(self, at: int | None = None):
        super().__init__()
        self.calls, self.at = 0, at

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.calls += 1
        if self.calls == self.at:
            raise Interrupted
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("method", "argument"),
    [
        ("reorder_cache", torch.tensor([1, 0])),
        ("batch_select_indices", torch.tensor([1])),
        ("batch_repeat_interleave", 2),
    ],
)
def test_rows_that_are_moved(method, argument):
    """Beam search moves rows after every step: all of a cache, or nothing."""
    model = sol_model()
    cache = model.new_cache()
    model.generate(**batch_of(padded=True), **RUN, max_new_tokens=5, past_key_values=cache, **HALF)
    cache = copy.deepcopy(cache)
    twin = copy.deepcopy(cache)
    with Stop() as whole:
        getattr(twin, method)(argument)
    before = snapshot(cache)
    for at in range(1, whole.calls + 1):
        with Stop(at) as stop, pytest.raises(Interrupted):
            getattr(cache, method)(argument)
        assert stop.calls == at
        assert same(snapshot(cache), before), at


class TestStorageThatGrows:
    def test_interrupted(self, monkeypatch):
        monkeypatch.setattr(PagedLayer, "growth_slots", 2)
        model, batch = sol_model(), batch_of(padded=True)
        with OutOfMemory() as memory:
            expected = model.generate(**batch, **RUN, max_new_tokens=STEPS, **HALF)
        assert memory.calls > 8, "the storage grows after the prompt"
        ones = torch.ones(2, STEPS, dtype=torch.long)
        mask = torch.cat([batch["attention_mask"], ones], dim=1)
        for at in range(1, memory.calls + 1, 3):
            cache = model.new_cache()
            with OutOfMemory(at), pytest.raises(Interrupted):
                model.generate(**batch, **RUN, max_new_tokens=STEPS, past_key_values=cache, **HALF)
            known = max(cache.get_seq_length() + 1, PROMPT)
            more = dict(max_new_tokens=PROMPT + STEPS - known, past_key_values=cache)
            text = expected.sequences[:, :known]
            rest = model.generate(text, attention_mask=mask[:, :known], **RUN, **more, **HALF)
            assert torch.equal(rest.sequences, expected.sequences), at
            assert torch.equal(rest.actions, expected.actions[:, known - PROMPT :]), at
            assert torch.equal(torch.stack(rest.logits), torch.stack(expected.logits[known - PROMPT :])), at

    def test_the_old_storage_is_freed_layer_by_layer(self):
        """Otherwise a long text would need twice its memory whenever its storage grows."""
        model, ids, kept = sol_model(), prompts(1, PROMPT), []
        cache = model.new_cache()
        first = model.generate(ids, max_new_tokens=2, past_key_values=cache, **RUN, **HALF)
        old = [weakref.ref(layer.stores()[0]) for layer in cache.layers]
        room = cache.layers[0].stores()[0].shape[2] - cache.get_seq_length()
        longer = torch.cat([first.sequences, prompts(1, room + 9, seed=5)], dim=1)

        def look(*_):
            kept.append([ref() is not None for ref in old])

        handle = model.base.lm_head.register_forward_pre_hook(look)
        model.generate(longer, max_new_tokens=1, past_key_values=cache, **RUN, **HALF)
        handle.remove()
        assert kept[0] == [False] * len(old)
