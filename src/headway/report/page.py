"""The report's page: its skeleton and its style. No font file, nothing from outside."""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence
from html import escape
from string import Template

from headway.report.script import SCRIPT, script_hash

STYLE = """
:root {
  color-scheme: light dark;
  --paper: #fdfdfc; --raised: #f5f5f2; --ink: #1d2126; --muted: #5b6470; --hairline: #e3e5e8;
  --train: #2a5d9c; --heldout: #b3541e; --mark: #9aa1ab;
  --good: #2f7a4d; --wait: #2a5d9c; --bad: #a83232;
  --run1: #2a5d9c; --run2: #b3541e; --run3: #2f7a4d; --run4: #8a4a9e; --run5: #957000;
}
@media screen and (prefers-color-scheme: dark) {
  :root {
    --paper: #14171b; --raised: #1c2025; --ink: #e3e6ea; --muted: #98a2ae; --hairline: #2b3138;
    --train: #7fb1ea; --heldout: #e6a06f; --mark: #6c7683;
    --good: #78c596; --wait: #7fb1ea; --bad: #ec8f8f;
    --run1: #7fb1ea; --run2: #e6a06f; --run3: #78c596; --run4: #cba0e3; --run5: #d6bd5c;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body {
  margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.6 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial,
    "DejaVu Sans", sans-serif;
  font-variant-numeric: tabular-nums lining-nums;
}
main { max-width: 61rem; margin: 0 auto; padding: 3.5rem 1.5rem 5rem; }
header { margin-bottom: 3rem; }
.kicker { margin: 0; color: var(--muted); font-size: .875rem; }
h1 { margin: .2rem 0 1.2rem; font-size: 2.1rem; line-height: 1.2; font-weight: 650;
  letter-spacing: -.015em; overflow-wrap: anywhere; }
h2 { margin: 4rem 0 .5rem; font-size: 1.3rem; line-height: 1.3; font-weight: 650;
  letter-spacing: -.008em; }
h3 { margin: 0; font-size: .95rem; font-weight: 600; }
p { margin: 0 0 .8rem; max-width: 44rem; }
.lead { font-size: 1.125rem; line-height: 1.65; }
.note, figcaption, .unit { color: var(--muted); font-size: .875rem; font-weight: 400; }
.note { line-height: 1.55; }
.state { display: inline-flex; align-items: center; gap: .5em; margin: 0 0 1rem;
  font-weight: 600; font-size: .95rem; color: var(--tone); }
.state::before { content: ""; width: .6em; height: .6em; border-radius: 50%;
  background: var(--tone); }
.finished { --tone: var(--good); } .running { --tone: var(--wait); }
.stopped, .not-started { --tone: var(--muted); } .dead { --tone: var(--bad); }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(11.5rem, 1fr));
  gap: 1.6rem 1.5rem; margin: 2rem 0 0; padding: 1.4rem 0 0;
  border-top: 1px solid var(--hairline); }
.figures dt { color: var(--muted); font-size: .8125rem; }
.figures dd { margin: 0; font-size: 1.375rem; line-height: 1.35; font-weight: 600;
  letter-spacing: -.01em; }
.figures dd span { display: block; color: var(--muted); font-size: .8125rem; font-weight: 400;
  letter-spacing: 0; }
figure { margin: 2rem 0 0; min-width: 0; break-inside: avoid; }
figcaption { display: flex; flex-wrap: wrap; align-items: baseline; gap: 0 1.3em; }
figure svg { display: block; width: 100%; height: auto; margin-top: .4rem; overflow: visible; }
figure svg text { font-family: inherit !important; font-variant-numeric: tabular-nums; }
.pair { display: grid; grid-template-columns: 1fr 1fr; gap: 1rem 2.5rem; }
.narrow { display: none !important; }
.key { display: inline-flex; align-items: baseline; gap: .45em; }
.key::before { content: ""; width: 1.3em; height: 0; border-top: 2.5px solid var(--line);
  align-self: center; }
.key.dash1::before { border-top-style: dashed; width: 1.7em; }
.key.dash2::before { border-top-style: dotted; width: 1.7em; }
.train { --line: var(--train); } .heldout { --line: var(--heldout); }
.mark { --line: var(--mark); } .run1 { --line: var(--run1); } .run2 { --line: var(--run2); }
.run3 { --line: var(--run3); } .run4 { --line: var(--run4); } .run5 { --line: var(--run5); }
.lines { margin: 1rem 0 0; padding: 0; list-style: none; font-size: .925rem; max-width: 52rem; }
.lines li { padding: .12rem 0 .12rem 1.2rem; text-indent: -1.2rem; overflow-wrap: anywhere; }
.lines .inner { padding-left: 2.6rem; color: var(--muted); font-size: .875rem; }
.legend { display: flex; flex-wrap: wrap; gap: .2rem 1.4rem; position: sticky; top: 0; z-index: 1;
  max-width: none; margin: .6rem 0 0; padding: .5rem 0; background: var(--paper);
  font-size: .925rem; }
.after { margin-top: 1.2rem; }
.settings td.text { white-space: normal; overflow-wrap: anywhere; min-width: 9rem;
  max-width: 22rem; }
.warned { margin: 1rem 0 0; padding-left: 1.1rem; max-width: 52rem; }
.scroll { overflow-x: auto; margin: 1rem 0 0; }
table { border-collapse: collapse; min-width: 60%; font-size: .9rem; }
th, td { padding: .42rem 2rem .42rem 0; text-align: right; white-space: nowrap;
  border-bottom: 1px solid var(--hairline); vertical-align: baseline; }
th:last-child, td:last-child { padding-right: 0; }
th { color: var(--muted); font-weight: 500; font-size: .8125rem; vertical-align: bottom; }
th.text, td.text { text-align: left; }
td.baseline, td.faint { color: var(--muted); }
th.name, td.name { text-align: left; position: sticky; left: 0; background: var(--paper);
  padding-right: 1.2rem; }
th.value, td.value { padding-right: .6rem; }
th.beside, td.beside { text-align: left; padding-right: 1.3rem; color: var(--muted);
  font-size: .8125rem; }
.part { margin-top: 2.2rem; }
.part + .note { margin-bottom: 0; }
.calibration { align-items: center; }
.calibration > * { margin-top: 1rem; }
.calibration th, .calibration td { padding-right: 1.1rem; }
tr.best td { font-weight: 650; }
tr.best td.baseline { font-weight: 400; }
.row { margin: 1.5rem 0 0; padding: 1.1rem 1.25rem 1.25rem; background: var(--raised);
  border-radius: .5rem; break-inside: avoid-page; }
.row > h3 { display: flex; flex-wrap: wrap; gap: 0 1.2em; justify-content: space-between; }
.row > h3 span { color: var(--muted); font-weight: 400; font-size: .875rem; }
.row dl { margin: .7rem 0 0; display: grid; grid-template-columns: 6.5rem minmax(0, 1fr);
  gap: .55rem 1rem; }
.row dt { color: var(--muted); font-size: .875rem; overflow-wrap: anywhere; }
.row dd { margin: 0; white-space: pre-wrap; overflow-wrap: anywhere; font-size: .925rem;
  line-height: 1.5; }
.row dd i { color: var(--muted); font-style: normal; }
.row dd b { font-weight: inherit; border-radius: 2px; background: color-mix(in srgb,
  color-mix(in srgb, var(--heldout) 60%, transparent) var(--warmth), transparent); }
.row .second { margin-right: auto; }
.row ins { text-decoration: underline; text-decoration-thickness: .12em; border-radius: 2px;
  background: color-mix(in srgb, var(--good) 24%, transparent); }
.row del { border-radius: 2px; background: color-mix(in srgb, var(--bad) 22%, transparent); }
.row mark { color: inherit; border-radius: 2px;
  background: color-mix(in srgb, var(--train) 24%, transparent); }
.row[hidden] { display: none; }
.pictures { display: flex; flex-wrap: wrap; gap: .8rem 1.2rem; white-space: normal; }
.pictures figure { margin: 0; max-width: 100%; }
.pictures img { display: block; max-width: 100%; max-height: 32rem; height: auto;
  border-radius: .25rem; background: #fff; }
#orders { display: flex; flex-wrap: wrap; gap: .5rem; margin: 1.2rem 0 0; }
#orders[hidden] { display: none; }
#orders button { font: inherit; font-size: .875rem; padding: .25rem .85rem; cursor: pointer;
  color: var(--muted); background: none; border: 1px solid var(--hairline); border-radius: 1em; }
#orders button:hover { color: var(--ink); border-color: var(--mark); }
#orders button[aria-pressed="true"] { color: var(--paper); background: var(--ink);
  border-color: var(--ink); }
.chain { margin: 0; padding: 0; list-style: none; counter-reset: step; }
.chain li { counter-increment: step; position: relative; margin: 0 0 .3rem;
  padding: .4rem .7rem .45rem 2.2rem; border-radius: .3rem; white-space: normal;
  background: color-mix(in srgb, color-mix(in srgb, var(--heldout) 42%, transparent)
  var(--warmth), transparent); }
.chain li::before { content: counter(step); position: absolute; left: .7rem; color: var(--muted); }
.chain div { white-space: pre-wrap; }
.chain p { margin: .1rem 0 0; font-size: .8125rem; max-width: none; }
.chain em { margin-left: .7em; padding: 0 .45em; border: 1px solid currentColor;
  border-radius: 1em; font-style: normal; white-space: nowrap; }
.gauge { display: inline-block; position: relative; width: 5rem; height: .45rem;
  margin-right: .7em; border-radius: .2rem; border: 1px solid var(--muted);
  background: linear-gradient(to right, var(--muted) var(--at), transparent var(--at)); }
.gauge s { position: absolute; top: -.25rem; bottom: -.25rem; left: calc(var(--at) - 1px);
  width: 2px; background: var(--ink); }
.facts { display: grid; grid-template-columns: minmax(7rem, max-content) minmax(0, 1fr);
  gap: .3rem 1.75rem; margin: 1rem 0 0; font-size: .925rem; }
.facts dt { color: var(--muted); }
.facts dd { margin: 0; overflow-wrap: anywhere; white-space: pre-line; }
pre { margin: 1rem 0 0; padding: 1rem 1.25rem; background: var(--raised); border-radius: .5rem;
  font: .85rem/1.6 ui-monospace, "SF Mono", "Cascadia Mono", Menlo, Consolas, "DejaVu Sans Mono",
    monospace; overflow-x: auto; white-space: pre-wrap; overflow-wrap: anywhere; }
footer { margin-top: 4.5rem; padding-top: 1rem; border-top: 1px solid var(--hairline); }
@media (max-width: 46rem) {
  main { padding: 2rem 1.1rem 3.5rem; }
  h1 { font-size: 1.65rem; }
  h2 { margin-top: 3rem; }
  .pair { grid-template-columns: 1fr; }
  figure svg text { font-size: 13px !important; }
  .wide { display: none !important; } .narrow { display: block !important; }
  .figures { grid-template-columns: 1fr 1fr; }
  th, td { padding-right: 1.2rem; }
  .row dl { grid-template-columns: 1fr; gap: .1rem; } .row dd { margin-bottom: .6rem; }
  .facts { grid-template-columns: 1fr; gap: 0; } .facts dd { margin-bottom: .5rem; }
}
@media print {
  @page { margin: 16mm 15mm; }
  body { font-size: 10pt; }
  main { max-width: none; padding: 0; }
  h2 { margin-top: 2rem; } h2, h3 { break-after: avoid; }
  .wide { display: block !important; } .narrow { display: none !important; }
  .pair { grid-template-columns: 1fr 1fr; }
  .legend { position: static; }
  table { font-size: 8pt; } th { font-size: 7.5pt; } th, td { padding-right: .8rem; }
  .chain li, .gauge, .row b, .row ins, .row del, .row mark, .key::before, .state::before {
    print-color-adjust: exact; -webkit-print-color-adjust: exact; }
  .scroll { overflow: visible; } tr { break-inside: avoid; }
  #orders { display: none; }
  .row, pre { border: 1px solid var(--hairline); background: none; }
}
"""

PAGE = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
  content="default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src $allowed">
<title>$title</title>
<style>$style</style>
</head>
<body>
<main>
$body
</main>
$script</body>
</html>
""")


def page(title: str, body: str, *, acts: bool = False) -> str:
    """A whole page. ``acts``: it holds worst rows, which the script puts in order."""
    return PAGE.substitute(
        title=escape(title),
        style=STYLE,
        body=body,
        allowed=f"'{script_hash()}'" if acts else "'none'",
        script=f"<script>{SCRIPT}</script>\n" if acts else "",
    )


def table(
    head: Sequence[tuple[str, str]],
    rows: Iterable[tuple[str, Sequence[str]]],
    strong: Container[tuple[int, int]] = (),
) -> str:
    """A table. ``head``: (class of the column, title); ``rows``: (class of the row, cells);
    ``strong``: (row, column) of cells that stand out."""
    top = "".join(f'<th class="{kind}">{escape(title)}</th>' for kind, title in head)
    body = ""
    for n, (kind, cells) in enumerate(rows):
        body += f'<tr class="{kind}">'
        for m, ((column, _), cell) in enumerate(zip(head, cells, strict=True)):
            inner = f"<strong>{escape(cell)}</strong>" if (n, m) in strong else escape(cell)
            body += f'<td class="{column}">{inner}</td>'
        body += "</tr>"
    return (
        f'<div class="scroll"><table><thead><tr>{top}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )
