# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The command `sol-hf lm-eval`: its help, its table, and what it says of wrong input."""

import pytest

from sol_hf.cli import main as cli
from sol_hf.integrations import lm_eval_adapter
from sol_hf.integrations.lm_eval_help import model_options
from sol_hf.integrations.lm_eval_spending import format_report
from support.lm_eval_runs import CHEAP, TASK_FOLDER, evaluate


pytestmark = pytest.mark.usefixtures("without_environment")


def command(policy: str, base: str, *options: str, given: str = "token_keep=0.5,mlp_keep=0.7,bits=8") -> list[str]:
    arguments = f"pretrained={policy},base={base},controller=fixed,dtype=float64,{given}"
    tasks = ["--tasks", "tiny_choices,tiny_texts", "--include_path", TASK_FOLDER]
    return ["lm-eval", "--model", "sol", "--model_args", arguments, *tasks, "--device", "cpu", *options]


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_the_help_is_that_of_the_real_adapter(flag, capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(["lm-eval", flag])
    printed = capsys.readouterr().out
    assert stopped.value.code == 0
    assert "--model sol" in printed and "--model_args" in printed and "--use_cache" in printed
    for name in (*model_options(), "controller"):
        assert f"{name}=" in printed


def test_wrong_input_is_one_message_without_a_traceback(monkeypatch, capsys):
    def fail():
        raise ValueError("There is no budget: give one.")

    monkeypatch.setattr(lm_eval_adapter, "cli_evaluate", fail)
    with pytest.raises(SystemExit) as stopped:
        cli.main(["lm-eval", "--tasks", "x"])
    assert stopped.value.code == "sol-hf lm-eval: There is no budget: give one."


def test_the_table_has_what_was_asked_and_what_was_spent(sol):
    found = evaluate(sol(controller="fixed", **CHEAP), ["tiny_choices"])["config"]["sol"]
    head, names, line, asked, spent = format_report(found).splitlines()
    assert head == "sol: controller fixed, hard budget"
    assert [cell.strip() for cell in names.split("|")[1:5]] == ["Tasks", "token_keep", "mlp_keep", "bits"]
    assert [cell.strip() for cell in asked.split("|")[1:5]] == ["*asked*", "0.5", "0.7", "8"]
    assert [cell.strip() for cell in spent.split("|")[1:5]] == ["tiny_choices", "0.5", "0.7", "8"]
    assert len({len(row) for row in (names, line, asked, spent)}) == 1
    dense = evaluate(sol(controller="dense"), ["tiny_choices"])["config"]["sol"]
    assert format_report(dense) == "sol: controller dense: the base itself, no budget"


def test_the_table_says_if_every_episode_is_kept(sol):
    found = evaluate(sol(controller="fixed", budget_horizon="episode", **CHEAP), ["tiny_choices"], limit=1)
    settings = found["config"]["sol"]
    assert settings["budget_horizon"] == "episode" and not settings["exact"]
    assert format_report(settings).splitlines()[0] == "sol: controller fixed, hard budget over every episode"


def test_answers_under_an_exact_budget_stay_within_it(sol):
    found = evaluate(sol(exact=True, **CHEAP), ["tiny_choices", "tiny_texts"], limit=2)["config"]["sol"]["realised"]
    for spent in found.values():
        assert all(spent[axis] <= target + 1e-4 for axis, target in CHEAP.items())


def test_an_axis_that_the_budget_leaves_out_is_dense(sol):
    found = evaluate(sol(controller="fixed", token_keep=0.5), ["tiny_choices"], limit=1)["config"]["sol"]
    assert "dense" in format_report(found).splitlines()[3]


@pytest.mark.slow
def test_the_run_prints_headers_budget_and_spending_also_from_a_cache(policy, base, tmp_path, capsys):
    printed = []
    for _ in range(2):
        cli.main(command(policy, base, "--limit", "3", "--use_cache", str(tmp_path / "cache")))
        printed.append(capsys.readouterr().out)
    for text in printed:
        headers = next(line for line in text.splitlines() if "Tasks" in line)
        assert [cell.strip() for cell in headers.split("|")[1:4]] == ["Tasks", "Version", "Filter"]
        assert "sol: controller fixed, hard budget" in text
    table = [text[text.index("sol: controller") :] for text in printed]
    assert table[0] == table[1] and "|tiny_texts  |0.5       |0.7     |8   |" in table[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("token_kep=0.5", "did you mean `token_keep`?"),
        ("token_keep=0.01", "`token_keep`=0.01 is below the smallest level"),
        ("budget_mode=firm,bits=8", "`budget_mode` must be one of hard, soft"),
        ("compute=0.5", "`compute` needs a calibration table"),
        ("kv_refresh=True", "There is no budget"),
    ],
)
def test_what_is_wrong_is_said_in_a_line(policy, base, given, message):
    with pytest.raises(SystemExit) as stopped:
        cli.main(command(policy, base, "--limit", "1", given=given))
    assert message in stopped.value.code and stopped.value.code.startswith("sol-hf lm-eval: ")
