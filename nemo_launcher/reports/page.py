# SPDX-License-Identifier: Apache-2.0
"""The page around a report: one file with its style and script inside, which the page's own policy names by hash."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from pathlib import Path

from nemo_launcher.errors import Problem, UserError
from nemo_launcher.reports.html import Html, element, joined

MAX_BYTES = 2_000_000
"""Maximum size of a report."""

_STYLE = """
:root { color-scheme: light dark; --back: #ffffff; --text: #1b1f24; --soft: #57606a; --line: #d0d7de; --raised: #f6f8fa;
  --one: #0b5cad; --two: #9a3b00; --good: #116329; --bad: #a40e26; }
@media (prefers-color-scheme: dark) { :root { --back: #0d1117; --text: #e6edf3; --soft: #a3adb8; --line: #3d444d;
  --raised: #161b22; --one: #79b8ff; --two: #ffb27a; --good: #7ee787; --bad: #ff9b94; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 60rem; padding: 1rem; background: var(--back); color: var(--text);
  font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: break-word; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: .5rem 0; }
h2 { font-size: 1.25rem; margin: 2rem 0 .5rem; border-bottom: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1rem 0 .25rem; }
p, .note { color: var(--soft); margin: .25rem 0; }
p.result { color: var(--text); font-size: 1.1rem; }
a { color: var(--one); }
.scroll { overflow-x: auto; margin: .5rem 0; }
.examples .scroll { max-height: 45rem; overflow: auto; }
.scroll:focus-visible, summary:focus-visible, pre:focus-visible, input:focus-visible {
  outline: 2px solid var(--one); outline-offset: 2px; }
table { border-collapse: collapse; }
caption { text-align: left; color: var(--soft); padding-bottom: .25rem; }
th, td { text-align: left; vertical-align: top; padding: .25rem .75rem .25rem 0; border-bottom: 1px solid var(--line);
  font-variant-numeric: tabular-nums; }
td { min-width: 4rem; max-width: 30rem; }
.text { white-space: pre-wrap; }
pre { background: var(--raised); border: 1px solid var(--line); padding: .75rem; overflow-x: auto; margin: .5rem 0;
  white-space: pre-wrap; overflow-wrap: anywhere; font: .85rem/1.45 ui-monospace, monospace; }
summary { cursor: pointer; padding: .25rem 0; }
svg { display: block; width: 100%; max-width: 45rem; height: auto; }
svg text { fill: var(--text); font: 13px system-ui, sans-serif; }
svg .axis { stroke: var(--line); } svg .grid { stroke: var(--line); stroke-dasharray: 2 4; }
svg .one { stroke: var(--one); } svg .two { stroke: var(--two); }
svg polyline { fill: none; stroke-width: 2; stroke-linejoin: round; } svg polyline.two { stroke-dasharray: 7 3; }
svg circle.two { fill: var(--two); } svg rect { stroke: none; } svg rect.one { fill: var(--one); }
svg rect.two { fill: var(--two); } svg .whisker { stroke: var(--text); stroke-width: 2; }
figure { margin: .5rem 0; }
.good { color: var(--good); } .bad { color: var(--bad); }
.choice { display: inline-block; margin-right: 1rem; }
#show-win:checked ~ .scroll tbody tr:not(.win), #show-loss:checked ~ .scroll tbody tr:not(.loss),
#show-tie:checked ~ .scroll tbody tr:not(.tie), tr.unmatched { display: none; }
@media (max-width: 30rem) { body { padding: .75rem; } svg text { font-size: 17px; } }
@media print { body { max-width: none; } .scroll, .examples .scroll { max-height: none; overflow: visible; }
  .choice, .filter { display: none; } }
"""

_SCRIPT = """
document.querySelectorAll('table').forEach(function (table) {
  var region = table.parentElement;
  if (!region.parentElement.classList.contains('examples')) { return; }
  var box = document.createElement('p'), label = document.createElement('label');
  var input = document.createElement('input');
  box.className = 'filter'; input.type = 'search'; label.textContent = 'Filter by text: ';
  label.appendChild(input); box.appendChild(label); region.parentElement.insertBefore(box, region);
  input.addEventListener('input', function () {
    var wanted = input.value.toLowerCase();
    table.querySelectorAll('tbody tr').forEach(function (row) {
      row.classList.toggle('unmatched', row.textContent.toLowerCase().indexOf(wanted) < 0);
    });
  });
});
"""


_BEGIN = (
    '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
    '<meta http-equiv="Content-Security-Policy" content="default-src &#x27;none&#x27;; style-src &#x27;sha256-'
)
"""The beginning of every page."""
_LEFT_OUT = element("p", f"A section is left out: the page would exceed {MAX_BYTES / 1e6:.0f} MB.")


def page(title: str, *sections: object) -> str:
    """Return a complete page. Nothing in it can load or run anything else: the policy allows its own style and script.

    sections: Html or text, in order; None is left out. If the page would exceed MAX_BYTES, the largest are left out.
    """
    kept = [joined([section]) for section in sections if section is not None]
    while len((text := _page(title, kept)).encode()) > MAX_BYTES:
        kept[max(range(len(kept)), key=lambda place: len(kept[place]))] = _LEFT_OUT
    return text


def _page(title: str, sections: Sequence[Html]) -> str:
    policy = f"default-src 'none'; style-src {_hash(_STYLE)}; script-src {_hash(_SCRIPT)}; base-uri 'none'"
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=policy),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("title", title),
        element("style", Html(_STYLE)),
    )
    body = element("body", element("main", element("h1", title), *sections), element("script", Html(_SCRIPT)))
    return "<!DOCTYPE html>\n" + element("html", joined([head, "\n", body]), lang="en") + "\n"


def check_replaceable(path: Path) -> None:
    """Raise UserError if a path has a file that is neither empty nor such a page: it is somebody's, not a report."""
    if not path.is_file():
        return
    with path.open("rb") as stream:
        begin = stream.read(len(_BEGIN))
    if begin not in (b"", _BEGIN.encode()):
        raise UserError(Problem(str(path), "is not a report, so it is not replaced", "move that file away"))


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
