# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The text of an answer comes in whole characters, and ends before a stop string."""

import random
import runpy

import pytest

from sol_hf.serving.row_text import RowText
from support.paths import EXAMPLES


@pytest.fixture(scope="module")
def tokenizer():
    return runpy.run_path(str(EXAMPLES / "generate.py"))["tiny_tokenizer"]()


def pieces(tokenizer, ids: list[int], stops: tuple[str, ...] = ()) -> list[str]:
    text = RowText(tokenizer, stops)
    given = text.begin()
    for token in ids:
        if not text.is_stopped:
            given += text.add(token)
    return given + text.end()


def test_characters_of_several_tokens_come_at_once(tokenizer):
    given = pieces(tokenizer, tokenizer("aé漢🙂b")["input_ids"])
    assert given == ["a", "é", "漢", "🙂", "b"]


def test_any_bytes_give_the_text_of_the_tokenizer(tokenizer):
    draw = random.Random(0)
    for _ in range(20):
        ids = [draw.randrange(256) for _ in range(draw.randint(1, 40))]
        assert "".join(pieces(tokenizer, ids)) == tokenizer.decode(ids, clean_up_tokenization_spaces=False)


@pytest.mark.parametrize(
    ("text", "stops", "expected"),
    [
        ("one two three", ("two",), "one "),
        ("one two three", ("four", "t"), "one "),
        ("aaab", ("aab",), "a"),
        ("abcabd", ("abd",), "abc"),
        ("almost sto", ("stop",), "almost sto"),
        ("x", ("x",), ""),
    ],
)
def test_a_stop_string_is_not_given_out_not_even_its_begin(tokenizer, text, stops, expected):
    given = pieces(tokenizer, tokenizer(text)["input_ids"], stops)
    assert "".join(given) == expected and all(given)
