# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Steps from one captured graph have the results of other steps, always launch the same operations, and never wait.

On a CPU nothing is captured: every step runs the function that would be captured, on the same buffers. The kernels run
in Triton's interpreter.
"""

import contextlib
import copy
import gc
import weakref
from types import SimpleNamespace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from sol_hf import ScheduleController, SOLForCausalLM
from sol_hf.decoding import captured as decoding
from sol_hf.decoding.session import DecodingSession
from sol_hf.execution.cuda_graphs import CapturedForward
from sol_hf.execution.instrumentation import Instrumentation
from sol_hf.execution.mlp.kept_channels.triton import TritonMLP
from sol_hf.execution.mlp.step_mlp import StepMLP
from sol_hf.kernels.cuda import triton_support
from sol_hf.selection.pages import page_bounds
from support.bases import tiny_base
from support.cases import control, left_padded, mixed_schedule, prompts
from support.golden import axis_schedule, stepwise_logits


pytest.importorskip("triton")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
STEPS, CAPACITY, EPISODE = 8, 40, 6
DYNAMIC = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
TWO_AXES = {"token_keep": 0.5, "mlp_keep": 0.5}
KERNELS = {"append_tokens", "score_pages", "select_largest", "attend_pages", "multiply_kept_channels"}


@pytest.fixture(autouse=True)
def kernels_run_here(monkeypatch):
    monkeypatch.setattr(triton_support, "DEVICES", ("cuda", "cpu"))


FEW_HEADS = {"num_attention_heads": 2, "num_key_value_heads": 1, "hidden_size": 16, "intermediate_size": 32}


def small_model(sizes: dict = FEW_HEADS, **settings) -> SOLForCausalLM:
    """One layer in float32, so that the interpreter has little to do; few bits would magnify rounding."""
    base = tiny_base("llama", num_hidden_layers=1, attn_implementation="sdpa", **sizes).to(DEVICE)
    return control(base, **{"bits": [16], **settings})


class Launches(TorchDispatchMode):
    """Records every operation but views, with the shapes of its tensors; raises for those that copy a value to the
    host."""

    WAITING = ("_local_scalar_dense", "item", "nonzero", "is_nonzero", "masked_select", "equal", "unique")

    def __init__(self):
        super().__init__()
        self.seen: list[tuple] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        masked = name == "index" and any(x is not None and x.dtype == torch.bool for x in args[1])
        if masked or name.startswith(self.WAITING):
            raise AssertionError(f"{name} waits for the device")
        if function.namespace == "sol_hf":  # the interpreter reads what kernels read: not the host's doing
            with torch._C._DisableTorchDispatch():
                answer = function(*args, **(kwargs or {}))
        else:
            answer = function(*args, **(kwargs or {}))
        if not function.is_view:  # a view launches nothing
            self.seen.append((name, tree_map(lambda x: tuple(x.shape) if isinstance(x, torch.Tensor) else x, args)))
        return answer


def run(model, schedule, inputs, capture: bool, steps: int = STEPS, **options):
    """Generated ids, logits and the cache."""
    cache = model.new_cache()
    output = model.generate(
        **{name: x.to(DEVICE) for name, x in inputs.items()},
        past_key_values=cache,
        controller=ScheduleController(schedule.to(DEVICE)),
        max_new_tokens=steps,
        do_sample=False,
        backend="reference" if not capture else "fast",
        cuda_graphs=CAPACITY if capture else False,
        return_dict_in_generate=True,
        output_logits=True,
        **options,
    )
    return output.sequences, torch.stack(output.logits), cache


@pytest.mark.parametrize(
    ("kv_refresh", "fields"),
    [(True, {}), (False, dict(selection="group", anchor_pages=True, neuron_keep=[0.5, 1.0]))],
)
def test_steps_are_those_of_the_reference(kv_refresh, fields):
    model = small_model(sizes={}, **fields)
    inputs = left_padded([prompts(1, 21, seed=4)[0], prompts(1, 14, seed=5)[0]])
    schedule = mixed_schedule(model, STEPS, rows=2)
    tokens, logits, _ = run(model, schedule, inputs, capture=False, kv_refresh=kv_refresh)
    my_tokens, my_logits, cache = run(model, schedule, inputs, capture=True, kv_refresh=kv_refresh)
    assert isinstance(graphs(cache).get("step"), CapturedForward)
    assert torch.equal(my_tokens, tokens)
    torch.testing.assert_close(my_logits, logits, atol=1e-4, rtol=1e-4)


def test_one_capture_serves_every_action_and_length(monkeypatch):
    """The same operations on the same shapes and buffers at every step, none of which waits."""
    model, traces, made = small_model(), [], []
    inputs = left_padded([prompts(1, 21, seed=4)[0], prompts(1, 14, seed=5)[0]])
    run(model, mixed_schedule(model, STEPS, rows=2), inputs, capture=True, steps=1)  # copies the MLP's weights
    run_step, init = CapturedForward.run, CapturedForward.__init__

    def traced(self):
        with Launches() as launches:
            answer = run_step(self)
        traces.append((self.number, launches.seen))
        return answer

    monkeypatch.setattr(CapturedForward, "run", traced)
    monkeypatch.setattr(CapturedForward, "__init__", lambda self, *args: made.append(self) or init(self, *args))
    run(model, mixed_schedule(model, 14, rows=2), inputs, capture=True, steps=14)
    assert [forward.number for forward in made] == [1, EPISODE]  # a step, a KV refresh
    if DEVICE == "cpu":
        steps, refreshes = ([seen for number, seen in traces if number == n] for n in (1, EPISODE))
        assert (len(steps), len(refreshes)) == (14, 2)
        assert KERNELS <= {name for name, _ in steps[0]}
        assert {"append_tokens", "attend_chunk"} <= {name for name, _ in refreshes[0]}
        assert all(seen == steps[0] for seen in steps) and all(seen == refreshes[0] for seen in refreshes)


def test_the_check_sees_operations_that_wait():
    x = torch.ones(3)
    for waits in (lambda: x.sum().item(), lambda: x.nonzero(), lambda: bool(x.any()), lambda: x[x > 0]):
        with pytest.raises(AssertionError, match="waits"), Launches():
            waits()


def test_a_cache_that_has_moved_is_captured_anew():
    """Rows in another order have their keys and values at other addresses."""
    model, ids = small_model(), prompts(2, 20).to(DEVICE)
    caches, outputs = [model.new_cache() for _ in range(2)], []
    for cache, options in zip(caches, ({"cuda_graphs": CAPACITY}, {"backend": "fast"}), strict=True):
        first = captured_generation(model, cache, ids, **options)
        step = graphs(cache).get("step")
        cache.reorder_cache(torch.tensor([1, 0], device=DEVICE))
        more = torch.cat([first[[1, 0]], prompts(2, 2, seed=8).to(DEVICE)], dim=1)
        outputs.append(captured_generation(model, cache, more, **options))
        assert "cuda_graphs" not in options or graphs(cache)["step"] is not step
    assert torch.equal(*outputs)
    assert graphs(caches[0]) and not graphs(copy.deepcopy(caches[0]))


def graphs(cache) -> dict[str, CapturedForward]:
    """The graphs that were captured over a cache."""
    return DecodingSession(None, cache).graphs.forwards


def captured_generation(model, cache, tokens=None, steps=3, **options):
    tokens = prompts(1, 20).to(DEVICE) if tokens is None else tokens
    return model.generate(
        tokens, past_key_values=cache, max_new_tokens=steps, do_sample=False, **{**TWO_AXES, **options}
    )


@pytest.fixture
def captured():
    """A model, a cache with a captured step, and a text that continues it."""
    model = small_model()
    cache = model.new_cache()
    output = captured_generation(model, cache, cuda_graphs=CAPACITY)
    return model, cache, torch.cat([output, prompts(1, 2).to(DEVICE)], dim=1)


@pytest.mark.parametrize("change", ["nothing", "copies dropped", "weights", "rule", "base"])
def test_a_step_that_would_compute_something_else_is_captured_anew(captured, change):
    model, cache, tokens = captured
    step = graphs(cache).get("step")
    if change == "copies dropped":
        Instrumentation.of(model.base).drop_copies()
    elif change == "weights":
        with torch.no_grad():
            model.base.model.layers[0].mlp.gate_proj.weight.mul_(2)
    elif change == "rule":
        model.config.sink_tokens += 2
    elif change == "base":
        model = small_model()
    captured_generation(model, cache, tokens, cuda_graphs=CAPACITY)
    assert (graphs(cache).get("step") is step) == (change == "nothing")


def test_a_captured_step_keeps_the_copies_that_it_reads(captured):
    model, cache, _ = captured
    mlps = [part for part in Instrumentation.of(model.base).step_parts if isinstance(part, StepMLP)]
    copies = [weakref.ref(copy) for part in mlps for copy in part.copies]
    assert {type(copy()) for copy in copies} == {TritonMLP}
    Instrumentation.of(model.base).drop_copies()
    gc.collect()
    assert all(copy() is not None for copy in copies)
    graphs(cache).clear()
    gc.collect()
    assert all(copy() is None for copy in copies)


def test_the_cache_goes_when_nobody_has_it():
    model = small_model()
    cache = model.new_cache()
    captured_generation(model, cache, cuda_graphs=CAPACITY)
    assert graphs(cache).get("step") is not None
    gc.collect()
    gc.disable()
    try:
        gone = weakref.ref(cache)
        del cache
        assert gone() is None
    finally:
        gc.enable()


def test_a_text_that_outgrows_the_capture_goes_on_without():
    model = small_model()
    caches, limits = [model.new_cache() for _ in range(3)], (False, 24, 19)
    outputs = [
        captured_generation(model, cache, steps=8, backend="fast", cuda_graphs=limit)
        for cache, limit in zip(caches, limits, strict=True)
    ]
    assert torch.equal(outputs[1], outputs[0]) and torch.equal(outputs[2], outputs[0])
    assert graphs(caches[1]).get("step").capacity == 24 and graphs(caches[2]).get("step") is None


@pytest.mark.slow
def test_graphs_grow_with_the_text(monkeypatch):
    """`cuda_graphs=True` allocates more storage when it is needed, and captures again."""
    monkeypatch.setattr(decoding, "GROWTH_TOKENS", 4)
    model = small_model()
    plain, mine = model.new_cache(), model.new_cache()
    output = captured_generation(model, plain, steps=16)
    assert torch.equal(captured_generation(model, mine, steps=16, cuda_graphs=True), output)
    assert not graphs(plain) and set(graphs(mine)) == {"step", "refresh"}
    assert graphs(mine)["step"].capacity > 36


def test_a_prompt_of_one_token_comes_before_the_graphs():
    model, prompt = small_model(), prompts(1, 1).to(DEVICE)
    cache = model.new_cache()
    output = captured_generation(model, None, prompt, steps=8)
    assert torch.equal(captured_generation(model, cache, prompt, steps=8, cuda_graphs=True), output)
    assert "step" in graphs(cache)


@pytest.mark.parametrize("kv_refresh", [True, False])
@pytest.mark.parametrize("added", [1, 2, 5])
def test_the_page_index_of_a_second_turn_is_that_of_its_keys(added, kv_refresh):
    """The turn's own tokens are appended by the host, and finish a page."""
    model = small_model()
    caches = [model.new_cache() for _ in range(2)]
    for cache, options in zip(caches, ({"cuda_graphs": True}, {"backend": "fast"}), strict=True):
        output = captured_generation(model, cache, kv_refresh=kv_refresh, **options)
        more = torch.cat([output, prompts(1, added, seed=8).to(DEVICE)], dim=1)
        cache.last = captured_generation(model, cache, more, kv_refresh=kv_refresh, **options)
    assert torch.equal(caches[0].last, caches[1].last) and "step" in graphs(caches[0])
    layers = [cache.layers[0] for cache in caches]
    first = torch.zeros(1, dtype=torch.long, device=DEVICE)
    pages = -(-layers[0].length // layers[0].page_size)
    found, right = layers[0].page_index(first, (0, 0)), layers[0].keys
    expected = page_bounds(right, layers[0].page_size, first, first, pages)
    for mine, bounds in zip(found, expected, strict=True):
        assert torch.equal(mine, bounds)


def test_another_budget_on_the_same_cache_is_captured_anew(captured):
    model, cache, tokens = captured
    step = graphs(cache)["step"]
    output = captured_generation(model, cache, tokens, mlp_keep=1.0, cuda_graphs=CAPACITY)
    assert graphs(cache)["step"] is not step and graphs(cache)["step"].dense_axes == {"mlp_keep", "bits"}
    assert step.dense_axes == {"bits"}
    plain = model.new_cache()
    captured_generation(model, plain, tokens[:, :20])
    assert torch.equal(captured_generation(model, plain, tokens, mlp_keep=1.0, backend="fast"), output)


def test_graphs_of_one_turn_are_not_those_of_the_next():
    model, cache = small_model(), small_model().new_cache()
    output = captured_generation(model, cache, cuda_graphs=True)
    graphs(cache).clear()
    captured_generation(model, cache, torch.cat([output, prompts(1, 2).to(DEVICE)], dim=1))
    assert not graphs(cache)


def test_episodes_of_one_step():
    """A refresh of one token is not a step."""
    model = small_model(episode_length=1)
    output = captured_generation(model, None, steps=5, backend="reference")
    cache = model.new_cache()
    assert torch.equal(captured_generation(model, cache, steps=5, cuda_graphs=True), output)
    assert graphs(cache)["refresh"].is_refresh and not graphs(cache)["step"].is_refresh
    reference = model.new_cache()
    captured_generation(model, reference, steps=5, backend="reference")
    torch.testing.assert_close(cache.layers[0].keys, reference.layers[0].keys, atol=1e-4, rtol=1e-4)


def test_a_forward_that_is_asked_for_more_is_not_captured():
    model, cache = small_model(), small_model().new_cache()
    asked = {"output_hidden_states": True, "return_dict_in_generate": True, "cuda_graphs": True}
    output = captured_generation(model, cache, **asked)
    assert all(states is not None for states in output.hidden_states) and not graphs(cache)


@pytest.mark.slow
def test_sequences_and_scores_by_graphs():
    model, prompt = small_model(), prompts(1, 20).to(DEVICE)
    draws = {"do_sample": True, "num_return_sequences": 3, "max_new_tokens": 4, **TWO_AXES}
    outputs = []
    for options in ({"cuda_graphs": True}, {"backend": "fast"}):
        torch.manual_seed(3)
        outputs.append(model.generate(prompt, **draws, **options))
    assert torch.equal(*outputs)
    arguments = {"context_length": 20, **TWO_AXES}
    mine, reference = (model.score(outputs[0], **arguments, cuda_graphs=graphs).logprobs for graphs in (True, False))
    torch.testing.assert_close(mine, reference, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("wrong", [-1, 2.5, "yes"])
def test_a_wrong_number_of_tokens(wrong):
    with pytest.raises(ValueError, match="`cuda_graphs` must be True, False or a number of tokens"):
        captured_generation(small_model(), None, cuda_graphs=wrong)


def test_graphs_and_the_reference_exclude_each_other():
    with pytest.raises(ValueError, match="`cuda_graphs` runs the fast paths"):
        captured_generation(small_model(), None, cuda_graphs=True, backend="reference")


def test_beams_are_refused():
    with pytest.raises(ValueError, match="cannot be used with beams"):
        captured_generation(small_model(), None, cuda_graphs=True, num_beams=2)


def test_without_a_gpu_there_are_no_graphs(monkeypatch):
    monkeypatch.setattr(triton_support, "DEVICES", ("cuda",))
    model = control(tiny_base("llama", attn_implementation="sdpa"))
    with pytest.raises(ValueError, match="`cuda_graphs` needs a GPU, but the base is on cpu"):
        model.generate(prompts(1, 20), cuda_graphs=True, **TWO_AXES)


def test_other_threads_may_use_the_gpu_during_a_capture(captured, monkeypatch):
    stream, modes = SimpleNamespace(wait_stream=lambda other: None), []

    def graph(captured_graph, capture_error_mode="global"):
        modes.append(capture_error_mode)
        return contextlib.nullcontext()

    for name, stub in (("Stream", lambda: stream), ("current_stream", lambda: stream), ("CUDAGraph", object)):
        monkeypatch.setattr(torch.cuda, name, stub)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "graph", graph)
    step = graphs(captured[1]).get("step")
    monkeypatch.setattr(step, "run", lambda: None)
    step._capture()
    assert modes == ["thread_local"]


def test_levels_do_not_go_by_the_default_dtype():
    model, before = small_model(), torch.get_default_dtype()
    cache = model.new_cache()
    try:
        torch.set_default_dtype(torch.bfloat16)
        captured_generation(model, cache, steps=1, cuda_graphs=CAPACITY)
    finally:
        torch.set_default_dtype(before)
    assert graphs(cache).get("step").buffers.levels.dtype == torch.float32


def test_what_cannot_be_captured_says_why():
    cases = [
        (small_model(criterion="recency"), 40, "such as 'quest' or 'sketch', not 'recency'"),
        (control(tiny_base("llama", rope_parameters=DYNAMIC, attn_implementation="sdpa").to(DEVICE)), 40, "'dynamic'"),
        (control(tiny_base("llama", attn_implementation="eager").to(DEVICE)), 40, "attn_implementation='sdpa'"),
        (control(tiny_base("mistral", attn_implementation="sdpa").to(DEVICE)), 40, "this cache has WindowLayer"),
    ]
    for model, capacity, message in cases:
        with pytest.raises(ValueError, match=message):
            captured_generation(model, model.new_cache(), cuda_graphs=capacity)


def test_a_capture_needs_room_and_a_prompt(captured):
    model, cache, _ = captured
    with Instrumentation.of(model.base), pytest.raises(ValueError, match="`cuda_graphs` is 22, but .* holds 22"):
        CapturedForward(model.base, cache, model.config.selection_rule, (), 22)


@pytest.mark.slow
@pytest.mark.parametrize("axis", ["token_keep", "joint"])
def test_golden_numbers_by_the_triton_kernels(golden_model, golden_vectors, axis):
    model = golden_model(criterion="quest")
    model.base.to(DEVICE), model.policy.to(DEVICE)
    vectors = {name: x.to(DEVICE) for name, x in golden_vectors.items()}
    schedule = axis_schedule(golden_vectors, model.action_space, axis).to(DEVICE)
    logits = stepwise_logits(model, vectors, schedule, backend="fast")
    name = "joint.quest.logits" if axis == "joint" else "token_keep_only.quest.logits"
    torch.testing.assert_close(logits, vectors[name], atol=1e-4, rtol=0)
