# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""A decode step on an accelerator never waits for a value.

Without a GPU the step runs on torch's fake CUDA tensors: they take the branches that CUDA tensors take, know shapes but
no values, and cannot answer when the host wants to look. Copies from the host to the device, which wait as well, are
refused besides. With a GPU, torch's own sync debug mode watches a real step.
"""

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from bases import tiny_base
from cases import HALF, control, prompts
from sol_hf import Budget
from sol_hf.actions import AXES
from sol_hf.decoding import ForwardInputs, decode_step
from sol_hf.instrumentation import Instrumentation
from sol_hf.options import resolve_options
from sol_hf.controllers import PolicyController
from sol_hf.kernels import triton_paged


BACKENDS = ["reference", "fast"]


class NoCopies(TorchDispatchMode):
    """Notes operations; refuses to move a tensor between host and device."""

    def __init__(self):
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        sources = [x.device.type for x in args if isinstance(x, torch.Tensor) and (x.dim() or x.device.type == "cuda")]
        answer = function(*args, **kwargs)
        name = function.overloadpacket.__name__
        self.names.add(name)
        target = answer.device.type if isinstance(answer, torch.Tensor) else None
        if name in ("_to_copy", "copy_") and set(sources) | {target} == {"cpu", "cuda"}:
            raise AssertionError(f"{name} copies between host and device")
        return answer


def prefilled(model, rows: int, backend: str, **budget):
    """A cache under a budget after a prefill and two decode steps, which fill the tables on the device."""
    options = resolve_options(dict(backend=backend, **budget), None, model.generation_config)
    cache = model.new_cache()
    cache.start(options.controls(PolicyController(model.policy), model.config), 20)
    ids = torch.ones(rows, 22, dtype=torch.long, device=model.base.device)
    model(input_ids=ids, past_key_values=cache)
    return cache


@pytest.mark.parametrize("budget", [HALF, {"token_keep": 0.4}, {"mlp_keep": 0.6}], ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_step_on_fake_cuda_tensors_does_not_wait(backend, budget):
    if backend == "fast":
        pytest.importorskip("triton")
    with FakeTensorMode(allow_non_fake_inputs=True), torch.device("cuda"), torch.no_grad():
        model = control(tiny_base("llama", attn_implementation="sdpa"))
        with Instrumentation.of(model.base):
            cache = prefilled(model, 2, backend, **budget)
            token = torch.ones(2, 1, dtype=torch.long)
            inputs = ForwardInputs(token, torch.ones(2, cache.get_seq_length() + 1, dtype=torch.long))
            with NoCopies() as watched:
                output = decode_step(model.base, token, cache, inputs, active=torch.ones(2, dtype=torch.bool))
    assert output.logits.device.type == "cuda" and cache.get_seq_length() == 23
    kernels = {"score_pages", "select_largest", "attend_pages"}
    assert kernels & watched.names == (kernels if backend == "fast" else set())


def test_fake_tensors_and_the_watch_do_refuse():
    with FakeTensorMode(allow_non_fake_inputs=True):
        x = torch.ones(3, device="cuda")
        for look in (lambda: x.sum().item(), lambda: bool(x.any())):
            with pytest.raises(DataDependentOutputException):
                look()
        with pytest.raises(AssertionError, match="copies"), NoCopies():
            torch.tensor([1.0, 2.0]).to("cuda")
        with pytest.raises(AssertionError, match="copies"), NoCopies():
            torch.tensor([1.0, 2.0], device="cuda")


@pytest.mark.gpu
@pytest.mark.parametrize("captures", [False, True])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_step_on_a_gpu_does_not_wait(backend, captures):
    model = control(tiny_base("llama", attn_implementation="sdpa").to("cuda"))
    with torch.no_grad(), Instrumentation.of(model.base):
        cache = prefilled(model, 2, backend, **HALF)
        cache.capture_up_to = 200 if captures else None
        token = torch.ones(2, 1, dtype=torch.long, device="cuda")
        decode_step(model.base, token, cache, ForwardInputs(token), None)
        torch.cuda.set_sync_debug_mode("error")
        try:
            decode_step(model.base, token, cache, ForwardInputs(token), None)
        finally:
            torch.cuda.set_sync_debug_mode("default")
