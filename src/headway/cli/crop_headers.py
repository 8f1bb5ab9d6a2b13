"""``headway data crop-headers``: the headers of wide strips, as pictures of their own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from headway.errors import ConfigError, DataError

_SOURCES = Annotated[
    list[Path], typer.Argument(help="Scans, or folders with scans below: TIFF, PNG, JPEG and more.")
]
SHOWN = 10
"""Unreadable scans that are named."""


def crop_headers(
    sources: _SOURCES,
    to: Annotated[Path, typer.Option(help="Folder for the headers; the same call continues it.")],
    ratio: Annotated[float, typer.Option(help="Width of a header over its height.")] = 4 / 3,
    turn: Annotated[
        int, typer.Option(help="Degrees to turn each scan anticlockwise first: 0, 90, 180, 270.")
    ] = 0,
    decoded_pixels: Annotated[
        int, typer.Option(help="Scans with more pixels are not unpacked, and named.")
    ] = 150_000_000,
    unreadable: Annotated[
        str, typer.Option(help="Of scans that cannot be read: error (65 at the end), or skip.")
    ] = "error",
    json: Annotated[bool, typer.Option("--json", help="One JSON document.")] = False,
) -> None:
    """The left part of each wide strip, width = height x 4/3, as a PNG; every page of a TIFF."""
    import sys

    from pydantic import ValidationError

    from headway.cli.tables import show_json
    from headway.data.pictures import Reading
    from headway.data.pictures.crop import ROWS_FILE, crop_headers, scans_in

    try:
        reading = Reading.model_validate(
            {
                "header_ratio": ratio,
                "turn": turn,
                "decoded_pixels": decoded_pixels,
                "unreadable": unreadable,
            }
        )
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0]).replace("header_ratio", "ratio").replace("_", "-")
        raise ConfigError(f"--{name}: {first['msg']}, and it is {first['input']}") from error
    with typer.progressbar(length=len(scans_in(sources, to)), file=sys.stderr) as bar:
        found = crop_headers(sources, to, reading, bar.update)
    if json:
        show_json(
            {"folder": str(to), "headers": len(found.rows), "new": found.new,
             "unreadable": found.unreadable}
        )  # fmt: skip
    else:
        typer.echo(
            f"{to}: {len(found.rows):,} headers, {found.new:,} of them new, "
            f"{len(found.unreadable):,} scans or pages that cannot be read; rows in {ROWS_FILE}"
        )
    if found.unreadable:
        first_ones = "\n".join(found.unreadable[:SHOWN])
        if reading.unreadable == "error":
            raise DataError(f"{first_ones}\n--unreadable skip leaves them out without an error")
        typer.echo(first_ones, err=True)
