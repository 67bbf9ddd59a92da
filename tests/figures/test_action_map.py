# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Action maps: their contents, and that page and figure show them."""

import dataclasses
import html
import re
import runpy

import matplotlib.font_manager
import pytest
import torch
from matplotlib.colors import to_hex

from sol_hf import (
    ActionMap,
    FixedController,
    SOLConfig,
    SOLForCausalLM,
    map_actions,
    plot_action_map,
    render_action_map,
)
from sol_hf.figures.action_map import Token, compute_of, heat_colour, heat_of
from sol_hf.figures.action_map_figure import CELL_WIDTH, FONT, lay_out
from support.page_layout import BROWSER, layout_problems
from support.paths import EXAMPLES


TEXT = "The tide comes in & goes out <twice> a day: 12.42 hours.\n\nIt costs $5 or $6."
CHEAP, MIDDLE, DENSE = (0.2, 0.4, 4.0), (0.5, 0.7, 8.0), (1.0, 1.0, 16.0)


@pytest.fixture(scope="module")
def tokenizer():
    return runpy.run_path(str(EXAMPLES / "generate.py"))["tiny_tokenizer"]()


@pytest.fixture(scope="module")
def model(tokenizer):
    base = runpy.run_path(str(EXAMPLES / "generate.py"))["tiny_base"](tokenizer)
    torch.manual_seed(0)
    settings = dict(token_keep=[0.2, 0.6, 1.0], mlp_keep=[0.4, 0.7, 1.0], bits=[4, 8, 16], policy_hidden_size=32)
    return SOLForCausalLM.from_base(base, SOLConfig(**settings))


@pytest.fixture
def action_map():
    words = ["The", " tide", " <b>&", " $5", "\n", " 日", "", " in", "."]
    actions = [CHEAP, MIDDLE, DENSE] * 3
    tokens = tuple(Token(word, action, -0.5) for word, action in zip(words, actions, strict=True))
    return ActionMap("tiny <base>", "policy", MIDDLE, (0.45, 0.65, 7.5), "Twice a <day> ", tokens)


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="needs chromium")
def test_the_page_fits_every_width(action_map, tmp_path):
    widths = [320, 400, 800, 1300, 1920]
    assert layout_problems(render_action_map(action_map), widths, tmp_path) == {width: [] for width in widths}


@pytest.mark.parametrize("columns", [40, 55, 70, 100, 140])
def test_title_means_and_scale_do_not_overlap(action_map, columns):
    long = dataclasses.replace(action_map, model="SmolLM2-135M-Instruct", controller="policy sol-smollm2-135m")
    figure = plot_action_map(long, columns=columns)
    figure.draw_without_rendering()
    page, bar = figure.bbox, figure.axes[-1].get_tightbbox()
    boxes = [text.get_window_extent() for text in figure.texts]
    assert not any(box.overlaps(bar) for box in boxes) and not boxes[0].overlaps(boxes[1])
    text = figure.axes[0].get_tightbbox()
    for box in (*boxes, bar):
        assert page.x0 <= box.x0 and box.x1 <= page.x1 and box.y1 <= page.y1 and not box.overlaps(text)


class TestMap:
    def test_tokens_have_the_actions_and_logprobs_of_score(self, model, tokenizer):
        found = map_actions(model, tokenizer, TEXT, (0.6, 0.7, 8), context_length=10)
        ids = tokenizer(TEXT, return_tensors="pt")["input_ids"]
        score = model.score(ids, context_length=10, token_keep=0.6, mlp_keep=0.7, bits=8)
        assert [list(token.action) for token in found.tokens] == model.action_space.values[score.actions[0]].tolist()
        assert [token.logprob for token in found.tokens] == score.logprobs[0].tolist()
        assert found.realised == tuple(score.realised[0].tolist()) and found.requested == (0.6, 0.7, 8)

    def test_context_and_tokens_are_the_text(self, model, tokenizer):
        found = map_actions(model, tokenizer, TEXT, (0.6, 0.7, 8), context_length=10)
        ids = tokenizer(TEXT)["input_ids"]
        assert found.context + "".join(token.text for token in found.tokens) == tokenizer.decode(ids)
        assert len(found.tokens) == len(ids) - 11

    def test_another_controller_and_its_name(self, model, tokenizer):
        found = map_actions(model, tokenizer, TEXT, (0.6, 0.7, 8), 10, FixedController(), "fixed")
        assert {token.action for token in found.tokens} == {tuple(torch.tensor([0.6, 0.7, 8.0]).tolist())}
        assert found.controller == "fixed" and found.title.endswith("fixed, spent net keep 0.60 of 0.60")
        assert found.spending == "token_keep 0.6 of 0.6, mlp_keep 0.7 of 0.7, bits 8 of 8"

    def test_bits_are_those_that_were_read(self, model, tokenizer):
        config = SOLConfig(token_keep=[1.0], mlp_keep=[1.0], bits=[3, 7, 16], policy_hidden_size=32)
        nested = SOLForCausalLM.from_base(model.base, config)
        nested.generation_config.bits_backend = "nested"
        found = map_actions(nested, tokenizer, TEXT, (1.0, 1.0, 8), 10, FixedController(), "fixed")
        assert {token.action[2] for token in found.tokens} == {8} and found.realised[2] == 8

    def test_a_short_text_is_refused(self, model, tokenizer):
        with pytest.raises(ValueError, match="The text has 3 tokens; with `context_length` 16 it needs at least 18"):
            map_actions(model, tokenizer, tokenizer.decode(tokenizer(TEXT).input_ids[:3]), (0.6, 0.7, 8))

    def test_the_scale_spans_the_tokens(self, action_map):
        assert compute_of(CHEAP) == pytest.approx(0.2833, abs=1e-4)
        assert action_map.scale == (0.25, 1.0)
        assert action_map.heats[:3] == [heat_of(compute_of(action), 0.25, 1.0) for action in (CHEAP, MIDDLE, DENSE)]
        alike = ActionMap("b", "fixed", MIDDLE, MIDDLE, "", (Token("a", MIDDLE), Token("b", MIDDLE)))
        assert alike.scale == (0.55, 0.6)
        dense = ActionMap("b", "fixed", DENSE, DENSE, "", (Token("a", DENSE),))
        assert dense.scale == (0.95, 1.0) and dense.heats == [1.0]


class TestPage:
    def test_has_every_token_with_its_colour_and_action(self, action_map):
        page = render_action_map(action_map)
        spans = re.findall(r'<span class="t" style="--heat:(\d+)" title="([^"]*)">([^<]*)</span>', page)
        assert [(int(heat), title, html.unescape(text)) for heat, title, text in spans] == [
            (round(100 * heat), token.tooltip, token.shown)
            for heat, token in zip(action_map.heats, action_map.tokens, strict=True)
        ]
        assert "token_keep 0.50, mlp_keep 0.70, bits 8: compute 0.57, log-prob -0.50" in page

    def test_names_context_spending_and_scale(self, action_map):
        page = render_action_map(action_map)
        assert '<span class="context">Twice a &lt;day&gt; </span>' in page
        assert "tiny &lt;base&gt;, policy, spent net keep 0.52 of 0.57" in page
        assert "token_keep 0.45 of 0.5, mlp_keep 0.65 of 0.7, bits 7.5 of 8" in page
        assert "compute per token 0.25" in page and "1.00 (dense)" in page

    def test_is_self_contained(self, action_map):
        page = render_action_map(action_map)
        assert page.lstrip().startswith("<!DOCTYPE html>")
        assert not re.search(r"https?:|src=|<link|@import|url\(", page)


class TestFigure:
    def test_every_token_stands_on_its_colour(self, action_map):
        axes = plot_action_map(action_map, columns=60).axes[0]
        (grounds,) = axes.collections
        found = [to_hex(colour) for colour in grounds.get_facecolors()]
        pieces = [piece for piece in lay_out(action_map, 60) if piece.ground]
        assert found == [piece.ground for piece in pieces]
        assert found == [heat_colour(heat) for heat in action_map.heats]
        for path, piece in zip(grounds.get_paths(), pieces, strict=True):
            left, top = path.vertices.min(axis=0)
            right, bottom = path.vertices.max(axis=0)
            assert (left, right) == (piece.column, pytest.approx(piece.column + len(piece.text) - 0.12))
            assert piece.line < top < bottom < piece.line + 1

    def test_texts_are_where_their_grounds_are(self, action_map):
        axes = plot_action_map(action_map, columns=60).axes[0]
        shown = {text.get_text(): text.get_position() for text in axes.texts}
        assert (shown["Twice"], shown["The"], shown[" tide"]) == ((0, 0.5), (14, 0.5), (17, 0.5))
        assert shown[" ·"] == (0, 1.5)  # a character that the font lacks, after a line break
        assert not any(text.get_parse_math() for text in axes.texts) and " $5" in shown

    def test_no_line_is_longer_than_the_columns(self, action_map):
        long = ActionMap("b", "p", MIDDLE, MIDDLE, "word " * 30, (*action_map.tokens * 9, Token("x" * 130, MIDDLE)))
        pieces = list(lay_out(long, 50))
        assert max(piece.column + len(piece.text.rstrip()) for piece in pieces) <= 50
        assert "".join(piece.text for piece in pieces if piece.ground is None) == long.context
        assert sum(len(piece.text) for piece in pieces if set(piece.text) == {"x"}) == 130
        places = [(piece.line, piece.column) for piece in pieces]
        assert places == sorted(places) and len(set(places)) == len(places)

    def test_the_scale_is_that_of_the_map(self, action_map):
        _, bar = plot_action_map(action_map).axes
        assert bar.get_xlim() == action_map.scale

    def test_the_cell_is_as_wide_as_a_character(self):
        font = matplotlib.font_manager.get_font(matplotlib.font_manager.findfont(FONT))
        font.set_size(8, 72)
        assert font.load_char(ord("m")).linearHoriAdvance / 65536 / 72 == pytest.approx(CELL_WIDTH, rel=1e-3)

    def test_nothing_to_draw_and_narrow_lines_are_refused(self, action_map):
        with pytest.raises(ValueError, match="got 0 tokens and 100 columns"):
            plot_action_map(ActionMap("b", "p", MIDDLE, MIDDLE, "words", ()))
        with pytest.raises(ValueError, match="got 9 tokens and 20 columns"):
            plot_action_map(action_map, columns=20)
