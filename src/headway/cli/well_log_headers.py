"""``headway data well-log-headers``: scanned header pages with the exact text beside them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from headway.errors import ConfigError

_SIZE = (
    "page: a whole header. crop: the header alone, width 4/3 of height. strip: one or two lines. "
    "field: one label and its value. word: one word of these."
)
_LAS = "Folder of LAS files: their labels, units and values are used; without, tables of our own."
_NOISE = "How worn the scans are: 0 to 1."
_SHEET = "Also put 20 of the pages on one PNG, to look at."


def well_log_headers(
    out: Annotated[Path, typer.Option(help="Folder to write; the same call continues it.")],
    train: Annotated[int, typer.Option(min=0, help="Pages to train on.")],
    held_out: Annotated[
        int, typer.Option("--eval", min=0, help="Held-out pages, of wells that train has not.")
    ],
    seed: Annotated[int, typer.Option(help="Another seed, other wells and other pages.")] = 0,
    size: Annotated[str, typer.Option(help=_SIZE)] = "page",
    las: Annotated[Path | None, typer.Option(help=_LAS)] = None,
    noise: Annotated[float, typer.Option(min=0, max=1, help=_NOISE)] = 1.0,
    clean: Annotated[bool, typer.Option("--clean", help="The same as --noise 0, as PNG.")] = False,
    lines: Annotated[int, typer.Option(min=1, max=2, help="Most lines of a strip.")] = 1,
    workers: Annotated[int, typer.Option(min=1, help="Processes; changes nothing else.")] = 1,
    contact_sheet: Annotated[Path | None, typer.Option(help=_SHEET)] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace other pages there.")] = False,
    json: Annotated[bool, typer.Option("--json", help="One JSON document.")] = False,
) -> None:
    """Pages that look like scanned well-log headers, to train a vision model on."""
    import sys
    from time import perf_counter

    from headway.cli.tables import show_json
    from headway.data.well_log import SIZES, Options, write
    from headway.data.well_log.contact_sheet import contact_sheet as make_sheet

    if size not in SIZES:
        raise ConfigError(f"--size {size}: write one of {', '.join(SIZES)}")
    options = Options(
        train=train,
        eval=held_out,
        size=next(known for known in SIZES if known == size),
        seed=seed,
        noise=0.0 if clean else noise,
        lines=lines,
        las=None if las is None else str(las),
    )
    made: list[int] = []
    started = perf_counter()
    with typer.progressbar(length=train + held_out, file=sys.stderr) as bar:

        def count(pages: int) -> None:
            made.append(pages)
            bar.update(pages)

        manifest = write(options, out, workers=workers, force=force, done=count)
    seconds = perf_counter() - started
    sheet_bytes = make_sheet(out, contact_sheet) if contact_sheet else 0
    if json:
        show_json({"folder": str(out), "new_pages": sum(made), "seconds": seconds, **manifest})
        return
    _show(out, manifest, sum(made), seconds)
    if contact_sheet:
        typer.echo(f"{contact_sheet}: {sheet_bytes:,} bytes")


def _show(out: Path, manifest: dict[str, Any], made: int, seconds: float) -> None:
    from headway.cli.tables import show_facts

    pages, wells = manifest["pages"], manifest["wells"]
    speed = f", {made / seconds:.1f} a second" if made else ""
    typer.echo(f"{out}: {pages:,} pages, {made:,} of them new{speed}")
    used_before = manifest["pages_of_a_template_used_before"]
    show_facts(
        {
            "wells": f"{wells['train']:,} in train, {wells['eval']:,} in eval, none in both",
            "templates": f"{manifest['templates']:,}, {used_before:,} pages repeat one",
            "answers": f"{manifest['answer_characters'] / pages:,.0f} characters a page; "
            f"{manifest['eval_answers_also_in_train']:,} of eval are in train word for word",
            "pictures": f"{manifest['image_bytes'] / pages / 1024:,.0f} KiB each",
        }
    )
