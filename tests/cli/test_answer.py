# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The line that says what an answer has spent fits into a terminal, without a number being cut."""

import pytest

from sol_hf.cli.answer import Meter, lines_of


SPENT = {
    "requested": {"token_keep": 0.7, "mlp_keep": 0.8, "bits": 9.0},
    "realised": {"token_keep": 0.74, "mlp_keep": 0.82, "bits": 9.5},
    "net_keep": 0.72,
    "bytes_share": 0.99,
    "agreement": 0.88,
}
WHOLE = "512 tokens at 12.5/s, net keep 0.72, token_keep 0.74, mlp_keep 0.82, bits 9.5, bytes 0.99, agreement 0.88"


def meter(**values) -> Meter:
    return Meter(**{"tokens": 512, "seconds": 511 / 12.5, "spent": SPENT, **values})


def test_all_parts_in_a_pipe():
    assert str(meter()) == WHOLE
    assert str(meter(remarks=["ended after 512 tokens"])) == f"{WHOLE}, ended after 512 tokens"


@pytest.mark.parametrize("columns", [20, 40, 60, 79, 119, 200])
def test_no_part_is_cut(columns):
    shown = meter().within(columns)
    assert len(shown) <= max(columns, len("512 tokens at 12.5/s,"))
    assert WHOLE.startswith(shown) and shown.rstrip(",").split(", ")[-1] in meter().parts
    lines = lines_of(meter().parts, columns)
    assert " ".join(lines) == WHOLE and all(len(line) <= max(columns, 21) for line in lines)


def test_a_terminal_of_eighty_columns_has_room_for_all_axes():
    assert meter().within(79).rstrip(",").endswith("bits 9.5")


def test_the_first_token_has_no_speed():
    assert str(Meter(tokens=1)) == "1 token"
