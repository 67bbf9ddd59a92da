# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""docs/cli.md is what the commands say of themselves."""

import runpy

from support.paths import ROOT


def test_the_page_is_up_to_date():
    written = runpy.run_path(str(ROOT / "docs" / "write_cli_page.py"))
    text = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    assert text == written["page"](), "run python docs/write_cli_page.py"
