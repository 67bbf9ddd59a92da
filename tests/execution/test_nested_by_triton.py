# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""`bits_backend="nested"` by the Triton kernel, in whole steps; without a GPU in Triton's interpreter."""

import pytest
import torch

from sol_hf import ScheduleController
from sol_hf.execution.linear.planes import triton
from sol_hf.execution.linear.planes.each_width import EachWidth
from sol_hf.execution.linear.planes.operation import RowsCall
from sol_hf.execution.linear.planes.triton import MOST_TOKENS, Triton
from sol_hf.kernels.cuda import triton_support
from sol_hf.selection.nested_planes import encode
from support.bases import tiny_base
from support.cases import control, left_padded, prompts


pytest.importorskip("triton")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
LEVELS = [4, 5, 6, 7, 8, 16]
NESTED = {"bits_backend": "nested", "do_sample": False, "return_dict_in_generate": True, "output_logits": True}


@pytest.fixture(autouse=True)
def kernels_run_here(monkeypatch):
    monkeypatch.setattr(triton_support, "DEVICES", ("cuda", "cpu"))


def rows_call(x, bits, least_bits=4, dtype=None) -> RowsCall:
    layer = torch.nn.Linear(x.shape[-1], 20, device=DEVICE, dtype=dtype or x.dtype).requires_grad_(False)
    planes = encode(layer.weight)
    return RowsCall(x, torch.tensor(bits, device=DEVICE), planes, least_bits, layer.bias, layer.weight, layer)


@pytest.mark.parametrize("shape", [(1, 1, 40), (3, 40), (3, 1, 2, 40)])
def test_rows_of_any_shape_equal_the_reference(shape):
    call = rows_call(torch.randn(shape, device=DEVICE), [5.0, 16.0, 7.0][: shape[0]])
    run = Triton().prepare(call)
    assert run is not None
    torch.testing.assert_close(run(), EachWidth().prepare(call)(), atol=1e-5, rtol=1e-5)


def test_what_the_kernel_leaves_to_the_reference(monkeypatch):
    x = torch.randn(2, 1, 8, device=DEVICE)
    assert Triton().prepare(rows_call(x, [4.0, 8.0])) is not None
    assert Triton().prepare(rows_call(x.double(), [4.0, 8.0])) is None
    assert Triton().prepare(rows_call(x, [4.0, 8.0], dtype=torch.bfloat16)) is None
    assert Triton().prepare(rows_call(x[:, :0], [4.0, 8.0])) is None
    assert (
        Triton().prepare(rows_call(torch.randn(MOST_TOKENS + 1, 8, device=DEVICE), [4.0] * (MOST_TOKENS + 1))) is None
    )
    monkeypatch.setattr(triton_support, "DEVICES", ("meta",))
    assert Triton().prepare(rows_call(x, [4.0, 8.0])) is None


@pytest.mark.slow
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_step_equals_that_of_the_reference(family):
    """Conv1D, biases, and rows that read different numbers of bits, also the original weights."""
    model = control(tiny_base(family, num_hidden_layers=1).to(DEVICE), bits=LEVELS)
    ids = [model.action_space.index(1.0, 1.0, level) for level in (4, 7, 16)]
    inputs = {name: x.to(DEVICE) for name, x in left_padded([prompts(1, n)[0] for n in (9, 12, 10)]).items()}
    settings = {**NESTED, "max_new_tokens": 1, "controller": ScheduleController(torch.tensor([ids]))}
    reference, fast = (model.generate(**inputs, **settings, backend=name) for name in ("reference", "fast"))
    torch.testing.assert_close(fast.logits[0], reference.logits[0], atol=1e-5, rtol=1e-4)
    assert fast.realised[:, 2].tolist() == [4.0, 8.0, 16.0]


@pytest.mark.parametrize("backend, is_run", [("reference", False), ("auto", True), ("fast", True)])
def test_the_kernel_runs_whatever_the_backend_but_the_reference(backend, is_run, monkeypatch):
    seen = []
    monkeypatch.setattr(triton, "_multiply", lambda call: seen.append(call) or EachWidth().prepare(call)())
    model = control(tiny_base("llama", num_hidden_layers=1).to(DEVICE), bits=LEVELS, episode_length=2)
    controller = ScheduleController(torch.tensor([[model.action_space.index(1.0, 1.0, 6)]]))
    settings = {**NESTED, "max_new_tokens": 1, "backend": backend, "controller": controller}
    model.generate(prompts(1, 9).to(DEVICE), **settings)
    assert len(seen) == (8 if is_run else 0)  # seven linear layers, and the LM head
