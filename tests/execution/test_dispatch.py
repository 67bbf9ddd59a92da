# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The choice of the implementation that computes a call."""

from dataclasses import dataclass, field

import pytest
import torch

from sol_hf.execution import autotune, dispatch
from sol_hf.execution.attention.refresh.operation import REFRESH_ATTENTION
from sol_hf.execution.attention.step.operation import STEP_ATTENTION
from sol_hf.execution.dispatch import Implementation, Operation
from sol_hf.execution.linear.operation import LINEAR
from sol_hf.execution.mlp.kept_channels.operation import KEPT_CHANNELS


@dataclass
class Call:
    """Which implementations can be used, and what happened."""

    usable: str
    prepared: list[str] = field(default_factory=list)
    ran: list[str] = field(default_factory=list)

    def situation(self):
        return "here"


class Letter(Implementation[Call]):
    def __init__(self, name: str, order: int, **attributes):
        self.name, self.order = name, order
        vars(self).update(attributes)

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
    """Registered out of order: plain `r`, fallback `m`, compiled `c` and `d`, and `g`, which is not measured."""
    operation = Operation("letter", package=__package__ or "support")
    operation._package = None
    for letter in (
        Letter("c", 20),
        Letter("r", 0),
        Letter("g", 40, is_measured=False),
        Letter("m", 10, is_fallback=True),
        Letter("d", 30),
    ):
        operation.register(letter.name, letter)
    return operation


@pytest.mark.parametrize(
    ("backend", "is_timed", "usable", "taken", "measured"),
    [
        ("reference", True, "rmcdg", "r", None),
        ("reference", True, "cd", "c", None),
        ("fast", True, "rmcdg", "g", None),
        ("fast", True, "rmcd", "d", None),
        ("fast", False, "rmc", "c", None),
        ("fast", True, "rm", "r", None),
        ("auto", True, "rmcdg", "g", None),
        ("auto", True, "rmcd", "r", ("r", "c", "d")),
        ("auto", True, "rmc", "r", ("r", "c")),
        ("auto", True, "rm", "r", ("r", "m")),
        ("auto", True, "r", "r", None),
        ("auto", True, "c", "c", None),
        ("auto", False, "rmcd", "r", None),
        ("auto", False, "rg", "g", None),
    ],
)
def test_what_is_taken(operation, backend, is_timed, usable, taken, measured, monkeypatch):
    call, among = Call(usable), []
    first = dispatch.run_fastest
    monkeypatch.setattr(dispatch, "run_fastest", lambda where, ways: among.append(tuple(ways)) or first(where, ways))
    assert torch.equal(operation.run(call, backend, is_timed), torch.ones(1))
    assert call.ran == [taken]
    assert among == ([] if measured is None else [measured])


@pytest.mark.parametrize("backend", ["reference", "fast", "auto"])
@pytest.mark.parametrize("is_timed", [True, False])
def test_nothing_to_take(operation, backend, is_timed):
    assert operation.run(Call(""), backend, is_timed) is None


def test_what_is_not_asked_for_is_not_prepared(operation):
    """A kernel is compiled when it is prepared."""
    reference, fast, unmeasured = Call("rmcdg"), Call("rmcdg"), Call("rmcd")
    operation.run(reference, "reference", True)
    operation.run(fast, "fast", True)
    operation.run(unmeasured, "auto", False)
    assert (reference.prepared, fast.prepared, unmeasured.prepared) == (["r"], ["g"], ["g", "r"])


def test_the_fastest_is_found_by_the_clock(operation, by_the_clock):
    for _ in range(2 * (1 + autotune.REPEATS)):
        operation.run(Call("rc"), "auto", True)
    assert autotune.measured_choices().keys() == {"here"}
    call = Call("rcd")
    operation.run(call, "auto", True)
    assert call.prepared == call.ran == [autotune.known_fastest("here")]


def test_a_known_implementation_that_cannot_be_used_is_replaced(operation, by_the_clock):
    autotune._FASTEST["here"] = "d"
    call = Call("rc")
    operation.run(call, "auto", True)
    assert call.prepared[0] == "d" and call.ran == ["r"]


def test_all_that_can_be_used_in_their_order(operation):
    assert list(operation.usable(Call("dcr"))) == ["r", "c", "d"]


def test_an_implementation_may_be_added_and_taken_out(operation):
    assert operation.run(Call("rx"), "fast", False) is not None
    operation.register("x", Letter("x", 50))
    call = Call("rx")
    operation.run(call, "fast", False)
    operation.unregister("x")
    operation.run(call, "fast", False)
    assert call.ran == ["x", "r"]


def test_the_operations_of_a_step():
    names = {
        "step": [name for name, _ in STEP_ATTENTION.ordered],
        "refresh": [name for name, _ in REFRESH_ATTENTION.ordered],
        "linear": [name for name, _ in LINEAR.ordered],
        "mlp": [name for name, _ in KEPT_CHANNELS.ordered],
    }
    assert names == {
        "step": ["base", "gather", "masked", "numba", "triton"],
        "refresh": ["grouped", "compiled", "triton"],
        "linear": ["blas", "onednn", "compiled"],
        "mlp": ["all_weights", "input_major", "triton"],
    }
    assert dispatch.run_fastest is not autotune.run_fastest, "tests do not choose by the clock"
