"""The page's only script: puts the worst rows in another order, or leaves some out.

The page is whole without it: the rows are there, the worst first. It may run because the page's
policy names its hash; nothing else may, whatever a row of the data holds.
"""

from __future__ import annotations

import hashlib
from base64 import b64encode

SCRIPT = """
(() => {
  const bar = document.getElementById("orders");
  if (!bar) return;
  const rows = [...bar.parentNode.querySelectorAll("article")];
  const size = (row, key) => key in row.dataset ? Number(row.dataset[key]) : -Infinity;
  const order = key => {
    const by = key === "suspicious" ? "loss" : key;
    const sorted = [...rows].sort((a, b) => size(b, by) - size(a, by) || 0);
    for (const row of sorted) {
      row.hidden = key === "suspicious" && !("suspicious" in row.dataset);
      row.parentNode.append(row);
    }
  };
  bar.addEventListener("click", event => {
    const chosen = event.target.closest("button");
    if (!chosen) return;
    for (const button of bar.children)
      button.setAttribute("aria-pressed", String(button === chosen));
    order(chosen.value);
  });
  bar.hidden = false;
})();
"""


def script_hash() -> str:
    """How a Content-Security-Policy names the script (W3C CSP Level 3, section 2.3.1)."""
    return "sha256-" + b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
