# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Lays a page out in a browser at several widths, and says what does not fit."""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path


BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --virtual-time-budget=10000 --dump-dom"
).split()
MEASURE = """
<iframe id="page" style="border: 0; height: 900px" srcdoc="PAGE"></iframe><pre id="found"></pre>
<script>
function texts(root) {  // every element that has text of its own, with the box of that text
  const boxes = [];
  const walker = root.ownerDocument.createTreeWalker(root, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const node = walker.currentNode;
    if (!node.textContent.trim() || node.parentElement.closest("style, script, title, .text")) continue;
    const range = root.ownerDocument.createRange();
    range.selectNodeContents(node);
    for (const box of range.getClientRects()) boxes.push([node.textContent.trim(), box]);
  }
  return boxes;
}
const inside = (a, b) => Math.min(a.right, b.right) - Math.max(a.left, b.left) > 1
  && Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 3;
document.getElementById("page").onload = (event) => {
  const frame = event.target, found = {};
  for (const width of WIDTHS) {
    frame.style.width = width + "px";
    const page = frame.contentDocument, problems = [];
    const root = page.documentElement;
    if (root.scrollWidth > width) problems.push("scrolls sideways to " + root.scrollWidth);
    const boxes = texts(page.body);
    boxes.forEach(([text, box], index) => {
      for (const [other, against] of boxes.slice(index + 1))
        if (inside(box, against)) problems.push("'" + text + "' overlaps '" + other + "'");
    });
    for (const card of page.querySelectorAll(".card"))
      for (const [text, box] of texts(card))
        if (box.right > card.getBoundingClientRect().right + 1) problems.push("'" + text + "' leaves its card");
    found[width] = problems;
  }
  document.getElementById("found").textContent = JSON.stringify(found);
};
</script>
"""


def layout_problems(page: str, widths: list[int], folder: Path) -> dict[int, list[str]]:
    """What overlaps, leaves its card, or makes the page scroll sideways, by width in pixels."""
    source = MEASURE.replace("PAGE", html.escape(page)).replace("WIDTHS", json.dumps(widths))
    (folder / "measure.html").write_text(source, encoding="utf-8")
    command = [BROWSER, *FLAGS, f"--user-data-dir={folder / 'browser'}", "--window-size=2000,1000"]
    outcome = subprocess.run(
        [*command, (folder / "measure.html").as_uri()], capture_output=True, text=True, timeout=120, check=True
    )
    found = re.search(r'<pre id="found">(.+?)</pre>', outcome.stdout, re.S)
    return {int(width): problems for width, problems in json.loads(html.unescape(found.group(1))).items()}
