# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""What must hold for a base of any family: dense is the base, a budget is right or refused before any compute."""

from dataclasses import dataclass, field

import torch
from transformers import DynamicCache, PreTrainedModel

from sol_hf import Controller, FixedController, SOLForCausalLM, UnsupportedAxisError
from sol_hf.execution.attention.step import gather
from support.cases import control, left_padded


AXES = {"token_keep": 0.3, "mlp_keep": 0.5, "bits": 5, "neuron_keep": 0.5}
CONTEXTS = (20, 11)
STEPS = 11
GREEDY = {"max_new_tokens": 4, "do_sample": False, "return_dict_in_generate": True, "output_logits": True}


class AllDense(Controller):
    """Chooses the dense action in every step; the steps run over the cache of the method."""

    needs_budget = False

    def __call__(self, observation):
        scores = torch.zeros(observation.rows, len(observation.action_space))
        return scores.index_fill(1, torch.tensor([observation.action_space.dense_id]), 1.0)


@dataclass
class Verdict:
    """What was found for a family.

    Args:
        axes (`tuple[str, ...]`): Axes that can be controlled.
        faults (`list[str]`): What is wrong in silence, or raises where it must not.
        kv_refresh (`bool`): Whether a KV refresh is possible.
        late (`list[str]`): Refusals that came in the first forwards.
    """

    axes: tuple[str, ...] = ()
    faults: list[str] = field(default_factory=list)
    kv_refresh: bool = True
    late: list[str] = field(default_factory=list)

    def check(self, holds: bool, fault: str) -> None:
        if not holds:
            self.faults.append(fault)


def texts() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(3, 90, (context + STEPS + 1,), generator=generator) for context in CONTEXTS]


def in_widest_dtype(base: PreTrainedModel) -> tuple[PreTrainedModel, float]:
    """The base in float64 if its code can run in it, and the rounding to expect, relative to the largest logit."""
    try:
        base.double().generate(texts()[0][None, :9], max_new_tokens=2, do_sample=False)
    except (RuntimeError, TypeError, ValueError):
        return base.float(), 3e-2
    return base, 1e-6


def close(found: torch.Tensor, wanted: torch.Tensor, tolerance: float) -> bool:
    if found.shape != wanted.shape:
        return False
    return torch.allclose(
        found.double(), wanted.double(), atol=tolerance * max(1.0, float(wanted.abs().max())), rtol=0
    )


def examine(base: PreTrainedModel) -> Verdict:
    """Run a base densely and under budgets."""
    base, tolerance = in_widest_dtype(base)
    model, verdict = control(base, neuron_keep=[0.4, 0.7, 1.0]), Verdict()
    examine_dense(model, verdict)
    verdict.axes = tuple(axis for axis in AXES if is_controlled(model, axis, verdict))
    if not verdict.axes:
        return verdict
    rows = texts()
    budget = {axis: AXES[axis] for axis in verdict.axes}
    options = {**budget, "controller": FixedController(across_rows=False), "kv_refresh": verdict.kv_refresh}
    slow = {**options, "backend": "reference"}
    alone = [score(model, row, context, **slow) for row, context in zip(rows, CONTEXTS, strict=True)]
    for axis, column in zip(AXES, alone[0].realised[0].tolist(), strict=True):
        verdict.check(column <= AXES[axis] * 1.1 or axis not in budget, f"{axis} realised {column}")
    dense = score(model, rows[0], CONTEXTS[0], budget_mode="soft", controller=AllDense(), kv_refresh=False, **budget)
    own = stepwise(base, rows[0][None, :-1], CONTEXTS[0])
    with torch.no_grad():
        whole = base(rows[0][None, :-1]).logits[:, CONTEXTS[0] :]  # a few families lose count in steps of their own
    like_base = any(close(dense.logits, logits, max(tolerance, 1e-4)) for logits in (own, whole))
    verdict.check(like_base, "steps at the dense levels are not the base's")
    verdict.check(not close(alone[0].logits, own, 1e-4), "a budget changes nothing")
    verdict.check(bool(alone[0].logits.isfinite().all()), "logits are not finite")
    fast = score(model, rows[0], CONTEXTS[0], backend="fast", **options)
    verdict.check(close(fast.logits, alone[0].logits, tolerance), "the fast backend differs from the reference")
    if rows_are_independent(base, rows, tolerance):
        together = model.score(**left_padded(rows), context_length=CONTEXTS, return_logits=True, **slow)
        for row in range(2):
            same = close(together.logits[row], alone[row].logits[0], tolerance)
            verdict.check(same, f"row {row} differs in a left-padded batch")
    examine_generate(model, verdict, options, tolerance)
    if "token_keep" in verdict.axes:
        examine_reading(model, verdict)
    return verdict


def score(model: SOLForCausalLM, row: torch.Tensor, context: int, **options):
    return model.score(row[None], context_length=context, return_logits=True, **options)


def examine_dense(model: SOLForCausalLM, verdict: Verdict) -> None:
    row = texts()[0][None]
    own, output = (kind.generate(row[:, :20], **GREEDY) for kind in (model.base, model))
    verdict.check(
        torch.equal(torch.stack(own.logits), torch.stack(output.logits)), "dense `generate` is not the base's"
    )
    with torch.no_grad():
        logits = model.base(row[:, :-1]).logits[:, 4:].float()
    expected = logits.log_softmax(dim=-1).gather(-1, row[:, 5:, None]).squeeze(-1)
    found = model.score(row, context_length=4).logprobs
    verdict.check(torch.allclose(found, expected, atol=1e-4), "`score` without a budget is not the base's")


def is_controlled(model: SOLForCausalLM, axis: str, verdict: Verdict) -> bool:
    """Whether a budget on one axis runs; a refusal must come before any compute."""
    calls: list[int] = []
    hook = model.base.register_forward_pre_hook(lambda *_: calls.append(1))
    reached = model.coverage().layers[axis]
    try:
        for refresh in (True, False)[not verdict.kv_refresh :]:
            try:
                verdict.kv_refresh = refresh
                options = {axis: AXES[axis], "controller": FixedController(), "kv_refresh": refresh}
                model.generate(texts()[0][None, :20], max_new_tokens=2, do_sample=False, **options)
            except UnsupportedAxisError as error:
                verdict.late.extend([f"{axis}: {error}"] if calls else [])
                if "kv_refresh=False" not in str(error):
                    return False
            else:
                verdict.check(bool(reached), f"coverage says that {axis} reaches nothing")
                return True
    except Exception as error:  # noqa: BLE001 - any other kind is a fault of ours
        verdict.faults.append(f"{axis}: {type(error).__name__}: {error}")
    finally:
        hook.remove()
    return False


def stepwise(base: PreTrainedModel, row: torch.Tensor, context: int) -> torch.Tensor:
    """The base's own logits after the context: a prefill, then one token at a time over its own cache."""
    cache, logits = DynamicCache(config=base.config.get_text_config(decoder=True)), []
    with torch.no_grad():
        base(row[:, :context], past_key_values=cache, use_cache=True)
        for place in range(context, row.shape[1]):
            logits.append(base(row[:, place : place + 1], past_key_values=cache, use_cache=True).logits[:, -1:])
    return torch.cat(logits, dim=1)


def rows_are_independent(base: PreTrainedModel, rows: list[torch.Tensor], tolerance: float) -> bool:
    """Whether the base itself computes the same for a row in a left-padded batch."""
    few = {**GREEDY, "max_new_tokens": 3}
    together = torch.stack(base.generate(**left_padded(rows), **few).logits, dim=1)
    alone = [torch.stack(base.generate(row[None], **few).logits, dim=1)[0] for row in rows]
    return all(close(found, wanted, tolerance) for found, wanted in zip(together, alone, strict=True))


def examine_generate(model: SOLForCausalLM, verdict: Verdict, options: dict, tolerance: float) -> None:
    """`score` of a generated text repeats its steps."""
    ids = texts()[0][None, :20]
    output = model.generate(ids, **GREEDY, backend="reference", **options)
    text = torch.cat([output.sequences, output.sequences[:, -1:]], dim=1)
    again = model.score(text, context_length=19, return_logits=True, backend="reference", **options)
    verdict.check(torch.equal(again.actions[:, :4], output.actions), "`score` chooses other actions than `generate`")
    found, own = torch.stack(output.logits, dim=1), model.base.generate(ids, **GREEDY).logits[0]
    with torch.no_grad():
        counts_alike = close(model.base(ids).logits[:, -1], own, tolerance)  # some give `generate` other positions
    if counts_alike:
        verdict.check(close(again.logits[:, :4], found, tolerance), "`score` does not repeat `generate`")


def examine_reading(model: SOLForCausalLM, verdict: Verdict) -> None:
    """As many layers as the coverage says attend to selected keys only."""
    read: list[int] = []
    original = gather.scaled_dot_product_attention

    def counting(query, key, value, **options):
        read.append(key.shape[2])
        return original(query, key, value, **options)

    gather.scaled_dot_product_attention = counting
    try:
        row = texts()[0]
        schedule = {"token_keep": 0.2, "controller": FixedController(), "kv_refresh": False, "backend": "reference"}
        steps = score(model, row, CONTEXTS[0], **schedule).actions.shape[1]
    finally:
        gather.scaled_dot_product_attention = original
    layers = len(model.coverage().layers["token_keep"])
    whole = len(read) % (steps * layers) == 0  # some layers attend twice
    verdict.check(whole, f"{len(read)} sparse reads in {steps} steps, but the coverage says {layers} layers")
    verdict.check(bool(read) and max(read) < len(row) * 0.75, f"a sparse layer has read {max(read, default=0)} keys")
