# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Norms in one kernel: the results of transformers' norms, and only for RMS norms."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from sol_hf.execution.instrumentation import Instrumentation
from sol_hf.execution.norm import StepNorm, is_rms_norm
from sol_hf.execution.plan import RefreshPlan, active_forward
from sol_hf.kernels.cuda import triton_support
from support.bases import tiny_base
from support.cases import control, prompts


pytest.importorskip("triton")

from transformers.models.gemma.modeling_gemma import GemmaRMSNorm  # noqa: E402
from transformers.models.llama.modeling_llama import LlamaRMSNorm  # noqa: E402
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm  # noqa: E402

from sol_hf.kernels.cuda import rms_norm as triton_norm  # noqa: E402


DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
ROUNDED_TWICE = {torch.float32: 2e-6, torch.bfloat16: 2**-6, torch.float16: 2**-9}


@pytest.fixture
def kernels_run_here(monkeypatch):
    monkeypatch.setattr(triton_support, "DEVICES", ("cuda", "cpu"))


def norm_of(size: int, dtype: torch.dtype, kind: type[nn.Module] = LlamaRMSNorm) -> nn.Module:
    norm = kind(size, 1e-3).to(DEVICE, dtype).requires_grad_(False)
    norm.weight.normal_()
    return norm


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    shape=st.sampled_from([(1, 1), (3, 2), (2, 1, 4)]),
    size=st.sampled_from([1, 16, 100, 576]),
    dtype=st.sampled_from(list(ROUNDED_TWICE)),
    scale=st.sampled_from([1e-3, 1.0, 50.0]),
)
def test_it_is_the_norm_of_transformers(kernels_run_here, shape, size, dtype, scale):
    norm, x = norm_of(size, dtype), (scale * torch.randn(*shape, size)).to(DEVICE, dtype)
    before, ran = x.clone(), []
    run = triton_norm.rms_norm
    with active_forward(refresh=RefreshPlan(cache=None)), pytest.MonkeyPatch.context() as patch:
        patch.setattr(triton_norm, "rms_norm", lambda *arguments: ran.append(1) or run(*arguments))
        mine = StepNorm(norm)(x)
    assert ran and mine.dtype == dtype and torch.equal(x, before)
    torch.testing.assert_close(mine, norm(x), atol=1e-5, rtol=ROUNDED_TWICE[dtype])


def test_only_norms_of_this_kind_are_taken():
    assert is_rms_norm(LlamaRMSNorm(4)) and is_rms_norm(Qwen3RMSNorm(4))
    assert not is_rms_norm(GemmaRMSNorm(4))  # which multiplies by one more than its weight
    assert not is_rms_norm(nn.LayerNorm(4)) and not is_rms_norm(nn.RMSNorm(4)) and not is_rms_norm(nn.Linear(4, 4))


def test_outside_of_steps_and_refreshes_the_norm_is_its_own(kernels_run_here, monkeypatch):
    norm, x = norm_of(16, torch.float32), torch.randn(2, 16, device=DEVICE)
    monkeypatch.setattr("sol_hf.kernels.cuda.rms_norm.rms_norm", lambda *arguments: pytest.fail("the kernel ran"))
    for plan in (None, RefreshPlan(cache=None, backend="reference")):
        with active_forward(refresh=plan):
            assert torch.equal(StepNorm(norm)(x), norm(x))
    assert torch.equal(StepNorm(norm)(x), norm(x))
    norm.requires_grad_()
    with active_forward(refresh=RefreshPlan(cache=None)):
        assert StepNorm(norm)(x).requires_grad


def test_all_norms_of_a_base_are_exchanged_during_a_generation(kernels_run_here):
    model = control(tiny_base("llama", num_hidden_layers=1, attn_implementation="sdpa").to(DEVICE), bits=[16])
    base = model.base
    with Instrumentation.of(base):
        inside = [name for name, module in base.named_modules() if isinstance(vars(module).get("forward"), StepNorm)]
    assert len(inside) == 3 and not any("forward" in vars(module) for module in base.modules())
    ids = prompts(1, 20).to(DEVICE)
    fast, plain = (model.generate(ids, token_keep=0.5, max_new_tokens=4, backend=b) for b in ("fast", "reference"))
    assert torch.equal(fast, plain)
