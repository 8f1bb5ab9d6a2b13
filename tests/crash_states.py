"""What a disk may hold after the power failed: any prefix of a program's calls, less any of the
effects that nothing had made certain.

Harsher than a real file system: an effect that was not synced may be lost although later ones are
there. A file's data is certain once the file was synced, a name once its directory was. After
Pillai et al., All File Systems Are Not Created Equal (OSDI 2014).
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

ROOT = 0


@dataclass(frozen=True)
class Effect:
    """One change of the directory or file ``of``."""

    of: int
    what: str
    """``named`` (a new entry), ``gone``, ``moved``, ``data``."""
    name: str = ""
    to: str = ""
    node: int = -1
    data: bytes = b""


@dataclass(frozen=True)
class Sync:
    """From here on the disk has ``of`` as it is; ``path``: where that was, seen from the root."""

    of: int
    path: str


@dataclass(frozen=True)
class Said:
    """The program acknowledged something."""

    what: Any


@dataclass
class Tree:
    """Directories (name -> node) and files (their bytes)."""

    folders: dict[int, dict[str, int]] = field(default_factory=lambda: {ROOT: {}})
    files: dict[int, bytes] = field(default_factory=dict)

    def apply(self, effect: Effect) -> None:
        """Make one change; one whose ground was lost does nothing."""
        if effect.what == "data":
            self.files[effect.of] = self.files.get(effect.of, b"") + effect.data
            return
        entries = self.folders.setdefault(effect.of, {})
        if effect.what == "named":
            entries[effect.name] = effect.node
        elif effect.what == "gone":
            entries.pop(effect.name, None)
        elif effect.name in entries:
            entries[effect.to] = entries.pop(effect.name)


Content = dict[str, bytes | None]
"""Path -> bytes, None for a directory."""


class Recorder:
    """Notes what this process does below ``root`` through ``os``; ``root`` must be empty.

    What the kernel is asked for otherwise (``open`` without ``os``) is not seen: compare ``now``
    with the real directory afterwards.
    """

    def __init__(self, root: Path, patch: pytest.MonkeyPatch) -> None:
        self.root = root.resolve()
        self.events: list[Effect | Sync | Said] = []
        self.folders = {ROOT}
        self._tree = Tree()
        self._fds: dict[int, int] = {}
        self._fresh = itertools.count(1)
        names = ("open", "close", "write", "fsync", "mkdir", "rename", "unlink", "rmdir")
        self._os = {name: getattr(os, name) for name in names}
        for name in names:
            patch.setattr(os, name, getattr(self, f"watched_{name}"))

    def say(self, what: Any) -> None:
        """Note an acknowledgement."""
        self.events.append(Said(what))

    def now(self) -> Content:
        """The directory as all calls together have made it."""
        return content(self._tree, self.folders)

    # ------------------------------------------------------------- the calls

    def watched_open(self, path: Any, flags: int, mode: int = 0o777, *, dir_fd: Any = None) -> int:
        fd: int = self._os["open"](path, flags, mode, dir_fd=dir_fd)
        if place := self._place(path, dir_fd):
            folder, name = place
            node = self._tree.folders[folder].get(name) if name else ROOT
            if node is None:
                node = next(self._fresh)
                self._do(Effect(folder, "named", name, node=node))
            self._fds[fd] = node
        return fd

    def watched_close(self, fd: int) -> None:
        self._fds.pop(fd, None)
        self._os["close"](fd)

    def watched_write(self, fd: int, data: Any) -> int:
        written: int = self._os["write"](fd, data)
        if fd in self._fds:
            self._do(Effect(self._fds[fd], "data", data=bytes(data)[:written]))
        return written

    def watched_fsync(self, fd: int) -> None:
        self._os["fsync"](fd)
        if fd in self._fds:
            where = Path(f"/proc/self/fd/{fd}").readlink().relative_to(self.root)
            self.events.append(Sync(self._fds[fd], where.as_posix()))

    def watched_mkdir(self, path: Any, mode: int = 0o777, *, dir_fd: Any = None) -> None:
        self._os["mkdir"](path, mode, dir_fd=dir_fd)
        if place := self._place(path, dir_fd):
            node = next(self._fresh)
            self.folders.add(node)
            self._tree.folders[node] = {}
            self._do(Effect(place[0], "named", place[1], node=node))

    def watched_rename(self, source: Any, target: Any) -> None:
        self._os["rename"](source, target)
        if place := self._place(source, None):
            folder, name = place
            there = self._place(target, None)
            assert there and there[0] == folder, "a move between directories is not modelled"
            self._do(Effect(folder, "moved", name, to=there[1]))

    def watched_unlink(self, path: Any, *, dir_fd: Any = None) -> None:
        self._os["unlink"](path, dir_fd=dir_fd)
        self._end(path, dir_fd)

    def watched_rmdir(self, path: Any, *, dir_fd: Any = None) -> None:
        self._os["rmdir"](path, dir_fd=dir_fd)
        self._end(path, dir_fd)

    def _end(self, path: Any, dir_fd: Any) -> None:
        if place := self._place(path, dir_fd):
            self._do(Effect(place[0], "gone", place[1]))

    def _do(self, effect: Effect) -> None:
        self.events.append(effect)
        self._tree.apply(effect)

    def _place(self, path: Any, dir_fd: int | None) -> tuple[int, str] | None:
        """(directory, name in it); the root's own name is empty; None outside the root."""
        if dir_fd is not None:
            return (self._fds[dir_fd], str(path)) if dir_fd in self._fds else None
        whole = Path(os.path.abspath(path))  # noqa: PTH100 - resolve() would open links
        if not whole.is_relative_to(self.root):
            return None
        *above, name = ("", *whole.relative_to(self.root).parts)
        node = ROOT
        for part in above[1:]:
            node = self._tree.folders[node][part]
        return node, name


# ------------------------------------------------------------------ what the disk may hold


@dataclass(frozen=True)
class State:
    """One thing that the next start may find."""

    calls: int
    """How many of the recorded events had happened."""
    content: Content
    said: tuple[Any, ...]


def states(events: Sequence[Effect | Sync | Said], folders: set[int]) -> Iterator[State]:
    """Every distinct state, by number of calls; states of equal content and claims once."""
    seen = set()
    for calls in range(len(events) + 1):
        before = events[:calls]
        said = tuple(event.what for event in before if isinstance(event, Said))
        for lost in choices(in_doubt(before)):
            tree = Tree()
            for number, event in enumerate(before):
                if isinstance(event, Effect) and number not in lost:
                    tree.apply(event)
            found = content(tree, folders)
            key = (said, tuple(sorted(found.items(), key=lambda item: item[0])))
            if key not in seen:
                seen.add(key)
                yield State(calls, found, said)


def in_doubt(events: Sequence[Effect | Sync | Said]) -> list[int]:
    """Numbers of the effects after which nothing synced what they changed."""
    synced = {event.of: number for number, event in enumerate(events) if isinstance(event, Sync)}
    return [
        number
        for number, event in enumerate(events)
        if isinstance(event, Effect) and synced.get(event.of, -1) < number
    ]


def choices(doubtful: Sequence[int]) -> Iterator[frozenset[int]]:
    """Which of them are lost: every subset."""
    for size in range(len(doubtful) + 1):
        yield from map(frozenset, itertools.combinations(doubtful, size))


def content(tree: Tree, folders: set[int], node: int = ROOT, at: str = "") -> Content:
    """What can be reached from a directory, by path."""
    found: Content = {}
    for name, inner in tree.folders.get(node, {}).items():
        path = f"{at}{name}"
        if inner in folders:
            found[path] = None
            found |= content(tree, folders, inner, f"{path}/")
        else:
            found[path] = tree.files.get(inner, b"")
    return found


def written(found: Content, root: Path) -> Path:
    """The state as a real directory, which must not exist yet."""
    root.mkdir()
    for path, data in sorted(found.items(), key=lambda item: item[0]):
        if data is None:
            (root / path).mkdir()
        else:
            (root / path).write_bytes(data)
    return root
