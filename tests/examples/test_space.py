# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The Space, used by a visitor in headless Chromium: type, move the dial, write, read, hit the limits."""

import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest

from support.paths import ROOT


sync_api = pytest.importorskip("playwright.sync_api", reason="needs the extra `browser`")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
READY, WRITTEN = 180, 120_000
"""Seconds until the page answers, milliseconds until a text is there."""
DONE = re.compile(r"24 tokens, [\d.]+ tokens/s[;,] (asked|everything|\d+%)")


def answers(address: str) -> bool:
    try:
        return urllib.request.urlopen(address, timeout=5).status == 200
    except (urllib.error.URLError, OSError):
        return False


@pytest.fixture(scope="module")
def address():
    """The page of a tiny model, on the loopback interface."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    environment = {**os.environ, "GRADIO_ANALYTICS_ENABLED": "False", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / "examples" / "space" / "app.py"), "--tiny", "--port", str(port)]
    server = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        end = time.monotonic() + READY
        while not answers(f"http://127.0.0.1:{port}/"):
            assert server.poll() is None, server.stdout.read().decode()
            assert time.monotonic() < end, "the page does not answer"
            time.sleep(0.5)
        yield f"http://127.0.0.1:{port}/"
    finally:
        server.terminate()
        server.wait(20)


@pytest.fixture(scope="module")
def browser():
    assert CHROMIUM is not None, "install Chromium: apt-get install chromium"
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def page(browser, address):
    """The page as a visitor finds it, with texts of 24 tokens."""
    opened = browser.new_page(viewport={"width": 1200, "height": 900})
    opened.goto(address)
    opened.get_by_role("button", name="Details").click()
    opened.get_by_role("spinbutton", name=re.compile("New tokens")).fill("24")
    yield opened
    opened.close()


def move_dial(page, place: str) -> None:
    page.get_by_role("spinbutton", name=re.compile("Compute")).fill(place)


def write(page, prompt: str) -> tuple[str, str]:
    """Write both texts; return them."""
    page.get_by_role("textbox", name="Prompt").fill(prompt)
    page.get_by_role("button", name="Write").click()
    sync_api.expect(page.locator("#budget-facts")).to_contain_text(DONE, timeout=WRITTEN)
    return page.locator("#dense-text").inner_text(), page.locator("#budget-text").inner_text()


def test_a_visitor_gets_both_texts_and_what_they_used(page):
    move_dial(page, "0.3")
    dense, budgeted = write(page, "The sea is")
    assert dense and budgeted
    assert "everything used" in page.locator("#dense-facts").inner_text()
    facts = page.locator("#budget-facts").inner_text()
    assert "asked: token_keep 0.2, bits 5" in facts and "used: token_keep" in facts


def test_words_are_coloured_by_what_they_used(page):
    move_dial(page, "0.3")
    write(page, "The sea is")
    dense, budgeted = (page.locator(f"#{name}-text span[title]").all() for name in ("dense", "budget"))
    assert {float(word.get_attribute("title")) for word in dense} == {1.0}
    assert min(float(word.get_attribute("title")) for word in budgeted) < 0.8
    assert len({word.get_attribute("style") for word in [*dense, *budgeted]}) > 1


def test_lossless_gives_the_dense_text(page):
    page.get_by_role("checkbox", name="Lossless").check()
    dense, lossless = write(page, "The sea is")
    assert dense == lossless
    assert "drafts" in page.locator("#budget-facts").inner_text()


def test_an_empty_prompt_is_refused(page):
    page.get_by_role("textbox", name="Prompt").fill(" ")
    page.get_by_role("button", name="Write").click()
    sync_api.expect(page.get_by_text("Write a prompt first.")).to_be_visible(timeout=WRITTEN)
