# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The choice of the implementation that computes a call."""

from dataclasses import dataclass, field

import pytest
import torch

from sol_hf.execution.attention.refresh.operation import REFRESH_ATTENTION
from sol_hf.execution.attention.step.operation import STEP_ATTENTION
from sol_hf.execution.dispatch import Implementation, Operation
from sol_hf.execution.linear.operation import LINEAR
from sol_hf.execution.mlp.kept_channels.operation import KEPT_CHANNELS


@dataclass
class Call:
    """Which implementations can be used, which of them suit, and what happened."""

    usable: str
    suited: str = "rmcdg"
    prepared: list[str] = field(default_factory=list)
    ran: list[str] = field(default_factory=list)


class Letter(Implementation[Call]):
    def __init__(self, name: str, order: int, **attributes):
        self.name, self.order = name, order
        vars(self).update(attributes)

    def suits(self, call):
        return self.name in call.suited

    def prepare(self, call):
        call.prepared.append(self.name)
        return self.run_for(call) if self.name in call.usable else None

    def run_for(self, call):
        def run():
            call.ran.append(self.name)
            return torch.ones(1)

        return run


@pytest.fixture
def operation():
    """Registered out of order: plain `r`, fallback `m`, compiled `c` and `d`, and `g` for a GPU."""
    operation = Operation("letter", package=__package__ or "support")
    operation._package = None
    for letter in (
        Letter("c", 20),
        Letter("r", 0),
        Letter("g", 40),
        Letter("m", 10, is_fallback=True),
        Letter("d", 30),
    ):
        operation.register(letter.name, letter)
    return operation


@pytest.mark.parametrize(
    ("backend", "usable", "suited", "taken"),
    [
        ("reference", "rmcdg", "rmcdg", "r"),
        ("reference", "cd", "cd", "c"),
        ("fast", "rmcdg", "r", "g"),
        ("fast", "rmcd", "r", "d"),
        ("fast", "rm", "rm", "r"),
        ("fast", "m", "m", "m"),
        ("auto", "rmcdg", "rmcdg", "g"),
        ("auto", "rmcdg", "rmcd", "d"),
        ("auto", "rmcd", "rmcg", "c"),
        ("auto", "rmcd", "rm", "m"),
        ("auto", "rmcd", "r", "r"),
        ("auto", "rg", "rmcd", "r"),
        ("auto", "c", "r", "c"),
    ],
)
def test_what_is_taken(operation, backend, usable, suited, taken):
    call = Call(usable, suited)
    assert torch.equal(operation.run(call, backend), torch.ones(1))
    assert call.ran == [taken]


@pytest.mark.parametrize("backend", ["reference", "fast", "auto"])
def test_nothing_to_take(operation, backend):
    assert operation.run(Call(""), backend) is None


def test_what_is_not_asked_for_is_not_prepared(operation):
    """A kernel is compiled when it is prepared."""
    reference, fast, automatic = Call("rmcdg"), Call("rmcdg"), Call("rmcdg", "rc")
    operation.run(reference, "reference")
    operation.run(fast, "fast")
    operation.run(automatic, "auto")
    assert (reference.prepared, fast.prepared, automatic.prepared) == (["r"], ["g"], ["c"])


def test_all_that_can_be_used_in_their_order(operation):
    assert list(operation.usable(Call("dcr"))) == ["r", "c", "d"]


def test_an_implementation_may_be_added_and_taken_out(operation):
    assert operation.run(Call("rx"), "fast") is not None
    operation.register("x", Letter("x", 50))
    call = Call("rx")
    operation.run(call, "fast")
    operation.unregister("x")
    operation.run(call, "fast")
    assert call.ran == ["x", "r"]


def test_the_operations_of_a_step():
    names = {
        "step": [name for name, _ in STEP_ATTENTION.ordered],
        "refresh": [name for name, _ in REFRESH_ATTENTION.ordered],
        "linear": [name for name, _ in LINEAR.ordered],
        "mlp": [name for name, _ in KEPT_CHANNELS.ordered],
    }
    assert names == {
        "step": ["base", "gather", "masked", "numba", "numba_tokens", "triton", "triton_tokens"],
        "refresh": ["grouped", "compiled", "triton"],
        "linear": ["blas", "onednn", "compiled"],
        "mlp": ["all_weights", "input_major", "triton"],
    }
