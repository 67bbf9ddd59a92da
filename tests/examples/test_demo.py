# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0
import html
import importlib
import io
import re
from pathlib import Path

import pytest
import torch
from rich.console import Console

from sol_hf.figures.action_map import token_texts
from support.page_layout import BROWSER, layout_problems
from support.paths import EXAMPLES


WIDTHS = [320, 400, 500, 800, 1000, 1300, 1600, 1920]
TEXTS = ["The", " light", "house", "\n", " <b>shone</b>", " & \x1b[31mred", "", "é", "\t日本", ".", "∎"]


@pytest.fixture
def render(monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)
    return importlib.import_module("demo_render")


@pytest.fixture
def comparison(render):
    def continuation(requested, speed, actions):
        tokens = tuple(render.Token(text, actions[i % len(actions)]) for i, text in enumerate(TEXTS))
        return render.Continuation(requested, actions[0], tokens, -0.5, speed)

    return render.Comparison(
        model="tiny <model>",
        controller="fixed",
        prompt="Tell me [bold]about[/bold] <lighthouses>\nplease",
        continuations=(
            continuation(None, 20.0, [render.DENSE]),
            continuation((0.8, 0.9, 12), 25.0, [(0.8, 0.9, 12.0)]),
            continuation((0.5, 0.7, 8), 30.0, [(0.4, 0.65, 7.0), (0.6, 0.75, 9.0)]),
            continuation((0.3, 0.6, 7), None, [(0.3, 0.6, 7.0)]),
        ),
        footnotes=("All tokens are alike.",),
    )


def shown_in_terminal(render, comparison, width: int, colours: bool = False) -> str:
    console = Console(file=io.StringIO(), width=width, color_system="truecolor" if colours else None)
    render.show(comparison, console)
    return console.file.getvalue()


def test_compute_and_colour_scale(render):
    assert render.compute_of(render.DENSE) == 1
    assert render.compute_of((0.5, 0.7, 8)) == pytest.approx(0.5667, abs=1e-4)
    heats = [render.heat_of(compute) for compute in (0.0, 0.25, 0.625, 1.0)]
    assert heats == [0, 0, 0.5, 1]
    assert len({render.terminal_style(heat / 10) for heat in range(11)}) == 11


def test_terminal_ink_is_readable_on_every_ground(render):
    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    for heat in range(11):
        ink, ground = render.terminal_style(heat / 10).split(" on ")
        assert (luminance(ground) + 0.05) / (luminance(ink) + 0.05) > 4.5


@pytest.mark.parametrize("width", [80, 120, 200])
def test_terminal_shows_everything(render, comparison, width):
    text = shown_in_terminal(render, comparison, width)
    for title in ("dense", "budget 0.82", "budget 0.57", "budget 0.45"):
        assert text.count(title) >= 2
    assert "Tell me [bold]about[/bold] <lighthouses>" in text
    assert "All tokens are alike." in text
    assert "0.40 of 0.50" in text
    assert "7.0 of 8.0" in text
    assert re.search(r"speed, counted +1.00 +1.22 +2.02 +2.24", text)
    assert re.search(r"speed, measured +1.00 +1.25 +1.50 +–", text)
    assert max(len(line) for line in text.splitlines()) <= width
    for token in comparison.continuations[0].tokens:
        for word in token.shown.split():
            assert text.count(word) >= 4


@pytest.mark.parametrize("width", [36, 44, 60, 70])
def test_narrow_terminals_cut_nothing_off(render, comparison, width):
    text = shown_in_terminal(render, comparison, width)
    assert "…" not in text and max(len(line) for line in text.splitlines()) <= width
    for item in comparison.continuations:
        assert text.count(item.title) >= 2
        for cell in item.spending():
            assert f"{cell.text(cell.spent)} of {cell.text(cell.asked)}" in text
    for number in ("1.00", "1.22", "2.02", "2.24", "25.0", "30.0"):
        assert number in text


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="needs chromium")
def test_the_page_fits_every_width(render, comparison, tmp_path):
    found = layout_problems(render.render_page(comparison), WIDTHS, tmp_path)
    assert found == {width: [] for width in WIDTHS}


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="needs chromium")
def test_what_does_not_fit_is_seen(render, comparison, tmp_path):
    """A page of which each number is on one line, as it once was."""
    style = ".numbers { display: flex !important; } .numbers span { white-space: nowrap; flex: 0 0 2rem; }"
    page = render.render_page(comparison).replace("</style>", f"{style}</style>")
    found = layout_problems(page, WIDTHS, tmp_path)
    assert any("overlaps" in problem for problem in found[1300])


def test_terminal_obeys_no_escape_of_the_model(render, comparison):
    assert "\x1b" not in shown_in_terminal(render, comparison, 120)
    assert "·[31mred" in shown_in_terminal(render, comparison, 120)


def test_terminal_colours_tokens_by_compute(render, comparison):
    text = shown_in_terminal(render, comparison, 160, colours=True)
    for continuation in comparison.continuations:
        for token in continuation.tokens:
            red, green, blue = (int(render.terminal_style(token.heat)[-6:][i : i + 2], 16) for i in (0, 2, 4))
            assert f"48;2;{red};{green};{blue}m" in text


def test_page_has_every_token_with_its_action(render, comparison):
    page = render.render_page(comparison)
    spans = re.findall(r'<span class="t" style="--heat:(\d+)" title="([^"]*)">([^<]*)</span>', page)
    tokens = [token for continuation in comparison.continuations for token in continuation.tokens]
    assert [(int(heat), title, html.unescape(text)) for heat, title, text in spans] == [
        (round(100 * token.heat), token.tooltip, token.shown) for token in tokens
    ]
    assert "token_keep 0.60, mlp_keep 0.75, bits 9: compute 0.64" in page


def test_page_is_self_contained_and_escaped(render, comparison):
    page = render.render_page(comparison)
    assert "tiny &lt;model&gt;" in page
    assert "<lighthouses>" not in page
    assert "prefers-color-scheme: dark" in page
    assert not re.search(r"https?:|src=|<link|@import|url\(", page)
    assert "All tokens are alike." in page
    assert page.count('<section class="card">') == 4


@pytest.fixture
def tiny_model(tmp_path) -> Path:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    words = ["<unk>", "<end>", "<user>", "<bot>", *(f"word{i}" for i in range(95))]
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<unk>", eos_token="<end>", pad_token="<end>", padding_side="left"
    )
    tokenizer.chat_template = "{% for m in messages %}<user> {{ m['content'] }} {% endfor %}<bot>"
    torch.manual_seed(0)
    sizes = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4)
    config = LlamaConfig(vocab_size=len(words), num_key_value_heads=2, eos_token_id=1, pad_token_id=1, **sizes)
    LlamaForCausalLM(config).save_pretrained(tmp_path / "tiny")
    tokenizer.save_pretrained(tmp_path / "tiny")
    return tmp_path / "tiny"


def run_demo(monkeypatch, tiny_model, tmp_path, *further) -> int:
    monkeypatch.syspath_prepend(EXAMPLES)
    demo = importlib.import_module("demo")
    arguments = ["--model", str(tiny_model), "--prompt", "word1 word2 word3 " * 8, "--max-new-tokens", "5"]
    return demo.main([*arguments, "--out", str(tmp_path / "page.html"), *further])


@pytest.mark.parametrize("extreme", [False, True])
def test_demo_shows_transformers_dense_and_budgets_with_spreads_and_advice(
    monkeypatch, tmp_path, tiny_model, capsys, extreme
):
    assert run_demo(monkeypatch, tiny_model, tmp_path, *["--extreme"] * extreme) == 0
    printed = capsys.readouterr().out
    titles = ["transformers", "ours, dense", "lossless", "compute 0.8", "compute 0.6"]
    assert all(printed.count(title) >= 2 for title in titles)
    assert ("compute 0.45" in printed) == ("compute 0.36" in printed) == extreme
    assert "slowest, fastest" in printed and "Every text was the same in all of its runs." in " ".join(printed.split())
    assert printed.splitlines()[-1].startswith("fastest here: ")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert page.count('class="t"') > 15 and "fastest here: " in page and "word" in page


def test_the_fixed_settings_have_the_net_keep_rates_of_their_names(monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)
    ways = importlib.import_module("demo_ways")
    for rate, levels in {**ways.FIXED, **ways.EXTREME_FIXED}.items():
        values = levels.get("token_keep", 1), levels.get("mlp_keep", 1), levels["bits"] / 16
        assert sum(values) / 3 == pytest.approx(rate, abs=0.002)


@pytest.mark.parametrize("controller", ["random", "policy"])
def test_demo_runs_a_policy_without_a_calibration_and_other_controllers(
    monkeypatch, tmp_path, tiny_model, capsys, controller
):
    from transformers import AutoModelForCausalLM

    from sol_hf import SOLForCausalLM

    SOLForCausalLM.from_base(AutoModelForCausalLM.from_pretrained(tiny_model)).save_pretrained(tmp_path / "policy")
    further = ["--policy", str(tmp_path / "policy"), "--controller", controller]
    assert run_demo(monkeypatch, tiny_model, tmp_path, *further) == 0
    printed = capsys.readouterr().out
    assert "compute 0.82" in printed and "compute 0.57" in printed


def test_a_text_that_is_not_repeated_is_no_success(monkeypatch, tmp_path, tiny_model, capsys):
    from sol_hf import SOLForCausalLM

    drawn, own = iter(range(1000)), SOLForCausalLM.generate

    def generate(self, *args, **kwargs):
        output = own(self, *args, **kwargs)
        if not isinstance(output, torch.Tensor):  # of `warmup`
            output.sequences[0, -1] = next(drawn) % 90
        return output

    monkeypatch.setattr(SOLForCausalLM, "generate", generate)
    assert run_demo(monkeypatch, tiny_model, tmp_path) == 1
    assert "TEXTS DIFFERED" in capsys.readouterr().out


def test_demo_refuses_a_policy_controller_without_a_policy(monkeypatch, capsys):
    monkeypatch.syspath_prepend(EXAMPLES)
    demo = importlib.import_module("demo")
    with pytest.raises(SystemExit):
        demo.main(["--controller", "policy", "--model", "another"])
    assert "--controller policy needs --policy" in capsys.readouterr().err


def test_demo_makes_the_folder_of_its_page_before_it_computes(monkeypatch, tmp_path, capsys):
    monkeypatch.syspath_prepend(EXAMPLES)
    demo = importlib.import_module("demo")
    demo.parse_options(["--out", str(tmp_path / "a" / "b" / "page.html")])
    assert (tmp_path / "a" / "b").is_dir()
    with pytest.raises(SystemExit):
        demo.parse_options(["--out", str(tmp_path)])
    assert "is a folder: name a file in it" in capsys.readouterr().err


def test_demo_takes_the_shipped_policy_for_its_own_model_only(monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)
    demo = importlib.import_module("demo")
    shipped, given = str(demo.SHIPPED_POLICY), ("", "--controller fixed", "--model x", "--policy y")
    for calibrated in (True, False):
        monkeypatch.setattr(demo, "is_calibrated", lambda policy, answer=calibrated: answer)
        chosen = demo.parse_options([])
        assert (chosen.policy, chosen.controller) == ((shipped, "policy") if calibrated else (None, "fixed"))
    chosen = [demo.parse_options(line.split()) for line in ("--controller policy", *given[1:])]
    assert [(o.policy, o.controller) for o in chosen] == [
        (shipped, "policy"),
        (None, "fixed"),
        (None, "fixed"),
        ("y", "policy"),
    ]


def test_token_texts_join_to_the_decoded_text():
    class Bytes:
        def decode(self, ids):
            return bytes(ids).decode("utf-8", errors="replace")

    ids = [*"aé\U0001f642".encode(), 10, 1]
    texts = token_texts(Bytes(), ids, end_ids={1})
    assert texts == ["a", "", "é", "", "", "", "\U0001f642", "\n", "∎"]
