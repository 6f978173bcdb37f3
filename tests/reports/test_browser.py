"""The page of a report in Chromium: what a reader sees and does."""

import html
import json
import re
import shutil
import subprocess

import pytest
from written import pairs

from xl_flax import report

HEBREW = "עברית"
BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--disable-dev-shm-usage", "--dump-dom",
]  # fmt: skip
SEEN = """
<!doctype html><meta charset="utf-8">
<iframe id="page" width="390" height="800" srcdoc="{}"></iframe><pre id="seen"></pre>
<script>
page.onload = () => {{
  const inner = page.contentDocument, found = {{columns: []}};
  const table = inner.querySelector("table");
  const shown = (i) => [...table.tBodies[0].rows].map((row) => row.cells[i].textContent);
  const press = (i) => {{
    const button = table.tHead.rows[0].cells[i].querySelector("button");
    button.focus();
    found.focus = inner.activeElement === button;
    button.click();
    found.columns.push(shown(i));
  }};
  for (const i of [1, 1, 2, 2, 0]) press(i);
  found.width = inner.documentElement.scrollWidth;
  found.fetched = page.contentWindow.performance.getEntriesByType("resource")
    .map((entry) => entry.name).filter((name) => !name.startsWith("data:"));
  const at = (node, i) => {{
    const range = inner.createRange();
    range.setStart(node, i);
    range.setEnd(node, i + 1);
    return range.getBoundingClientRect().left;
  }};
  const name = [...inner.querySelectorAll("td, th")].find((c) => c.textContent.startsWith("{}"));
  const letters = name.querySelector("bdi").firstChild;
  found.letters = [0, 1, 2, 3, 4].map((i) => at(letters, i));
  found.after = at(name.querySelectorAll("bdi")[1].firstChild, 0);
  found.titles = [...inner.querySelectorAll("h2")].map((h) => getComputedStyle(h).direction);
  seen.textContent = JSON.stringify(found);
}};
</script>
"""


@pytest.mark.skipif(BROWSER is None, reason="needs Chromium")
def test_a_browser_sorts_and_scrolls_only_tables_and_fetches_nothing(tmp_path):
    for setting, (low, high) in {"mlm": (0.095, 0.6), HEBREW: (0.2, 0.1)}.items():
        for step, value in ((5, low), (10, high)):
            run = f"{tmp_path}/runs/{setting}/0"
            pairs(run, {("deu", "eng"): value, ("eng", "deu"): value, "macro": value}, step=step)
            if setting == "mlm":
                pairs(run, {"macro": 100 * value}, metric="loss", step=step)
    out = f"{tmp_path}/out"
    flags = ["--steps=all", "--figures=similarity,curves", "--format=html", f"--out={out}"]
    report.main([f"{tmp_path}/runs", *flags])
    page = open(f"{out}/report.html", encoding="utf-8").read()
    (tmp_path / "outer.html").write_text(SEEN.format(html.escape(page), HEBREW), encoding="utf-8")
    command = [BROWSER, *FLAGS, f"--user-data-dir={tmp_path}/profile", f"{tmp_path}/outer.html"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    seen = re.search(r'<pre id="seen">(.+?)</pre>', done.stdout, re.S)
    assert seen, done.stderr
    found = json.loads(html.unescape(seen[1]))
    down, up, loss_down, loss_up, names = found["columns"]
    assert down == ["60.0", "20.0", "10.0", "9.5"] and up == down[::-1]
    assert loss_down == ["60.000", "9.500", "", ""] and loss_up == ["9.500", "60.000", "", ""]
    assert names == ["mlm, step 5", "mlm, step 10", f"{HEBREW}, step 5", f"{HEBREW}, step 10"]
    assert found["focus"]
    assert found["width"] <= 390
    assert found["fetched"] == []
    # Letters run to the left, and what follows the name stands on its right.
    assert found["letters"] == sorted(found["letters"], reverse=True)
    assert found["after"] > found["letters"][0]
    assert set(found["titles"]) == {"ltr"}
