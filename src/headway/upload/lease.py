"""The lease: one machine writes a run in a bucket, and one that was replaced finds out.

A lock file cannot stop a second machine. The lease is one object, changed only by compare-and-swap,
with a token that grows by one with each holder. The token is the holder's attempt number too, so
that whatever a paused holder still writes is older than all that its successor writes.

Nobody's clock is trusted, however old a lease seems to be: it is free when it was released, when
its holder's process is gone from this machine, or when it was watched, by a clock that only counts,
and not renewed for as long as it lasts.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType

from headway.errors import RemoteError, RunLocked
from headway.upload.faults import Exists
from headway.upload.layout import LEASE_KEY
from headway.upload.line import Line
from headway.upload.remote import Remote
from headway.upload.sending import md5

RELEASE_SECONDS = 5.0


class LeaseLost(RemoteError):
    """Another machine writes this run now: nothing more may be sent from here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """Who writes a run, as the object says."""

    owner: str
    """Random: tells two holders with the same host and pid apart."""
    host: str
    pid: int
    machine: str
    """Boot and process namespace, where a pid means something; empty where unknown."""
    token: int
    acquired_at: str
    """UTC, for people."""
    expires_at: float
    """Seconds since 1970 by the holder's clock: for people, nothing is decided by it."""
    seconds: float
    """How long it lasts after each renewal."""
    renewals: int = 0
    """Counted, so that a renewal shows even if the holder's clock stands still or goes back."""
    released: bool = False

    def __str__(self) -> str:
        until = datetime.fromtimestamp(self.expires_at, UTC).isoformat(timespec="seconds")
        return f"process {self.pid} on {self.host}, since {self.acquired_at}, until {until}"


class Lease:
    """Held from ``acquire`` to ``release``; renewed beside training while used as a context."""

    def __init__(
        self,
        remote: Remote,
        line: Line,
        holder: Holder,
        renewed_at: float,
        clocks: tuple[Clock, Clock],
    ) -> None:
        self.holder = holder
        self._remote, self._line = remote, line
        self._wall, self._clock = clocks
        self._renewed_at = renewed_at
        self._stored_md5 = md5(encoded(holder))
        self._lost: LeaseLost | None = None
        self._lock = threading.Lock()
        self._done = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def token(self) -> int:
        """Grows with each holder."""
        return self.holder.token

    def check(self) -> None:
        """Raise LeaseLost unless this process still holds it, by asking the bucket."""
        if self._lost:
            raise self._lost
        if self._clock() - self._renewed_at > self.holder.seconds / 2:
            self.renew()
        else:
            self._compare(self._line.ask(lambda: read(self._remote))[0])

    def renew(self, at_least: int = 0) -> None:
        """Hold it for another ``seconds``. Raises LeaseLost.

        ``at_least``: raise the token to this, because attempts were made that held no lease.
        """
        with self._lock:
            if self._lost:
                raise self._lost
            asked_at = self._clock()
            holder = replace(
                self.holder,
                expires_at=self._wall() + self.holder.seconds,
                renewals=self.holder.renewals + 1,
                token=max(self.token, at_least),
            )
            if not swap(self._remote, self._line, holder, self._stored_md5):
                self._compare(self._line.ask(lambda: read(self._remote))[0])
                raise RemoteError(f"{self._remote.url}/{LEASE_KEY} could not be renewed")
            self.holder, self._renewed_at = holder, asked_at
            self._stored_md5 = md5(encoded(holder))

    def release(self) -> None:
        """Give it back, so that the next attempt need not wait; twice is fine. Never raises.

        A bucket that does not answer is not waited for: the lease runs out by itself.
        """
        self._done.set()
        self._line.cut()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._lost is None and not self.holder.released:
            gone = replace(self.holder, released=True)
            try:
                swap(self._remote, Line(patience_seconds=RELEASE_SECONDS), gone, self._stored_md5)
            except Exception:
                return
            self.holder = gone

    def __enter__(self) -> Lease:
        self._thread = threading.Thread(target=self._keep, name="upload-lease")
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()

    def _keep(self) -> None:
        """Runs on the lease's thread. A failed renewal is tried again; a lost lease ends it."""
        while not self._done.wait(self.holder.seconds / 3):
            try:
                self.renew()
            except LeaseLost:
                return
            except Exception:  # check() says it to the uploader, before a commit
                continue

    def _compare(self, found: Holder | None) -> None:
        if found is None or found.owner != self.holder.owner:
            now = f"by {found}" if found and not found.released else "by nobody"
            self._lost = LeaseLost(
                f"{self._remote.url} is written {now}; this attempt's lease (token {self.token}) "
                "is gone. Nothing more is sent from here, and what was sent is whole. Stop this "
                "run, or the other one; the one that goes on is told to: `headway train`"
            )
            raise self._lost


Clock = Callable[[], float]


def acquire(
    remote: Remote,
    *,
    seconds: float = 60.0,
    at_least: int = 1,
    say: Callable[[str], None] = lambda line: None,
    line: Line | None = None,
    wall: Clock = time.time,
    clock: Clock = time.monotonic,
    wait: Callable[[float], object] = time.sleep,
) -> Lease:
    """Become the writer of the run in ``remote``; its token is at least ``at_least``.

    Raises RunLocked when another process renews the lease; waits up to ``seconds`` to see whether
    it does. Raises RemoteError when the bucket cannot be asked.
    """
    line = line or Line(patience_seconds=seconds)
    while True:
        found, was = line.ask(lambda: read(remote))
        if found is not None and not is_free(found):
            say(f"the bucket says that {found} writes this run; waiting to see whether it does")
            found, was = watched(remote, line, found, clock, wait)
        holder = Holder(
            owner=secrets.token_hex(8),
            host=socket.gethostname(),
            pid=os.getpid(),
            machine=this_machine(),
            token=max(at_least, found.token + 1 if found else 1),
            acquired_at=datetime.fromtimestamp(wall(), UTC).isoformat(timespec="seconds"),
            expires_at=wall() + seconds,
            seconds=seconds,
        )
        asked_at = clock()
        if swap(remote, line, holder, was):
            return Lease(remote, line, holder, asked_at, (wall, clock))


def watched(
    remote: Remote, line: Line, held: Holder, clock: Clock, wait: Callable[[float], object]
) -> tuple[Holder | None, str | None]:
    """The lease after it was not renewed for as long as it lasts; RunLocked if it was."""
    since = clock()
    while True:
        wait(min(2.0, held.seconds / 10))
        now, was = line.ask(lambda: read(remote))
        if now is None or now.released:
            return now, was
        if now != held:
            raise RunLocked(
                f"{remote.url} is being written by {now}. Stop it, or give this run another "
                "name (run.name) or another upload.to. A process that was killed holds it for "
                f"{now.seconds:.0f} s at most: no object needs to be deleted"
            )
        if clock() - since > held.seconds:
            return held, was


def is_free(found: Holder) -> bool:
    """Whether a lease may be taken without watching it first."""
    here = bool(found.machine) and found.machine == this_machine()
    return found.released or (here and not is_alive(found.pid))


def read(remote: Remote) -> tuple[Holder | None, str | None]:
    """Who holds the lease, or held it last, and the MD5 of what says so; None: nobody ever did."""
    if remote.head(LEASE_KEY) is None:
        return None, None
    data = remote.read(LEASE_KEY)
    try:
        return Holder(**json.loads(data)), md5(data)
    except (ValueError, TypeError) as error:
        raise RemoteError(
            f"{remote.url}/{LEASE_KEY} is no lease of this headway: {error}. If no other machine "
            "writes this run, delete that object"
        ) from error


def swap(remote: Remote, line: Line, new: Holder, expected: str | None) -> bool:
    """Write the lease if it still has this MD5 (None: is absent); False if it has not."""
    try:
        line.ask(lambda: remote.replace(LEASE_KEY, encoded(new), expected))
    except Exists:
        # Our own write, whose reply was lost, looks like somebody else's.
        return line.ask(lambda: read(remote))[0] == new
    return True


def encoded(holder: Holder) -> bytes:
    """As it lies in the bucket, the same bytes every time."""
    return (json.dumps(asdict(holder), sort_keys=True) + "\n").encode()


def this_machine() -> str:
    """Boot and process namespace: two processes with the same answer can see each other's pids."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}:{os.stat('/proc/self/ns/pid').st_ino}"  # noqa: PTH116
    except OSError:
        return ""


def is_alive(pid: int) -> bool:
    """Whether a process of this number runs here."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
