# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""What must hold for a base of any family: dense is the base, a budget is right or refused before any compute."""

from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import PreTrainedModel

from ...configuration_sol import SOLConfig
from ...controllers.base import Controller, Observation
from ...controllers.fixed import FixedController
from ...errors import UnsupportedAxisError
from ...modeling_sol import SOLForCausalLM
from .references import Levels, masked_attention, reduced_mlps, stepwise
from .tiny_configs import in_float64


AXES = {"token_keep": 0.3, "mlp_keep": 0.5, "bits": 5, "neuron_keep": 0.5}
"""Budgets that are tried, by axis."""
MLP_AXES = ("mlp_keep", "bits", "neuron_keep")
SETTINGS: dict[str, Any] = dict(
    token_keep=[0.2, 0.6, 1.0],
    mlp_keep=[0.4, 0.7, 1.0],
    bits=[3, 8, 16],
    neuron_keep=[0.4, 0.7, 1.0],
    policy_hidden_size=32,
    policy_num_heads=2,
    episode_length=6,
    page_size=4,
)
CONTEXTS = (20, 11)
STEPS = 11
MOST_ROUNDING = 3e-3
"""Relative difference of logits above which a base is said to compute something else under padding."""
GREEDY: dict[str, Any] = dict(max_new_tokens=4, do_sample=False, return_dict_in_generate=True, output_logits=True)
Model = Any
"""A [`SOLForCausalLM`]; calls of its methods have their options in dicts, which mypy cannot check."""
EQUAL, NOT_COMPARED, BASE_DIFFERS = "equal", "not compared", "the base itself differs"


class AllDense(Controller):
    """Chooses the dense action in every step; the steps run over the cache of the method."""

    needs_budget = False

    def __call__(self, observation: Observation) -> torch.Tensor:
        scores = torch.zeros(observation.rows, len(observation.action_space))
        return scores.index_fill(1, torch.tensor([observation.action_space.dense_id]), 1.0)


@dataclass
class Findings:
    """What was found for a base.

    Args:
        axes (`list[str]`): Axes that can be controlled.
        faults (`list[str]`): What is wrong in silence, or raises where it must not.
        late (`list[str]`): Refusals that came in the first forwards.
        layers (`dict[str, list[int]]`): Decoder layers that each axis reaches.
        layer_count (`int`): Decoder layers.
        reasons (`dict[str, str]`): Why the other axes are refused.
        kv_refresh (`bool`): Whether a KV refresh is possible.
        rows (`str`): Whether rows under padding are equal to rows alone.
        keys (`str`): Whether steps under `token_keep` are equal to the base's own under a mask.
        mlps (`str`): Whether steps under the axes of MLPs are equal to the base's own under hooks.
    """

    axes: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    late: list[str] = field(default_factory=list)
    layers: dict[str, list[int]] = field(default_factory=dict)
    layer_count: int = 0
    reasons: dict[str, str] = field(default_factory=dict)
    kv_refresh: bool = True
    rows: str = NOT_COMPARED
    keys: str = NOT_COMPARED
    mlps: str = NOT_COMPARED

    def check(self, holds: bool, fault: str) -> bool:
        """Note a fault unless something holds."""
        if not holds:
            self.faults.append(fault)
        return holds


def examine(base: PreTrainedModel) -> Findings:
    """Run a base densely and under budgets."""
    base, tolerance = in_widest_dtype(base)
    model, found = controlled(base), Findings()
    examine_dense(model, found)
    examine_axes(model, found)
    if found.axes:
        options: dict[str, Any] = {axis: AXES[axis] for axis in found.axes}
        options |= {"controller": FixedController(across_rows=False), "kv_refresh": found.kv_refresh}
        examine_steps(model, found, options, tolerance)
        examine_generate(model, found, options, tolerance)
        if steps_are_its_own(base, tolerance):
            compare_keys(base, found, tolerance)
            compare_mlps(model, found, tolerance)
    return found


def examine_axes(model: Model, found: Findings) -> None:
    """Which axes can be controlled, with which layers they reach and why the others are refused; every axis is run."""
    coverage = model.coverage()
    found.layer_count, found.reasons = coverage.layer_count, dict(coverage.reasons)
    found.axes = [axis for axis in AXES if is_controlled(model, axis, found)]
    found.layers = {axis: list(coverage.layers[axis]) for axis in found.axes}


def controlled(base: PreTrainedModel, **settings: Any) -> Model:
    """A small fresh policy on a base, in float64 so that its choices do not depend on the batch."""
    torch.manual_seed(3)
    model = SOLForCausalLM.from_base(base, SOLConfig(**{**SETTINGS, **settings}))
    model.policy.double()
    return model


def texts() -> list[torch.Tensor]:
    """Two texts of random tokens."""
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(3, 90, (context + STEPS + 1,), generator=generator) for context in CONTEXTS]


def left_padded(rows: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    """`input_ids` and `attention_mask` of rows of any length, padded on the left."""
    width = max(map(len, rows))
    ids = torch.stack([torch.cat([row.new_zeros(width - len(row)), row]) for row in rows])
    lengths = torch.tensor([len(row) for row in rows])
    return {"input_ids": ids, "attention_mask": (torch.arange(width) >= width - lengths[:, None]).long()}


def in_widest_dtype(base: PreTrainedModel) -> tuple[PreTrainedModel, float]:
    """The base in float64 if its code can run in it, and the rounding to expect, relative to the largest logit."""
    try:
        output = in_float64(base).generate(**left_padded(texts()), **GREEDY)
    except (RuntimeError, TypeError, ValueError):
        return base.float(), 3e-2
    is_finite = all(bool(logits.isfinite().all()) for logits in output.logits)  # some masks overflow in softmax
    return (base, 1e-6) if is_finite else (base.float(), 3e-2)


def close(found: torch.Tensor, wanted: torch.Tensor, tolerance: float) -> bool:
    """Whether logits agree up to a share of the largest."""
    if found.shape != wanted.shape:
        return False
    most = tolerance * max(1.0, float(wanted.abs().max()))
    return torch.allclose(found.double(), wanted.double(), atol=most, rtol=0)


def score(model: Model, row: torch.Tensor, context: int, **options: Any) -> Any:
    """Steps of one text."""
    return model.score(row[None], context_length=context, return_logits=True, **options)


def examine_dense(model: Model, found: Findings) -> None:
    """Without a budget the model is its base, bitwise in `generate`."""
    row = texts()[0][None]
    own, output = (kind.generate(row[:, :20], **GREEDY) for kind in (model.base, model))
    found.check(torch.equal(torch.stack(own.logits), torch.stack(output.logits)), "dense `generate` is not the base's")
    with torch.no_grad():
        logits = model.base(row[:, :-1]).logits[:, 4:].float()
    expected = logits.log_softmax(dim=-1).gather(-1, row[:, 5:, None]).squeeze(-1)
    same = torch.allclose(model.score(row, context_length=4).logprobs, expected, atol=1e-4)
    found.check(same, "`score` without a budget is not the base's")


def is_controlled(model: Model, axis: str, found: Findings) -> bool:
    """Whether a budget on one axis runs; a refusal must come before any compute."""
    calls: list[int] = []
    hook = model.base.register_forward_pre_hook(lambda *_: calls.append(1))
    reached, prompt = model.coverage().layers[axis], texts()[0][None, :20].to(model.device)
    try:
        for refresh in (True, False)[not found.kv_refresh :]:
            try:
                found.kv_refresh = refresh
                options = {axis: AXES[axis], "controller": FixedController(), "kv_refresh": refresh}
                model.generate(prompt, max_new_tokens=2, do_sample=False, **options)
            except UnsupportedAxisError as error:
                found.late.extend([f"{axis}: {error}"] if calls else [])
                found.reasons.setdefault(axis, str(error))
                if "kv_refresh=False" not in str(error):
                    return False
                del found.reasons[axis]
            else:
                return found.check(bool(reached), f"coverage says that {axis} reaches nothing")
    except Exception as error:  # noqa: BLE001 - any other kind is a fault of ours
        found.faults.append(f"{axis}: {type(error).__name__}: {error}")
    finally:
        hook.remove()
    return False


def examine_steps(model: Model, found: Findings, options: dict[str, Any], tolerance: float) -> None:
    """Steps under a budget: realised levels, dense steps, backends, rows under padding."""
    rows, slow = texts(), {**options, "backend": "reference"}
    alone = [score(model, row, context, **slow) for row, context in zip(rows, CONTEXTS, strict=True)]
    for axis, column in zip(model.action_space.axis_names, alone[0].realised[0].tolist(), strict=True):
        found.check(axis not in options or column <= AXES[axis] * 1.1, f"{axis} realised {column}")
    budget = {axis: options[axis] for axis in found.axes}
    dense = score(model, rows[0], CONTEXTS[0], budget_mode="soft", controller=AllDense(), kv_refresh=False, **budget)
    own = stepwise(model.base, rows[0][None, :-1], CONTEXTS[0], {}, [])
    with torch.no_grad():
        whole = model.base(rows[0][None, :-1]).logits[:, CONTEXTS[0] :]  # a few lose count in steps of their own
    like_base = any(close(dense.logits, logits, max(tolerance, 1e-4)) for logits in (own, whole))
    found.check(like_base, "steps at the dense levels are not the base's")
    found.check(not close(alone[0].logits, own, 1e-4), "a budget changes nothing")
    found.check(bool(alone[0].logits.isfinite().all()), "logits are not finite")
    fast = score(model, rows[0], CONTEXTS[0], backend="fast", **options)
    found.check(close(fast.logits, alone[0].logits, tolerance), "the fast backend differs from the reference")
    own_difference = difference_of_rows(model.base, rows)
    found.rows = EQUAL if own_difference <= MOST_ROUNDING else BASE_DIFFERS
    if found.rows == EQUAL:
        tolerance = max(tolerance, 10 * own_difference)
        together = model.score(**left_padded(rows), context_length=CONTEXTS, return_logits=True, **slow)
        for row in range(2):
            same = close(together.logits[row], alone[row].logits[0], tolerance)
            if not found.check(same, f"row {row} differs in a left-padded batch"):
                found.rows = "differ"


def steps_are_its_own(base: PreTrainedModel, tolerance: float) -> bool:
    """Whether a base gives the same logits step by step as at once; a few count positions in another way."""
    row, context = texts()[0][None, :-1], CONTEXTS[0]
    with torch.no_grad():
        return close(stepwise(base, row, context, {}, []), base(row).logits[:, context:], max(tolerance, 1e-4))


def difference_of_rows(base: PreTrainedModel, rows: list[torch.Tensor]) -> float:
    """How much the base's own logits of a row in a left-padded batch differ from those alone, relatively."""
    few = {**GREEDY, "max_new_tokens": 3}
    together = torch.stack(base.generate(**left_padded(rows), **few).logits, dim=1)
    alone = torch.stack([torch.stack(base.generate(row[None], **few).logits, dim=1)[0] for row in rows])
    return float((together - alone).abs().max() / alone.abs().max().clamp(min=1.0))


def examine_generate(model: Model, found: Findings, options: dict[str, Any], tolerance: float) -> None:
    """`score` of a generated text repeats its steps."""
    ids = texts()[0][None, :20]
    output = model.generate(ids, **GREEDY, backend="reference", **options)
    text = torch.cat([output.sequences, output.sequences[:, -1:]], dim=1)
    again = model.score(text, context_length=19, return_logits=True, backend="reference", **options)
    found.check(torch.equal(again.actions[:, :4], output.actions), "`score` chooses other actions than `generate`")
    logits, own = torch.stack(output.logits, dim=1), model.base.generate(ids, **GREEDY).logits[0]
    with torch.no_grad():
        counts_alike = close(model.base(ids).logits[:, -1], own, tolerance)  # some give `generate` other positions
    if counts_alike:
        found.check(close(again.logits[:, :4], logits, tolerance), "`score` does not repeat `generate`")


def compare_keys(base: PreTrainedModel, found: Findings, tolerance: float) -> None:
    """Steps under `token_keep` are those of the base with the other keys hidden by a mask."""
    if "token_keep" not in found.axes:
        return
    model, row, context = controlled(base, criterion="recency"), texts()[0], CONTEXTS[0]
    budget = {"token_keep": 0.4, "controller": FixedController(), "kv_refresh": False, "backend": "reference"}
    output, levels = score(model, row, context, **budget), Levels()
    layers, sink, window = frozenset(found.layers["token_keep"]), model.config.sink_tokens, model.config.window_tokens
    with masked_attention(levels, layers, sink, window):
        wanted = stepwise(base, row[None, :-1], context, levels, levels_of(model, output))
    found.keys = EQUAL if close(output.logits, wanted, max(tolerance, 1e-5)) else "differ"
    found.check(found.keys == EQUAL, "steps under token_keep are not the base's own under a mask")


def compare_mlps(model: Model, found: Findings, tolerance: float) -> None:
    """Steps under the axes of MLPs are those of the base with hooks on its MLPs."""
    axes = [axis for axis in MLP_AXES if axis in found.axes]
    if not axes:
        return
    budget = {axis: AXES[axis] for axis in axes}
    row, context, levels = texts()[0], CONTEXTS[0], Levels()
    output = score(model, row, context, controller=FixedController(), kv_refresh=False, backend="reference", **budget)
    with reduced_mlps(model.base, levels):
        wanted = stepwise(model.base, row[None, :-1], context, levels, levels_of(model, output))
    found.mlps = EQUAL if close(output.logits, wanted, max(tolerance, 1e-5)) else "differ"
    found.check(found.mlps == EQUAL, f"steps under {', '.join(axes)} are not the base's own under hooks")


def levels_of(model: Model, output: Any) -> list[Levels]:
    """The levels of every step of one scored text."""
    space = model.action_space
    values = space.values[output.actions[0]].tolist()
    return [dict(zip(space.axis_names, step, strict=True)) for step in values]
