"""The pictures of docs/pictures, taken in Debian's chromium.

    python benchmarks/pictures.py RUN ONE OTHER SFT_RUN REGRESSION_RUN [--to docs/pictures]

RUN's report in light, dark, on a phone; ONE and OTHER compared; the worst rows of the two others.
Each is cut to what matters and kept in 200 colours.
"""

from __future__ import annotations

import argparse
import io
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

COLOURS = 200
PART = """(() => {
  const parts = [...document.querySelectorAll(%r)], r = parts.map(p => p.getBoundingClientRect());
  const top = Math.min(...r.map(x => x.top)), bottom = Math.max(...r.map(x => x.bottom));
  return [top + scrollY, bottom - top];
})()"""


def saved(data: bytes, to: Path) -> None:
    """A PNG in few colours."""
    from PIL import Image

    image = Image.open(io.BytesIO(data)).convert("RGB")
    image = image.quantize(COLOURS, dither=Image.Dither.NONE)
    image.save(to, optimize=True)
    print(f"{to}: {image.width} × {image.height}, {to.stat().st_size / 1e3:.0f} kB")


def main() -> None:
    from browser import Browser, find_chromium
    from headway.comparing import write_comparison
    from headway.viewing import write_report

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs=5, type=Path, metavar="RUN")
    parser.add_argument("--to", type=Path, default=Path("docs/pictures"))
    asked = parser.parse_args()
    run, one, other, sft, regression = asked.runs
    program = find_chromium()
    if program is None:
        raise SystemExit("no chromium on this machine")
    asked.to.mkdir(parents=True, exist_ok=True)
    browser = Browser(program, limit_seconds=120)
    with tempfile.TemporaryDirectory() as folder:
        pages = Path(folder)

        def take(name: str, page: Path, width: int, part: str, most: int, dark: bool) -> None:
            browser.looks(width=width, dark=dark)
            browser.open(page)
            top, height = browser.run(PART % part)
            clip = {"x": 0, "y": max(0, top - 24), "width": width, "height": min(most, height + 48)}
            saved(browser.picture(clip), asked.to / f"{name}.png")

        page = write_report(run, pages / "report.html")
        take("report-light", page, 1000, "header, header + section", 1500, dark=False)
        take("report-dark", page, 1000, "header, header + section", 1500, dark=True)
        take("report-phone", page, 390, "header, header + section", 1400, dark=False)
        both = write_comparison([one, other], pages / "comparison.html")
        take("comparison", both, 1000, "main", 1700, dark=False)
        for name, each in (("worst-sft", sft), ("worst-regression", regression)):
            page = write_report(each, pages / f"{name}.html")
            take(name, page, 1000, ".worst h2, .worst .row:nth-of-type(-n+2)", 1300, dark=False)
        complaints = list(browser.complaints)
    browser.close()
    if complaints:
        raise SystemExit(f"the browser complains: {complaints}")


if __name__ == "__main__":
    main()
