# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Results of evaluations beside a policy, in the Hub's format."""

import pytest
import yaml
from huggingface_hub import EvalResultEntry, parse_eval_result_entries

from sol_hf.hub.eval_results import save_eval_results
from support.paths import ROOT


def test_the_hubs_own_parser_reads_what_was_written(tmp_path):
    entry = EvalResultEntry("cais/hle", "default", 20.9, date="2026-01-15", notes="token_keep 0.5")
    path = save_eval_results(tmp_path, [entry], "hle")
    assert path == tmp_path / ".eval_results" / "hle.yaml"
    assert parse_eval_result_entries(yaml.safe_load(path.read_text())) == [entry]


@pytest.mark.parametrize(
    ("entries", "name", "message"),
    [
        ([], "a", "There must be results"),
        ([EvalResultEntry("a/b", "c", 1, notes="d")], "../a", "a name of letters"),
        ([EvalResultEntry("not an id", "c", 1, notes="d")], "a", "must be that of a data set on the Hub"),
        ([EvalResultEntry("a/b", "c", 1)], "a", "say under which budget"),
    ],
)
def test_a_result_that_says_too_little_is_refused(tmp_path, entries, name, message):
    with pytest.raises(ValueError, match=message):
        save_eval_results(tmp_path, entries, name)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["sol-smollm2-135m", "sol-smollm2-135m-recommended"])
def test_a_shipped_policy_has_some(name):
    paths = list((ROOT / "model_cards" / name / ".eval_results").glob("*.yaml"))
    entries = [entry for path in paths for entry in parse_eval_result_entries(yaml.safe_load(path.read_text()))]
    assert entries and all(0 < entry.value < 1 and "token_keep" in entry.notes for entry in entries)
