# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""A decode step on an accelerator never waits for a value.

Without a GPU the step runs on torch's meta device. Its tensors take the same branches as CUDA tensors and have shapes
but no values, so that reading a value on the host raises. Copies between host and device, which also wait, are
refused, too. With a GPU, a real step is checked by torch's own sync debug mode.
"""

from contextlib import contextmanager

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from sol_hf import Controller, FixedController
from sol_hf.controllers.policy import PolicyController
from sol_hf.decoding.forward_inputs import ForwardInputs
from sol_hf.decoding.options import resolve_options
from sol_hf.decoding.session import DecodingSession
from sol_hf.decoding.step import decode_step
from sol_hf.execution.instrumentation import Instrumentation
from sol_hf.kernels.cuda import triton_support
from support.bases import tiny_base
from support.cases import HALF, control


BACKENDS = ["reference", "fast"]


class NoTransfers(TorchFunctionMode):
    """Refuses to make a tensor from values of the host on another device, which the dispatcher does not see."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        device = torch.device((kwargs or {}).get("device") or "cpu")
        if function in (torch.tensor, torch.as_tensor) and device.type != "cpu":
            raise AssertionError(f"{function.__name__} copies between host and device")
        return function(*args, **(kwargs or {}))


class NoWaiting(TorchDispatchMode):
    """Records operations; raises if a value is read, or if a tensor is copied between host and device."""

    LOOKS = ("_local_scalar_dense", "item", "nonzero", "is_nonzero", "masked_select", "equal", "unique")

    def __init__(self):
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        self.names.add(name)
        if name.startswith(self.LOOKS):
            raise AssertionError(f"{name} looks at a value")
        answer = function(*args, **(kwargs or {}))
        devices = {x.device.type for x in (*args, answer) if isinstance(x, torch.Tensor)}
        if name in ("_to_copy", "copy_") and len(devices) > 1:
            raise AssertionError(f"{name} copies between host and device")
        return answer


@contextmanager
def watched_step():
    """Raises for everything that waits; yields the [`NoWaiting`] with the names of the operations."""
    with NoTransfers(), NoWaiting() as watch:
        yield watch


def prefilled(model, rows: int, backend: str, controller: Controller | None = None, **budget):
    """A session under a budget after a prefill and two decode steps, which fill the tables on the device."""
    options = resolve_options(dict(backend=backend, **budget), None, model.generation_config)
    controls = options.controls(controller or PolicyController(model.policy), model.config)
    session = DecodingSession(model.base, model.new_cache(), controls, decode_from=20)
    ids = torch.ones(rows, 22, dtype=torch.long, device=model.base.device)
    with session.running():
        model(input_ids=ids, past_key_values=session.cache)
    return session


@pytest.mark.parametrize("budget", [HALF, {"token_keep": 0.4}, {"mlp_keep": 0.6}], ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_step_does_not_wait(backend, budget, monkeypatch):
    if backend == "fast":
        pytest.importorskip("triton")
        monkeypatch.setattr(triton_support, "DEVICES", ("meta",))
    model = control(tiny_base("llama", attn_implementation="sdpa")).to("meta")
    with torch.no_grad(), Instrumentation.of(model.base):
        session = prefilled(model, 2, backend, **budget)
        cache = session.cache
        token = torch.ones(2, 1, dtype=torch.long, device="meta")
        mask = torch.ones(2, cache.get_seq_length() + 1, dtype=torch.long, device="meta")
        active = torch.ones(2, dtype=torch.bool, device="meta")
        with watched_step() as watched:
            output = decode_step(session, ForwardInputs(token, mask), active)
    assert output.logits.shape == (2, 1, 99) and cache.get_seq_length() == 23
    kernels = {"score_pages", "select_largest", "attend_pages"}
    assert kernels & watched.names == (kernels if backend == "fast" else set())
    # The branch of `keep_top_channels` for accelerators; an axis that the budget leaves dense costs nothing.
    assert ("sort" in watched.names) == ("mlp_keep" in budget)
    assert ("round" in watched.names) == ("bits" in budget)


@pytest.mark.parametrize("selection", ["head", "layer"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_step_that_reads_single_tokens_does_not_wait(backend, selection, monkeypatch):
    if backend == "fast":
        pytest.importorskip("triton")
        monkeypatch.setattr(triton_support, "DEVICES", ("meta",))
    base = tiny_base("llama", attn_implementation="sdpa")
    model = control(base, criterion="sketch", selection=selection).to("meta")
    with torch.no_grad(), Instrumentation.of(model.base):
        session = prefilled(model, 2, backend, token_keep=0.4)
        with watched_step() as watched:
            decode_step(session, ForwardInputs(torch.ones(2, 1, dtype=torch.long, device="meta")))
    kernels = {"encode_tokens", "score_tokens", "select_tokens", "attend_pages"}
    assert kernels & watched.names == (kernels if backend == "fast" else set())


@pytest.mark.parametrize("across_rows", [True, False])
def test_a_step_of_the_static_schedule_does_not_wait(across_rows):
    model = control(tiny_base("llama", attn_implementation="sdpa")).to("meta")
    with torch.no_grad(), Instrumentation.of(model.base):
        session = prefilled(model, 2, "reference", FixedController(across_rows=across_rows), **HALF)
        with watched_step():
            decode_step(session, ForwardInputs(torch.ones(2, 1, dtype=torch.long, device="meta")))
    assert session.cache.get_seq_length() == 23


def test_the_watch_does_refuse():
    x = torch.ones(3, device="meta")
    for look in (lambda: x.sum().item(), lambda: bool(x.any()), lambda: x.nonzero(), lambda: x[x > 0]):
        with pytest.raises((AssertionError, NotImplementedError), match="looks at a value|nonzero"), watched_step():
            look()
    for copy in (lambda: torch.ones(2).to("meta"), lambda: torch.tensor([1.0], device="meta")):
        with pytest.raises(AssertionError, match="copies"), watched_step():
            copy()


@pytest.mark.gpu
@pytest.mark.parametrize("criterion, bits_backend", [("quest", "fake"), ("sketch", "fake"), ("sketch", "nested")])
@pytest.mark.parametrize("captures", [False, True])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_step_on_a_gpu_does_not_wait(backend, captures, criterion, bits_backend):
    model = control(tiny_base("llama", attn_implementation="sdpa").to("cuda"), criterion=criterion)
    options = {"cuda_graphs": 200 if captures and backend == "fast" else False, "bits_backend": bits_backend}
    with torch.no_grad(), Instrumentation.of(model.base) as instrumentation:
        instrumentation.require(model.action_space.axis_names, bits_backend)
        session = prefilled(model, 2, backend, **options, **HALF)
        token = torch.ones(2, 1, dtype=torch.long, device="cuda")
        decode_step(session, ForwardInputs(token))
        before = session.cache.get_seq_length()
        torch.cuda.set_sync_debug_mode("error")
        try:
            decode_step(session, ForwardInputs(token))
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert session.cache.get_seq_length() == before + 1
