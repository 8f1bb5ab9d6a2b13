"""A run directory as a reader sees it: journal, lock, config and checkpoints; nothing is changed.

This is where the rooms meet for the viewer verbs. Without torch, so that looking is quick; and what
``headway status`` does not need is imported where it is used.
"""

from __future__ import annotations

import contextlib
import os
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headway.errors import CheckpointError, ConfigError
from headway.lock import holder
from headway.report.glance import head_and_tail
from headway.report.summary import Summary, summarise
from headway.report.timeline import Timeline, timeline

if TYPE_CHECKING:
    from headway.checkpoint import Checkpoint

JOURNAL_FILE, CONFIG_FILE, LOCK_FILE = "journal.jsonl", "config.yaml", "lock"
REPORT_FILE = "report.html"
DEEPEST = 3
"""Levels of folders that runs are looked for in."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunView:
    """One run, read."""

    path: Path
    events: list[dict[str, Any]]
    told: Timeline
    writer_pid: int | None
    """The process that holds the lock; None: nobody writes this run."""

    @property
    def name(self) -> str:
        """The run's name is its directory's."""
        return self.path.resolve().name

    def checkpoints(self) -> list[Checkpoint]:
        """What is committed, by step."""
        from headway.checkpoint import CheckpointStore

        return CheckpointStore(self.path, attempt="reader").checkpoints()

    def checkpoint(self, which: str) -> Checkpoint:
        """``500``, ``step-00000500``, ``newest`` or ``best``; ConfigError if it is not there."""
        there = self.checkpoints()
        steps = [checkpoint.step for checkpoint in there]
        if not there:
            raise ConfigError(f"{self.path / 'checkpoints'}: there is no checkpoint yet")
        wanted = self._step(which, steps)
        for checkpoint in there:
            if checkpoint.step == wanted:
                return checkpoint
        raise ConfigError(
            f"{self.path}: there is no checkpoint {which!r}; there are "
            f"{', '.join(map(str, steps))}, and `newest` and `best` name two of them"
        )

    def _step(self, which: str, steps: list[int]) -> int | None:
        from headway.report.checkpoint_view import best_checkpoint

        if which in ("newest", "latest", "last"):
            return steps[-1]
        if which == "best":
            return best_checkpoint(self.told, steps)
        digits = which.removeprefix("step-")
        return int(digits) if digits.isascii() and digits.isdigit() else None


def unreadable(view: RunView) -> list[str]:
    """Directories named like a checkpoint whose manifest cannot be read: they were one once."""
    good = {checkpoint.path.name for checkpoint in view.checkpoints()}
    return sorted({path.name for path in (view.path / "checkpoints").glob("step-*")} - good)


def verified(view: RunView, only: Checkpoint | None = None) -> dict[str, list[str]]:
    """What is wrong with each checkpoint, every byte read: name -> problems, empty where good.

    A directory whose manifest cannot be read is named too: it was a checkpoint once.
    """
    from headway.checkpoint import Checkpoint, read_manifest, verify

    if only is not None:
        return {only.path.name: verify(only)}
    found: dict[str, list[str]] = {}
    for path in sorted((view.path / "checkpoints").glob("step-*")):
        try:
            manifest = read_manifest(path)
        except CheckpointError as error:
            found[path.name] = [str(error)]
            continue
        found[path.name] = verify(Checkpoint(manifest.step, path, manifest))
    return found


def find_run(run: str | Path) -> Path:
    """The run directory at a path, or by a name under ``runs/``; ConfigError if there is none."""
    for path in (Path(run), Path("runs") / run):
        if (path / JOURNAL_FILE).is_file() or (path / "checkpoints").is_dir():
            return path
    what = "is a directory, but no run" if Path(run).is_dir() else "is not there"
    raise ConfigError(
        f"{run}: {what} (a run holds {JOURNAL_FILE}). `headway status` lists the runs under runs/"
    )


def open_run(run: str | Path) -> RunView:
    """Read a run's whole journal."""
    from headway.journal import read

    path = find_run(run)
    events = read(path / JOURNAL_FILE)
    return RunView(path=path, events=events, told=timeline(events), writer_pid=writer_pid(path))


def writer_pid(run: Path) -> int | None:
    """The process that holds the run's lock; None if nobody does."""
    who = holder(run / LOCK_FILE)
    return who.pid if who else None


def glance(run: Path, name: str = "") -> Summary:
    """A run summed up from the head and the tail of its journal; ``name``: else its folder's."""
    events, whole = head_and_tail(run / JOURNAL_FILE)
    return summarise(events, name=name or run.name, writer_pid=writer_pid(run), whole=whole)


def runs_in(folder: Path) -> Iterator[Path]:
    """The run directories below ``folder``, or itself; ConfigError if there is no such folder.

    DEEPEST levels down; what lies within a run, and what begins with a dot, is not looked into.
    """
    if not folder.is_dir():
        raise ConfigError(
            f"{folder}: no such directory. Runs live under runs/ unless run.root says otherwise; "
            "name the folder: `headway status FOLDER`"
        )
    yield from _runs_below(folder, DEEPEST)


def _runs_below(folder: Path, deepest: int) -> Iterator[Path]:
    if (folder / JOURNAL_FILE).is_file():
        yield folder
    elif deepest:
        with os.scandir(folder) as entries:
            names = sorted(e.name for e in entries if e.is_dir() and not e.name.startswith("."))
        for name in names:
            with contextlib.suppress(PermissionError, FileNotFoundError):
                yield from _runs_below(folder / name, deepest - 1)


def write_report(run: str | Path, to: Path | None = None) -> Path:
    """Render a run's report to ``to`` (``report.html`` in the run) and return where it is."""
    from headway.evals import pictures, whole
    from headway.report.html import Extras, report_html

    view = open_run(run)
    checkpoints = view.checkpoints()
    told, found = view.told, {}
    if told.evaluations:
        *earlier, newest = told.evaluations
        newest = whole(view.path, newest)
        told = replace(told, evaluations=[*earlier, newest])
        found = pictures(view.path, newest)
    extras = Extras(
        config_lines=changed_lines(config_tree(view.path)),
        commands=commands(view),
        checkpoints={checkpoint.step: checkpoint.bytes for checkpoint in checkpoints},
        tested=[test for c in checkpoints if (test := tested(view.path, c))],
        pictures=found,
    )
    text = report_html(told, name=view.name, writer_pid=view.writer_pid, extras=extras)
    return written(text, to or view.path / REPORT_FILE)


def written(text: str, target: Path) -> Path:
    """A page on disk, whole or not at all; ConfigError where it cannot be written."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f".partial-{target.name}")
        partial.write_text(text, encoding="utf-8")
        partial.replace(target)
    except OSError as error:
        raise ConfigError(f"cannot write the report to {target}: {error.strerror}") from error
    return target


def tested(run: Path, checkpoint: Checkpoint) -> Mapping[str, Any] | None:
    """What ``headway evaluate --split test`` found of exactly these weights; None: not asked.

    ``--from`` can bring other weights to the same step.
    """
    from headway.evals import TEST, facts_of

    found = facts_of(run, checkpoint.step, TEST)
    same = found and found.get("checkpoint_sha256") == checkpoint.manifest.sha256
    return found if same else None


def commands(view: RunView) -> list[tuple[str, str]]:
    """(what it does, command) to go on from this run."""
    from headway.report.appendix import export_command, predict_command

    run = shlex.quote(str(view.path))
    argv = (view.told.attempts[-1].get("command") if view.told.attempts else None) or []
    resume = f"headway train {shlex.quote(str(view.path / CONFIG_FILE))}"
    if argv and Path(str(argv[0])).name == "headway":
        resume = shlex.join(["headway", *map(str, argv[1:])])
    tree = config_tree(view.path)
    to = shlex.quote(f"{view.name}-model")
    return [
        ("continue, as far as the horizon", resume),
        ("ask the trained model", predict_command(run, str(tree.get("recipe")))),
        ("weights for use elsewhere", export_command(run, tree, to)),
        ("the checkpoints, one by one", f"headway checkpoints list {run}"),
    ]


def config_tree(run: Path) -> dict[str, Any]:
    """The run's saved config as plain values; empty if it is not there or cannot be read."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        tree = YAML(typ="safe", pure=True).load((run / CONFIG_FILE).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, YAMLError):
        return {}
    return tree if isinstance(tree, dict) else {}


def changed_lines(tree: Mapping[str, Any]) -> list[str]:
    """``key.path: value`` for what differs from the defaults; the recipe's own section in full."""
    from headway.config import RunConfig, difference

    defaults: dict[str, Any] = {}
    for section, value in tree.items():
        field = RunConfig.model_fields.get(section)
        model: Any = _model(field.annotation) if field else None
        if isinstance(value, Mapping) and model is not None:
            fields = model.model_fields
            own = {key: fields[key].get_default() for key in value if key in fields}
            # A required key has no default; what is absent on the left is a difference.
            defaults[section] = {
                key: _plain(default)
                for key, default in own.items()
                if not fields[key].is_required()
            }
    order = list(tree)
    lines = sorted(
        difference(defaults, tree), key=lambda line: order.index(line.split(".")[0].split(":")[0])
    )
    return [f"{key}: {value}" for line in lines for key, value in [_after(line)] if value != "null"]


def _model(annotation: Any) -> Any:
    """The section's model in ``Section`` or ``Section | None``; None for anything else."""
    candidates = (annotation, *getattr(annotation, "__args__", ()))
    found = [c for c in candidates if getattr(c, "model_fields", None)]
    return found[0] if found else None


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "model_dump"):  # a section within a section
        return value.model_dump(mode="json")
    return list(value) if isinstance(value, tuple) else value


def _after(line: str) -> tuple[str, str]:
    key, _, change = line.partition(": ")
    return key, change.partition(" -> ")[2]
