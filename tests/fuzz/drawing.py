# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The strategy that draws cases."""

from typing import Any

import hypothesis
from hypothesis import strategies as st

from fuzz.case import DENSE, Case
from fuzz.controllers import CONTROLLERS, NEEDS_BUDGET, PROCESSORS
from fuzz.mistakes import MISTAKES
from sol_hf.evaluation.families.tiny_configs import FAMILY_NAMES
from support.bases import FAMILIES


OTHERS = [name for name in FAMILY_NAMES if name not in FAMILIES]
PERCENTS = st.lists(st.integers(5, 100).map(lambda percent: percent / 100), min_size=1, max_size=3, unique=True)
BITS = st.lists(st.integers(2, 16), min_size=1, max_size=3, unique=True)


def often(value: Any, *others: Any) -> st.SearchStrategy:
    """Mostly one value, sometimes one of the others."""
    return st.sampled_from([value] * (2 * len(others)) + list(others))


def some(draw: st.DrawFn, **choices: st.SearchStrategy) -> dict[str, Any]:
    """Values of some of the names; a third of them is left at its default."""
    kept = draw(st.lists(st.sampled_from(sorted(choices)), max_size=len(choices), unique=True))
    return {name: draw(choices[name]) for name in sorted(kept)}


@st.composite
def bases(draw: st.DrawFn, family: str) -> dict[str, Any]:
    """Values of the config of a base that differ from those of `tiny_base`."""
    changes = some(draw, attn_implementation=st.just("eager"), tie_word_embeddings=st.just(True))
    if family == "gpt2":
        return changes | some(draw, n_layer=st.integers(1, 3))
    if family not in ("gemma3_text", "smollm3"):
        changes |= some(draw, num_hidden_layers=st.integers(1, 3))
    if family != "gpt_neox":
        changes |= some(draw, num_key_value_heads=st.sampled_from([1, 4]))
    if family in ("mistral", "gemma3_text"):
        changes |= some(draw, sliding_window=st.integers(4, 30))
    return changes


@st.composite
def spaces(draw: st.DrawFn) -> dict[str, list]:
    """Levels in any order, one to three an axis and mostly a dense one; sometimes of axes that are not published."""
    levels = {"token_keep": draw(PERCENTS), "mlp_keep": draw(PERCENTS), "bits": draw(BITS)}
    if draw(st.integers(0, 2)) == 0:
        levels["neuron_keep"] = draw(PERCENTS)
    if draw(st.integers(0, 5)) == 0:
        levels["mlp_noise"] = draw(PERCENTS)
    if draw(st.integers(0, 3)):
        levels = {name: values + [DENSE[name]] * (DENSE[name] not in values) for name, values in levels.items()}
    return levels


@st.composite
def targets(draw: st.DrawFn, levels: dict[str, list], rows: int) -> dict[str, Any]:
    """A budget that the levels can meet: anything, a level, an end of the range; for all rows or for each."""
    budget = {}
    for name, values in levels.items():
        least, dense = min(values), DENSE[name]
        if max(values) == dense and draw(st.integers(0, 2)) == 0:
            continue
        hundredths = st.integers(round(100 * least), round(100 * dense)).map(lambda x: x / 100)
        number = st.one_of(hundredths, st.sampled_from([*values, least, dense]))
        budget[name] = draw(st.lists(number, min_size=rows, max_size=rows) if draw(st.booleans()) else number)
    return budget


@st.composite
def settings(draw: st.DrawFn) -> dict[str, Any]:
    """Values of `SOLConfig`."""
    result = some(
        draw,
        episode_length=st.integers(1, 9),
        page_size=st.integers(1, 9),
        criterion=st.sampled_from(["quest", "relevancy", "recency", "sketch"]),
        selection=st.just("group"),
        sink_tokens=st.integers(0, 5),
        window_tokens=st.integers(0, 5),
        action_head=st.just("factored"),
        budget_prior=st.just(True),
    )
    if result.get("criterion", "quest") == "quest":
        result |= some(draw, observe_page_fill=st.just(True), anchor_pages=st.just(True))
    if result.get("criterion") == "sketch":
        result |= some(draw, index_bits=st.sampled_from([2, 3, 8]), selection=st.sampled_from(["group", "layer"]))
    return result


@st.composite
def options(draw: st.DrawFn) -> dict[str, Any]:
    """Options of the budget."""
    return some(
        draw,
        budget_mode=often("hard", "soft"),
        budget_horizon=often("generation", "episode"),
        exact=often(False, True),
        kv_refresh=often(True, False, "auto"),
        backend=st.sampled_from(["reference", "fast", "fast"]),
        bits_backend=often("fake", "int8", "nested"),
        do_sample_actions=often(False, True),
        action_temperature=st.sampled_from([0.2, 5.0]),
    )


@st.composite
def decodings(draw: st.DrawFn) -> dict[str, Any]:
    """Arguments of transformers' generate: greedy search, sampling, beam search; the prompt at once or in chunks."""
    kind = draw(often("greedy", "sample", "beams", "sampled beams"))
    result: dict[str, Any] = draw(often({}, {"prefill_chunk_size": 5}))
    if kind == "greedy":
        return result
    result |= {"num_beams": draw(st.integers(2, 3))} if "beams" in kind else {}
    if kind != "beams":
        result |= {"do_sample": True, "temperature": 1.5, **some(draw, top_k=st.integers(1, 9))}
    most = result.get("num_beams", 3)
    return result | some(draw, num_return_sequences=st.integers(2, most))


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Any case."""
    is_tested = draw(st.integers(0, 5)) > 0
    family = draw(st.sampled_from(sorted(FAMILIES) if is_tested else OTHERS))
    levels, lengths = draw(spaces()), tuple(draw(st.lists(st.integers(1, 24), min_size=1, max_size=3)))
    rows, decoding = len(lengths), draw(decodings())
    budget = draw(often(draw(targets(levels, rows)), {}, DENSE))
    turns = draw(st.lists(st.integers(1, 9), min_size=1, max_size=3 if not decoding.keys() & {"num_beams"} else 1))
    turns = turns[:1] if "num_return_sequences" in decoding else turns
    base = draw(bases(family)) if is_tested else {}
    dtypes = ["float32", "float32", "bfloat16"] + ["float64"] * 4 * ("attn_implementation" not in base)
    ends, reads_all = draw(often(None, "tokens", "limits")), max(levels["token_keep"]) == 1
    limits = draw(st.lists(st.integers(1, 9), min_size=rows, max_size=rows))
    dtype = draw(st.sampled_from(dtypes))  # eager attention has a softmax in float32
    fields = draw(settings()) | (some(draw, short_text_tokens=st.integers(0, 30)) if reads_all else {})
    if dtype == "float64":  # in which no key lies so near between two numbers that another rounding turns it
        fields |= some(draw, kv_dtype=st.just("bfloat16"))
    case = Case(
        family=family,
        base=base,
        dtype=dtype,
        levels=levels,
        settings=fields,
        budget={name: value for name, value in budget.items() if name in levels},
        given=draw(often("arguments", "object", "generation_config", "stored")),
        controller=draw(st.sampled_from(["policy"] * 6 + sorted(CONTROLLERS))),
        processor=draw(often(None, *PROCESSORS)),
        options=draw(options()),
        lengths=lengths,
        decoding=decoding,
        end_every=draw(st.integers(2, 12)) if ends == "tokens" else None,
        row_limits=tuple(limits) if ends == "limits" else None,
        embeds=draw(st.integers(0, 9)) == 0 and "prefill_chunk_size" not in decoding,
        turns=tuple(turns),
        added=tuple(draw(st.lists(st.integers(0, 6), min_size=len(turns) - 1, max_size=len(turns) - 1))),
        copies=draw(often(None, "deepcopy", "pickle")) if len(turns) > 1 else None,
        interrupt=draw(st.one_of(st.none(), st.integers(0, 100).map(lambda percent: percent / 100))),
        seed=draw(st.integers(0, 999)),
    )
    return draw(with_mistakes(case))


@st.composite
def with_mistakes(draw: st.DrawFn, case: Case) -> Case:
    """Mostly the case as it is made possible; sometimes with something that has to be refused."""
    if draw(st.integers(0, 11)) == 0:
        name = draw(st.sampled_from(sorted(MISTAKES)))
        return case.but(wrong=name) if not case.runs_base or MISTAKES[name].without_budget else case
    if draw(st.integers(0, 19)) == 0:
        return case.but(budget=draw(st.sampled_from([{"token_keep": 0.01}, {"bits": [9.0] * (case.rows + 1)}])))
    if case.is_dense and not case.is_tested:  # no cache is passed, as the base may not take it
        return case.but(turns=case.turns[:1], added=(), copies=None, interrupt=None, options={})
    if not case.budget:
        controller = "dearest" if case.controller in NEEDS_BUDGET and case.controller != "policy" else case.controller
        case = case.but(controller=controller, processor=None if controller == "policy" else case.processor)
    if case.budget and draw(st.integers(0, 9)) == 0:
        return case.but(stored={"mlp_keep": 0.9}, given="arguments")
    return case


def draw(seed: int, number: int) -> Case:
    """The case with a number, of those of a seed; it does not depend on the cases before."""
    drawn = []

    @hypothesis.seed(f"{seed}, {number}")
    @hypothesis.settings(
        max_examples=2,  # the first is the simplest
        database=None,
        deadline=None,
        phases=[hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(cases())
    def take(case: Case) -> None:
        drawn.append(case)

    take()
    return drawn[-1]
