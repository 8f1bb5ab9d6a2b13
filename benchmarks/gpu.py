"""What one GPU makes of headway: tokens/s, share of its matrix rate, memory, and exact resume.

    PYTHONPATH=src:. python3 benchmarks/gpu.py [--minutes 7.5] [--tiny --device cpu]

Models have random weights; rows are packed with random tokens, in documents of random lengths. Both
sides (headway, TRL's SFTTrainer with packing) see the same documents, train the same parameters
under bf16 autocast with the same rows a step, and run in processes of their own, one for each side
and shape. FLOPs are the model's: recomputation is not counted, attention only within documents.
What cannot run (a package is missing, memory or time ran out) stays in the table with its reason.
The table is printed and, where ``OUT`` names a folder, written to ``OUT/gpu.md``.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.gpu_plan import REAL, SHAPES, TINY, Cell, Place, Sizes, absent, planned

LEAST_SECONDS, START_SECONDS = 15.0, 20.0
"""A group with less time is not started; what its imports may take."""


def machine(place: Place) -> dict[str, Any]:
    """Writes the models; the device's name, versions, and its bf16 matrix products a second."""
    import torch
    import transformers
    from benchmarks.gpu_cells import settle, write_model

    for shape in SHAPES:
        write_model(shape, place.tiny, place.device, place.model(shape))
    n = place.sizes.matrix
    a, b = (torch.randn(n, n, device=place.device).bfloat16() for _ in range(2))
    seconds = []
    for _ in range(5):
        settle(place.device)
        started = time.perf_counter()
        for _ in range(10):
            a @ b
        settle(place.device)
        seconds.append((time.perf_counter() - started) / 10)
    name = torch.cuda.get_device_name() if place.device == "cuda" else "CPU"
    return {
        "name": name,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "matrix_flops_per_second": 2 * n**3 / statistics.median(seconds[1:]),
    }


def group_of(cell: Cell) -> str:
    """Cells of one side and shape share a process."""
    return f"{cell.side}:{cell.shape}"


def work(group: str, place: Place, until: float) -> None:
    """One group of cells in this process; prints a JSON line for each."""
    if group == "machine":
        print("RESULT " + json.dumps(machine(place)), flush=True)
        return
    from benchmarks.gpu_cells import clean, run_cell

    longest = 0.0
    for cell in planned(place.sizes):
        if group_of(cell) != group or absent(cell):
            continue
        started = time.time()
        if started + longest > until:
            found: dict[str, Any] = {"note": "DROPPED: no time left"}
        else:
            found = run_cell(cell, place)
            clean(place.device)
            longest = max(longest, time.time() - started)
        print("RESULT " + json.dumps({"cell": asdict(cell), **found}), flush=True)


def results_of(group: str, arguments: argparse.Namespace, folder: str, until: float) -> list[Any]:
    """What the group's process printed before its time was over."""
    if until - time.time() < LEAST_SECONDS - 1:
        return []
    command = [
        sys.executable, __file__, "--group", group, "--until", str(until), "--folder", folder,
        "--device", arguments.device, *(["--tiny"] if arguments.tiny else []),
    ]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        out, _ = process.communicate(timeout=max(1.0, until + 15 - time.time()))
    except subprocess.TimeoutExpired:
        process.kill()
        out, _ = process.communicate()
    if process.returncode:
        print(f"{group} ended with {process.returncode}", file=sys.stderr)
    lines = [line for line in out.splitlines() if line.startswith("RESULT ")]
    return [json.loads(line.removeprefix("RESULT ")) for line in lines]


def measure(arguments: argparse.Namespace) -> str:
    """Run every group within the budget; the table."""
    sizes = TINY if arguments.tiny else REAL
    ends = time.time() + 60 * arguments.minutes
    cells = planned(sizes)
    groups = list(dict.fromkeys(group_of(c) for c in cells if not absent(c)))
    found: dict[Cell, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        facts = results_of("machine", arguments, folder, ends)
        for number, group in enumerate(groups):
            waiting = [sum(group_of(c) == g and not absent(c) for c in cells) for g in groups]
            left = ends - time.time() - START_SECONDS
            free = left - START_SECONDS * (len(groups) - number)
            share = START_SECONDS + free * waiting[number] / sum(waiting[number:])
            share = min(left, max(share, LEAST_SECONDS))
            print(f"{group}: up to {share:.0f} s", file=sys.stderr, flush=True)
            for result in results_of(group, arguments, folder, time.time() + share):
                found[Cell(**result.pop("cell"))] = result
    return table(cells, found, facts[0] if facts else {}, sizes)


def table(cells: list[Cell], found: dict[Cell, Any], facts: dict[str, Any], sizes: Sizes) -> str:
    """Markdown: one row for each planned cell, measured or not."""
    rate = facts.get("matrix_flops_per_second", 0.0)
    what = ", ".join(f"{k} {facts.get(k, '?')}" for k in ("python", "torch", "transformers"))
    lines = [
        f"# {facts.get('name', 'no device answered')}",
        "",
        f"{what}; bf16 products of {sizes.matrix} x {sizes.matrix}: {rate / 1e12:.3g} TFLOP/s. "
        f"Packed rows of {sizes.row_tokens} tokens, {sizes.rows_a_step} rows a step, bf16 "
        "autocast, AdamW, LoRA rank 16 on all linear layers. Rows: of one microbatch. headway runs "
        'repeatable kernels unless it says "any kernel".',
        "",
        "| side | shape | tuning | rows | tokens/s | TFLOP/s | of matrix rate | peak GB | note |",
        "| --- | --- | --- | --- | ---: | ---: | ---: | ---: | --- |",
    ]
    for cell in cells:
        result = found.get(cell) or {"note": "DROPPED: its process ended or ran out of time"}
        if absent(cell):
            result = {"note": f"skipped: not installed here: {', '.join(absent(cell))}"}
        lines.append(f"| {cell.name} | {figures(result, rate)} | {result.get('note', '')} |")
    return "\n".join(lines) + "\n"


def figures(result: dict[str, Any], rate: float) -> str:
    """The table's four numbers, or dashes."""
    if not result.get("seconds"):
        return "– | – | – | –"
    tokens, flops = (result[k] / result["seconds"] for k in ("tokens", "flops"))
    share = f"{100 * flops / rate:.1f} %" if rate else "–"
    return f"{tokens:,.0f} | {flops / 1e12:.3g} | {share} | {result['peak_bytes'] / 1e9:.2f}"


def main() -> None:
    """Measure, print, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=7.5, help="wall time for everything")
    parser.add_argument("--tiny", action="store_true", help="the same code on tiny shapes")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--group", help=argparse.SUPPRESS)
    parser.add_argument("--until", type=float, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.group:
        sizes = TINY if arguments.tiny else REAL
        place = Place(sizes, arguments.tiny, arguments.device, arguments.folder)
        work(arguments.group, place, arguments.until)
        return
    text = measure(arguments)
    print(text)
    if os.environ.get("OUT"):
        (Path(os.environ["OUT"]) / "gpu.md").write_text(text)


if __name__ == "__main__":
    main()
