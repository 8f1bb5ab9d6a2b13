"""Several run directories read for a comparison: one after the other, and only what is drawn kept.

The comparison itself is of the room ``report``; this is where it meets the runs on disk.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headway.errors import ConfigError
from headway.viewing import config_tree, find_run, open_run, tested, written

if TYPE_CHECKING:
    from headway.report.side_by_side import Comparison, Contender

COMPARISON_FILE = "comparison.html"
NAMES = ("run.name", "run.root")
"""Keys that differ between any two runs, and say nothing."""


def write_comparison(runs: Sequence[str | Path], to: Path | None = None) -> Path:
    """Render the comparison to ``to`` and return where it is.

    Left out: ``comparison.html`` in the folder that holds all the runs, or here where there is
    none. Raises ConfigError where nothing can be compared.
    """
    from headway.report.comparison import comparison_html

    found = compare_runs(runs)
    parents = {Path(run.folder).resolve().parent for run in found.runs}
    folder = Path(found.runs[0].folder).parent if len(parents) == 1 else Path()
    return written(comparison_html(found), to or folder / COMPARISON_FILE)


def compare_runs(runs: Sequence[str | Path]) -> Comparison:
    """Two runs or more. Raises ConfigError where nothing can be compared."""
    from headway.config import differing
    from headway.report.comparison import MOST
    from headway.report.side_by_side import comparison

    folders = [find_run(run) for run in runs]
    names = unlike_names(folders)
    if len(folders) > MOST:
        raise ConfigError(
            f"{len(folders)} runs: the lines of at most {MOST} can be told apart. `headway status` "
            "shows any number of runs in a table; compare the best of them"
        )
    found = [_contender(folder, name) for folder, name in zip(folders, names, strict=True)]
    settings = differing([run.config for run in found])
    settings = {key: row for key, row in settings.items() if key not in NAMES}
    facts = differing([_named(run.facts) for run in found])
    return comparison(found, settings | facts)


def unlike_names(folders: Sequence[Path]) -> list[str]:
    """As much of the end of each path as tells it from the others. ConfigError for one twice."""
    whole = [folder.resolve() for folder in folders]
    twice = [str(folder) for n, folder in enumerate(folders) if whole[n] in whole[:n]]
    if twice:
        raise ConfigError(f"{', '.join(twice)}: named twice; a run is compared with others")
    for parts in range(1, max(len(path.parts) for path in whole) + 1):
        names = ["/".join(path.parts[-parts:]) for path in whole]
        if len(set(names)) == len(names):
            return names
    return [str(path) for path in whole]


def _contender(folder: Path, name: str) -> Contender:
    """One run; its events are let go of before the next is read."""
    from headway.report.side_by_side import contender
    from headway.report.summary import summarise

    view = open_run(folder)
    measured = [found for c in view.checkpoints() if (found := tested(view.path, c))]
    return contender(
        view.told,
        name=name,
        folder=str(folder),
        summary=summarise(view.told, name=name, writer_pid=view.writer_pid),
        config=config_tree(view.path),
        tested=measured[-1] if measured else None,
    )


def _named(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Facts under names that no key of a config has: ``identities data``, ``hardware gpu``."""
    return {
        f"{section} {key}": value
        for section, tree in facts.items()
        if isinstance(tree, Mapping)
        for key, value in tree.items()
    }
