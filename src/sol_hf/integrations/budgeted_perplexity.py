# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Perplexity under a budget, as a metric of the `evaluate` library."""

from collections.abc import Mapping, Sequence
from typing import Any

import datasets
import evaluate
import torch
from transformers import PreTrainedTokenizerBase

from ..budget.axes import AXES
from ..budget.budget import Budget
from ..controllers.fixed import FixedController
from ..controllers.names import DENSE, make_controller, parse_controller
from ..decoding.options import resolve_options
from ..modeling_sol import SOLForCausalLM


DESCRIPTION = "Perplexity of texts under a causal LM that decodes step by step within a compute budget."
CITATION = "Compute Where it Counts: Self Optimizing Language Models, arXiv 2605.10875"
INPUTS = """
Args:
    predictions (`list[str]`): Texts.
    model ([`SOLForCausalLM`]): Base and policy.
    tokenizer (`PreTrainedTokenizerBase`): Tokenizer of the base.
    context_length (`int`, *optional*, defaults to 0): Number of first tokens of a text that are not scored. The last
        of them is processed by the first decode step; those before it are processed densely.
    batch_size (`int`, *optional*, defaults to 16): Texts that run at the same time.
    add_start_token (`bool`, *optional*, defaults to `True`): Put the tokenizer's start token before every text, so
        that its first token can be scored too.
    max_length (`int`, *optional*): Largest number of tokens of a text, start token included; longer texts are cut.
    options: The budget options of [`SOLForCausalLM.generate`], targets as one number or one per text. `controller` may
        be a name for [`make_controller`]: with `"dense"` the base itself is measured, whatever the budget is, and with
        `"fixed"` every text has a schedule of its own, so that it does not depend on `batch_size`.

Returns:
    `dict`: `perplexities` of the texts and `mean_perplexity`; `realised`, per text the mean level of every axis over
    its controllable steps, in axis units, and `mean_realised`, the mean over the texts by axis.

Raises:
    ValueError: before any compute, for no texts, a text without a token to score, a missing start token, a
        `batch_size` below 1, unknown options, or a budget that cannot be met.
"""


class BudgetedPerplexity(evaluate.Metric):
    """Perplexity under a budget. Unlike evaluate's `perplexity`, it scores texts step by step.

    Examples:

    ```python
    from sol_hf import BudgetedPerplexity

    metric = BudgetedPerplexity()
    found = metric.compute(predictions=texts, model=model, tokenizer=tokenizer, token_keep=0.5, mlp_keep=0.7, bits=8)
    found["mean_perplexity"], found["mean_realised"]
    ```
    """

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            module_type="metric",
            description=DESCRIPTION,
            citation=CITATION,
            inputs_description=INPUTS,
            features=datasets.Features({"predictions": datasets.Value("string")}),
        )

    def _compute(
        self,
        predictions: list[str],
        model: SOLForCausalLM,
        tokenizer: PreTrainedTokenizerBase,
        context_length: int = 0,
        batch_size: int = 16,
        add_start_token: bool = True,
        max_length: int | None = None,
        **options,
    ) -> dict[str, Any]:
        if batch_size < 1:
            raise ValueError(f"`batch_size` must be at least 1, got {batch_size}.")
        rows = _tokenize(predictions, tokenizer, context_length, add_start_token, max_length)
        options, budget = _checked_options(model, options, len(rows))
        dense = context_length - (not add_start_token)
        order = sorted(range(len(rows)), key=lambda place: -len(rows[place]))
        perplexities: list[float] = [0.0] * len(rows)
        realised: list[list[float]] = [[]] * len(rows)
        for begin in range(0, len(rows), batch_size):
            batch = order[begin : begin + batch_size]
            width = len(rows[batch[0]])
            ids: Any = torch.tensor([rows[place] + [0] * (width - len(rows[place])) for place in batch])
            mask = torch.tensor([[1] * len(rows[place]) + [0] * (width - len(rows[place])) for place in batch])
            device, own = model.device, _with_budget_of(options, budget, batch)
            output: Any = model.score(ids.to(device), mask.to(device), dense, **own)
            losses = -output.logprobs.double().sum(dim=1) / output.step_mask.sum(dim=1)
            for place, loss, means in zip(batch, losses.exp().tolist(), output.realised.tolist(), strict=True):
                perplexities[place], realised[place] = loss, means
        means = torch.tensor(realised, dtype=torch.double).mean(dim=0).tolist()
        return {
            "perplexities": perplexities,
            "mean_perplexity": sum(perplexities) / len(perplexities),
            "realised": realised,
            "mean_realised": dict(zip(model.action_space.axis_names, means, strict=True)),
        }


def _checked_options(
    model: SOLForCausalLM, given: Mapping[str, Any], texts: int
) -> tuple[dict[str, Any], Budget | None]:
    """The options of every `score` call, after their checks, and the budget if it has one number per text."""
    options, controller, is_dense = dict(given), given.get("controller"), False
    if isinstance(controller, str):
        name, _ = parse_controller(controller)
        is_dense = name == DENSE
        own_schedules = FixedController(across_rows=False) if name == "fixed" else None
        options["controller"] = own_schedules or make_controller(controller, model)
    resolved = resolve_options(options, None, model.generation_config, model.config)
    if is_dense:
        if resolved.action_processors:
            raise ValueError('`action_processors` have nothing to act on with `controller="dense"`: leave them out.')
        if resolved.asks_kv_dtype:
            raise ValueError('`kv_dtype` needs a cache of ours; `controller="dense"` runs the base: leave one out.')
        return _dense_options(model), None
    budget = resolved.budget
    if budget is not None:
        budget.check(resolved.spending(model.action_space), texts)
    return options, None if budget is None or budget.rows is None else budget


def _dense_options(model: SOLForCausalLM) -> dict[str, Any]:
    """Options with which `score` runs the base itself, also if the model has a stored budget."""
    if model.action_space.has_dense:
        return {"budget": Budget()}
    if resolve_options({}, None, model.generation_config, model.config).budget is not None:
        raise ValueError(
            "The generation config of the model has a budget, and its action space no dense action, so "
            '`controller="dense"` cannot lift it: remove the budget from `model.generation_config`.'
        )
    return {}


def _with_budget_of(options: dict[str, Any], budget: Budget | None, places: Sequence[int]) -> dict[str, Any]:
    """The options of some texts, of a budget with one number per text."""
    if budget is None:
        return options
    targets = {axis: getattr(budget, axis) for axis in budget.controlled}
    own = {axis: [x[place] for place in places] if isinstance(x, tuple) else x for axis, x in targets.items()}
    return {name: x for name, x in options.items() if name not in ("compute", *AXES)} | {"budget": Budget.of(own)}


def _tokenize(
    texts: list[str],
    tokenizer: PreTrainedTokenizerBase,
    context_length: int,
    add_start_token: bool,
    max_length: int | None,
) -> list[list[int]]:
    """Token ids of every text; each must have a token to score."""
    if not texts:
        raise ValueError("There is no text: give at least one in `predictions`.")
    start = [tokenizer.bos_token_id] if add_start_token else []
    if start == [None]:
        raise ValueError("The tokenizer has no start token: pass `add_start_token=False` and a `context_length`.")
    if context_length < (not add_start_token):
        raise ValueError(f"`context_length` must be at least {int(not add_start_token)}, got {context_length}.")
    least = context_length + len(start) + 1
    if max_length is not None and max_length < least:
        raise ValueError(
            f"`max_length` must be at least {least}, the context, the start token and a token to score, got "
            f"{max_length}."
        )
    encoded = tokenizer(list(texts), add_special_tokens=False)["input_ids"]
    rows = [(start + ids)[:max_length] for ids in encoded]
    for place, row in enumerate(rows):
        if len(row) - len(start) <= context_length:
            raise ValueError(
                f"Text {place} has {len(row) - len(start)} tokens, so nothing is left to score after a context of "
                f"{context_length}: leave it out, or lower `context_length`."
            )
    return rows
