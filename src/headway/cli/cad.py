"""``headway data cad-parts`` and ``cad-edits``: parts, and sentences that ask for changes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from headway.data.cad.store import Manifest

_TO = Annotated[Path, typer.Option(help="Folder to write; the same call continues it.")]
_COUNT = Annotated[int, typer.Option(min=1, help="How many.")]
_SEED = Annotated[
    int, typer.Option(min=0, help="Other seeds, other rows: take one for each split.")
]
_WORKERS = Annotated[int, typer.Option(min=1, help="Processes; changes nothing else.")]
_ROWS = Annotated[int, typer.Option(min=1, help="Rows in a file.")]
_JSON = Annotated[bool, typer.Option("--json", help="One JSON document.")]
KERNEL_ROWS = 250
"""Solids in a file, which is what a kill loses at most of each process: some seconds' work."""


def cad_parts(
    to: _TO,
    count: _COUNT,
    seed: _SEED = 0,
    workers: _WORKERS = 1,
    rows_per_file: Annotated[
        int | None,
        typer.Option(min=1, help=f"Rows in a file; left out 5000, with --kernel {KERNEL_ROWS}."),
    ] = None,
    kernel: Annotated[
        bool,
        typer.Option("--kernel", help="Build each as a solid, and read its graph from that."),
    ] = False,
    kernel_check: Annotated[
        int, typer.Option(min=0, help="Build the first so many with the CAD kernel and compare.")
    ] = 0,
    json: _JSON = False,
) -> None:
    """Parts of six families as face graphs, each checked; in parallel, continued after a kill."""
    import time

    from headway.cli.tables import show_json
    from headway.data.cad import write_parts

    started = time.perf_counter()
    manifest, new = write_parts(
        to,
        count=count,
        seed=seed,
        workers=workers,
        shard_rows=rows_per_file or (KERNEL_ROWS if kernel else 5000),
        kernel=kernel,
    )
    seconds = time.perf_counter() - started
    facts: dict[str, object] = {"parts": manifest.rows, "new": new, "sha256": manifest.sha256}
    if "kernel" in manifest.made_of:
        facts["made_with"] = manifest.made_of["kernel"]
    if kernel_check:
        from headway.data.cad.equality import compare_with_kernel

        facts["kernel"] = compare_with_kernel(seed, min(kernel_check, count))
    if json:
        show_json({"folder": str(to), "seconds": seconds, **facts})
        return
    _show(to, manifest, new, seconds)
    if "made_with" in facts:
        typer.echo(f"  solids of {facts['made_with']}, each compared with the computed one")
    if kernel_check:
        typer.echo(f"  the kernel's graphs are the same: {facts['kernel']}")


def cad_edits(
    vae: Annotated[str, typer.Option(help="Run of the recipe graph_vae that encodes the parts.")],
    to: _TO,
    count: _COUNT,
    seed: _SEED = 0,
    step: Annotated[
        str, typer.Option("--step", help="Which checkpoint of the run: 500, newest, best.")
    ] = "best",
    single: Annotated[float, typer.Option(min=0, help="Share that changes one dimension.")] = 0.7,
    compound: Annotated[float, typer.Option(min=0, help="Share that changes several.")] = 0.2,
    noop: Annotated[float, typer.Option(min=0, help="Share that changes nothing.")] = 0.1,
    max_unreadable: Annotated[
        float, typer.Option(min=0, max=1, help="Refuse a larger share of unreadable labels.")
    ] = 0.0,
    workers: _WORKERS = 1,
    rows_per_file: _ROWS = 5000,
    as_json: Annotated[
        Path | None,
        typer.Option(help="Also write the rows as JSON in the seed's fields, and metadata.json."),
    ] = None,
    json: _JSON = False,
) -> None:
    """Edits: an instruction, and the latents of the part before and after, by one graph VAE."""
    import time

    from headway.api import load_run
    from headway.cli.tables import show_json
    from headway.data.cad import EncodesParts, read_edits, write_edits, write_json_edits
    from headway.errors import ConfigError

    if single + compound + noop <= 0:
        raise ConfigError("--single, --compound and --noop: one of them must be more than 0")
    trained = load_run(vae, step)
    task = trained.task
    if not isinstance(task, EncodesParts):
        raise ConfigError(f"--vae {vae}: a run of recipe {trained.config.recipe} encodes no parts")
    sha256 = task.weights_sha256()
    started = time.perf_counter()
    manifest, new = write_edits(
        to,
        count=count,
        seed=seed,
        encode=task.encode,
        vae_sha256=sha256,
        write_vae=lambda folder: trained.export(folder, "full"),
        mix={"single": single, "compound": compound, "noop": noop},
        workers=workers,
        shard_rows=rows_per_file,
        max_unreadable=max_unreadable,
    )
    seconds = time.perf_counter() - started
    if as_json is not None:
        write_json_edits(as_json, read_edits(to)[0], seed)
    if json:
        facts = {"folder": str(to), "edits": manifest.rows, "new": new, "sha256": manifest.sha256}
        show_json({**facts, "vae_sha256": sha256, "seconds": seconds})
        return
    _show(to, manifest, new, seconds)
    typer.echo(f"  latents by {vae}, weights {sha256[:16]}, kept in {to / 'vae'}")


def _show(to: Path, manifest: Manifest, new: bool, seconds: float) -> None:
    speed = f", {manifest.rows / max(seconds, 1e-9):,.0f} a second" if new else ", already there"
    typer.echo(f"{to}: {manifest.rows:,} {manifest.kind}{speed}")
    typer.echo(f"  content {manifest.sha256[:16]} in {len(manifest.shards)} files")
