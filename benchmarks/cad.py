"""How fast parts are made: computed graphs on one core, and solids beside the kernel alone.

    python benchmarks/cad.py [--parts 120] [--rounds 5] [--part computed|solids]

*Computed*: parts drawn, their graphs computed and checked, in memory; and the same as a folder,
hashed and synced. *Solids* (extra ``cad``): ``headway data cad-parts --kernel`` on the parts of a
seed, in turns with a bare loop that makes the same solids and asks the kernel, through its own
Python, what a graph consists of: no check, no comparison, no file, not even a list of the answers.
One process, one thread. Parts a second are those of a core: of this process's own CPU time, which
other processes do not add to; by the clock stands beside. The kernel's import, which a command does
once, is timed by itself.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

Run = tuple[float, float]
"""Rows a second of a core, and by the clock."""
Row = tuple[str, list[Run]]


def timed(work: Callable[[], object], rows: int) -> Run:
    """One run of some work."""
    clock, core = time.perf_counter(), time.process_time()
    work()
    return rows / (time.process_time() - core), rows / (time.perf_counter() - clock)


def computed(rounds: int) -> list[Row]:
    """Graphs computed from dimensions, a second."""
    from headway.data.cad import write_parts
    from headway.data.cad.rows import part_arrays

    part_arrays(0, 0, 5000)
    memory, disk = [], []
    for number in range(rounds):
        memory.append(timed(lambda seed=number: part_arrays(seed, 0, 5000), 5000))
        with tempfile.TemporaryDirectory() as folder:
            to = Path(folder) / "parts"
            work = lambda to=to, seed=number: write_parts(to, count=20_000, seed=seed)  # noqa: E731
            disk.append(timed(work, 20_000))
    return [("computed, in memory", memory), ("computed, as a folder of 20,000", disk)]


def only_built(seed: int, count: int) -> None:
    """The solids alone."""
    from headway.data.cad import FAMILIES, parts
    from headway.data.cad.kernel import unchecked

    family, values = parts(seed, np.arange(count))
    for row in range(count):
        kind = FAMILIES[family[row]]
        unchecked(kind, values[row, : len(kind.parameters)].tolist())


def kernel_alone(seed: int, count: int) -> None:
    """The solids, and what the kernel knows of their faces and edges."""
    from headway.data.cad import FAMILIES, parts
    from headway.data.cad.kernel import PROBE_MM, kernel, unchecked

    cad = kernel()
    family, values = parts(seed, np.arange(count))
    for row in range(count):
        kind = FAMILIES[family[row]]
        part = unchecked(kind, values[row, : len(kind.parameters)].tolist())
        solid = part.solid()
        part.bounding_box().center()
        faces = part.faces()
        for face in faces:
            _ = face.geom_type, face.area, face.normal_at(), face.edges()
            face.center(cad.CenterOf.MASS)
            face.bounding_box()
        for edge in part.edges():  # two normals each, whichever two faces they are of
            point, _ = edge.position_at(0.5), edge.length
            faces[0].normal_at(point), faces[-1].normal_at(point)
            solid.is_inside(point + cad.Vector(PROBE_MM, 0, 0))


def solids(rounds: int, count: int) -> list[Row]:
    """Solids a second: built, built and asked, and as rows of a folder."""
    from headway.data.cad import write_parts
    from headway.data.cad.kernel import kernel, kernel_version

    started = time.perf_counter()
    kernel()
    print(f"{kernel_version()}, imported in {time.perf_counter() - started:.1f} s\n")
    kernel_alone(0, 12)
    built, alone, ours = [], [], []
    for number in range(rounds):
        built.append(timed(lambda seed=number: only_built(seed, count), count))
        alone.append(timed(lambda seed=number: kernel_alone(seed, count), count))
        with tempfile.TemporaryDirectory() as folder:
            to = Path(folder) / "parts"
            ours.append(
                timed(
                    lambda to=to, seed=number: write_parts(to, count=count, seed=seed, kernel=True),
                    count,
                )
            )
    shares = [(a / c, b / d) for (a, b), (c, d) in zip(ours, alone, strict=True)]
    return [
        ("solids built, asked nothing", built),
        ("solids built and asked: the kernel alone", alone),
        ("headway data cad-parts --kernel", ours),
        ("of the kernel's own speed", shares),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--parts", type=int, default=120, help="solids a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--part", choices=("computed", "solids"))
    asked = parser.parse_args()
    print(f"Load before: {os.getloadavg()[0]:.1f}")
    found: list[Row] = []
    if asked.part != "solids":
        found += computed(asked.rounds)
    if asked.part != "computed":
        if importlib.util.find_spec("build123d") is None:
            print("Solids are not measured: no CAD kernel (pip install 'headway[cad]')")
        else:
            found += solids(asked.rounds, asked.parts)
    print("\n| what | parts a second of a core, median | runs | by the clock |\n|---|---|---|---|")
    for name, runs in found:
        middle = [shown(statistics.median(each)) for each in zip(*runs, strict=True)]
        print(f"| {name} | {middle[0]} | {', '.join(shown(a) for a, _ in runs)} | {middle[1]} |")


def shown(rate: float) -> str:
    """With as many places as it deserves."""
    return f"{rate:,.2f}" if rate < 10 else f"{rate:,.1f}" if rate < 1000 else f"{rate:,.0f}"


if __name__ == "__main__":
    main()
