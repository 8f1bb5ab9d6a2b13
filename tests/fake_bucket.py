"""A bucket in memory, clients that can be made to fail at any request, and an oracle over it."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from headway.upload.faults import Changed, Exists, Refused, Temporary
from headway.upload.layout import Parcel
from headway.upload.line import Line
from headway.upload.objects import Abilities, RemoteFile


class Killed(BaseException):
    """The client's process is dead: nothing it asks for happens any more."""


@dataclass
class Bucket:
    """What the store holds. Every request is atomic; what is written is seen at once."""

    objects: dict[str, bytes] = field(default_factory=dict)
    written_at: dict[str, float] = field(default_factory=dict)
    now: float = 1_800_000_000.0
    lock: threading.RLock = field(default_factory=threading.RLock)

    def store(self, key: str, data: bytes) -> None:
        self.objects[key] = data
        self.written_at[key] = self.now

    def facts(self, key: str, checksums: bool) -> RemoteFile:
        data = self.objects[key]
        md5 = hashlib.md5(data).hexdigest() if checksums else None
        return RemoteFile(key, len(data), md5, self.written_at[key])


FAULTS = ("fail", "lose", "corrupt", "die", "die after")


class FakeRemote:
    """One client. ``script``: number of a request -> what goes wrong with it."""

    url = "fake://bucket/run"

    def __init__(
        self,
        bucket: Bucket,
        script: Mapping[int, str] | None = None,
        *,
        checksums: bool = True,
        gate: Callable[[str, str], None] = lambda verb, key: None,
    ) -> None:
        self.bucket = bucket
        self.abilities = Abilities(
            create_only=True, checksums=checksums, ranges=True, compare_and_swap=True
        )
        self.script = dict(script or {})
        self.fired: list[tuple[str, str]] = []
        self.calls: list[tuple[str, str]] = []
        self.gate = gate
        self.dead = False

    def _do(self, verb: str, key: str, act: Callable[[bool], object]):
        self.gate(verb, key)
        with self.bucket.lock:
            if self.dead:
                raise Killed
            fault = self.script.pop(len(self.calls), None)
            self.calls.append((verb, key))
            if fault:
                self.fired.append((fault, verb))
            if fault == "die":
                self.dead = True
                raise Killed
            if fault == "fail":
                raise Temporary(f"{verb} {key}: 503")
            if fault == "refuse":
                raise Refused(f"{verb} {key}: 403", "Renew the credentials")
            found = act(fault == "corrupt")
            if fault == "lose":
                raise Temporary(f"{verb} {key}: no answer")
            if fault == "die after":
                self.dead = True
                raise Killed
            return found

    def put(self, key, source, *, create_only=True, sent=None):
        def act(corrupt):
            if create_only and key in self.bucket.objects:
                raise Exists(f"{key} exists")
            data = source if isinstance(source, bytes) else Path(source).read_bytes()
            self.bucket.store(key, flipped(data) if corrupt else data)
            if sent:
                sent(len(data))
            return self.bucket.facts(key, self.abilities.checksums)

        return self._do("put", key, act)

    def head(self, key):
        def act(corrupt):
            there = key in self.bucket.objects
            return self.bucket.facts(key, self.abilities.checksums) if there else None

        return self._do("head", key, act)

    def read(self, key):
        def act(corrupt):
            if key not in self.bucket.objects:
                raise Refused(f"{key}: 404", code="404")
            data = self.bucket.objects[key]
            return flipped(data) if corrupt else data

        return self._do("read", key, act)

    def download(self, key, to, *, got=None):
        def act(corrupt):
            if key not in self.bucket.objects:
                raise Refused(f"{key}: 404", code="404")
            data = self.bucket.objects[key]
            Path(to).write_bytes(flipped(data) if corrupt else data)

        return self._do("download", key, act)

    def list(self, prefix=""):
        def act(corrupt):
            return [
                self.bucket.facts(key, self.abilities.checksums)
                for key in sorted(self.bucket.objects)
                if key.startswith(prefix)
            ]

        return self._do("list", prefix, act)

    def delete(self, keys: Sequence[str]):
        for each in keys:
            self._do("delete", each, lambda corrupt, key=each: self.bucket.objects.pop(key, None))

    def holds(self, key, source):
        def act(corrupt):
            data = source if isinstance(source, bytes) else Path(source).read_bytes()
            return self.bucket.objects.get(key) == data

        return self._do("holds", key, act)

    def replace(self, key, source, expected):
        def act(corrupt):
            there = self.bucket.objects.get(key)
            if (hashlib.md5(there).hexdigest() if there is not None else None) != expected:
                raise Changed(f"{key} changed")
            self.bucket.store(key, source)
            return self.bucket.facts(key, self.abilities.checksums)

        return self._do("replace", key, act)


def flipped(data: bytes) -> bytes:
    """One bit is other than it was."""
    return bytes([data[0] ^ 1]) + data[1:] if data else b"?"


@dataclass
class Time:
    """A clock that only waiting moves: no test sleeps."""

    now: float = 1000.0
    waits: list[float] = field(default_factory=list)

    def __call__(self) -> float:
        return self.now

    def pause(self, seconds: float) -> bool:
        self.waits.append(seconds)
        self.now += seconds
        return False


def patient(patience_seconds: float = 600.0, bytes_per_second: float | None = None) -> Line:
    """A line that waits without waiting."""
    time = Time()
    return Line(
        patience_seconds=patience_seconds,
        bytes_per_second=bytes_per_second,
        clock=time,
        pause=time.pause,
        chance=lambda: 0.5,
    )


SIZES = {"model/adapter.safetensors": 3000, "model/config.json": 0, "state.json": 120}


def saved(run: Path, step: int, attempt: int = 1, sizes: Mapping[str, int] = SIZES) -> Parcel:
    """A real committed checkpoint in ``run``, and the parcel made from it."""
    from headway.bucket import parcel_of
    from headway.checkpoint import CheckpointStore

    store = CheckpointStore(run, attempt=str(attempt), reserve_bytes=0)
    partial = store.open(step, 0)
    for name, size in sizes.items():
        seed = f"{step} {attempt} {name}".encode()
        partial.write(name, [(hashlib.sha256(seed).digest() * (size // 32 + 1))[:size]])
    return parcel_of(partial.commit({"loss": 1.0 / step}))


def listed(bucket: Bucket) -> dict[tuple[int, int], list[str]]:
    """The oracle: (attempt, step) of every manifest there -> what is wrong with that copy.

    Independent of the code under test: names, sizes and hashes are compared by hand.
    """
    found: dict[tuple[int, int], list[str]] = {}
    for key, data in bucket.objects.items():
        if not (key.startswith("checkpoints/") and key.endswith("/manifest.json")):
            continue
        folder = key.removesuffix("manifest.json")
        wrong: list[str] = []
        try:
            tree = json.loads(data)
        except ValueError:
            tree = {"files": {}, "step": -1, "attempt": "-1"}
            wrong.append("the manifest is damaged")
        if hashlib.sha256(data).hexdigest()[:12] != folder.rstrip("/").rpartition("-")[2]:
            wrong.append("the manifest is not the one its folder is named after")
        for name, entry in tree["files"].items():
            there = bucket.objects.get(folder + name)
            if there is None or hashlib.sha256(there).hexdigest() != entry["sha256"]:
                wrong.append(f"{name} is missing or other")
        found[int(tree["attempt"]), tree["step"]] = wrong
    return found
