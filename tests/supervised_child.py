"""A stand-in for a trainer: journals some steps and ends in a scripted way. Standard library only.

``supervised_child.py FOLDER '[restored, last, end]'``. ``restored`` null: it dies before it opens
the journal. Also the supervisor as a process of its own, for tests of terminals and process 1.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
from datetime import UTC, datetime
from pathlib import Path


def main(folder: Path, restored: int | None, last: int, end: str) -> None:
    """One attempt."""
    words = end.split()
    if words[0] != "hang" or "unasked" not in words:
        sys.path.insert(0, str(Path(__file__).parent.parent / "src"))
        from headway.supervise.child import answer_with_stacks

        answer_with_stacks()
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    if restored is not None:
        if words == ["fresh"]:  # as --fresh does
            folder.rename(folder.with_name("replaced"))
        train(folder, restored, last)
    ENDS[words[0]](folder, last, words[1:])


def train(folder: Path, restored: int, last: int) -> None:
    """The lines of an attempt."""
    folder.mkdir(parents=True, exist_ok=True)
    note(folder, "opening", number=1 + count(folder))
    note(folder, "attempt", restored_step=restored)
    note(folder, "plan")
    for step in range(restored + 1, last + 1):
        note(folder, "step", step=step, seconds=0.5)


def count(folder: Path) -> int:
    """Attempts so far."""
    journal = folder / "journal.jsonl"
    return journal.read_text().count('"opening"') if journal.exists() else 0


def note(folder: Path, event: str, number: int | None = None, **facts: object) -> None:
    """One line."""
    head = {
        "event": event,
        "at": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "attempt": number or count(folder),
    }
    with (folder / "journal.jsonl").open("a") as file:
        file.write(json.dumps({**head, **facts}, separators=(",", ":")) + "\n")


# ------------------------------------------------------------------ ends


def kill(folder: Path, last: int, words: list[str]) -> None:
    """By a signal."""
    os.kill(os.getpid(), int(words[0]))


def leave(folder: Path, last: int, words: list[str]) -> None:
    """With a code."""
    sys.exit(int(words[0]))


def error(folder: Path, last: int, words: list[str]) -> None:
    """With last words."""
    note(folder, "stop", reason="error", message=" ".join(words))
    sys.exit(1)


def save(folder: Path, last: int, words: list[str]) -> None:
    """After a save."""
    note(folder, "save", step=int(words[0]))
    sys.exit(1)


def fresh(folder: Path, last: int, words: list[str]) -> None:
    """As a crash of a run that was started over."""
    sys.exit(1)


def hang(folder: Path, last: int, words: list[str]) -> None:
    """For ever, in many ways."""
    if words == ["up"]:
        os.kill(os.getppid(), signal.SIGHUP)
        sys.exit(1)
    if words == ["deaf"]:
        signal.signal(signal.SIGTERM, lambda *_: asked(folder, "SIGTERM"))
    if words == ["polite"]:
        signal.signal(signal.SIGTERM, lambda *_: os._exit(75))
    stand_still(folder, words)


def stand_still(folder: Path, words: list[str]) -> None:
    """The frame that its stacks must name."""
    (folder / "stuck").touch()
    if words == ["in", "C"]:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit("Python ran"))
        libc, mutex = ctypes.PyDLL(None), ctypes.create_string_buffer(128)
        libc.pthread_mutex_lock(mutex)
        libc.pthread_mutex_lock(mutex)  # holds the interpreter for ever: no Python, no thread
    if words == ["stopped"]:
        os.kill(os.getpid(), signal.SIGSTOP)
    if words[:1] == ["until"]:
        while not (folder / "go").exists():
            os.sched_yield()
        sys.exit(0)
    while True:
        signal.pause()


def asked(folder: Path, name: str) -> None:
    """Keeps what it was sent."""
    with (folder / "asked").open("a") as file:
        file.write(f"{name}\n")


def ask(folder: Path, last: int, words: list[str]) -> None:
    """Has its supervisor asked to stop; ends with 75 when all came. A last 0: never ends."""
    came: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda n, _: came.append(n))
    for number in [int(word) for word in words if word != "0"]:
        before = len(came)
        os.kill(os.getppid(), number)
        while len(came) == before:
            os.sched_yield()
        asked(folder, signal.Signals(came[-1]).name)
    while words[-1] == "0":
        signal.pause()
    sys.exit(75)


def wait(folder: Path, last: int, words: list[str]) -> None:
    """Says through a pipe that it is ready; ends with 75 at the first request, noting its sender.

    Of two pending copies of a signal the kernel keeps the first: a terminal's comes before the one
    that was passed on.
    """
    both = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, both)
    pipe = (folder / "fifo").open("w")
    pipe.write("ready")
    pipe.flush()
    if words[-1] != "hold":
        pipe.close()
    came = signal.sigwaitinfo(both)
    by_kernel = " from the terminal" if came.si_code == 0x80 else ""  # SI_KERNEL, sigaction(2)
    asked(folder, signal.Signals(came.si_signo).name + by_kernel)
    os._exit(75)


def say(folder: Path, last: int, words: list[str]) -> None:
    """Writes to its terminal until that is gone; without one it just ends."""
    if words:
        (folder / "fifo").write_text("ready")
    while os.isatty(1):
        os.write(1, b".")
    os.write(1, b".")
    sys.exit(0)


def orphans(folder: Path, last: int, words: list[str]) -> None:
    """Leaves ended grandchildren to process 1, and looks until none of them is left."""
    pids = []
    for _ in range(3):
        inner, outer = os.pipe()
        if (pid := os.fork()) == 0:
            if (grandchild := os.fork()) == 0:
                os._exit(0)
            os.write(outer, b"%d" % grandchild)
            os._exit(0)
        os.waitpid(pid, 0)
        pids.append(int(os.read(inner, 20)))
    while any(Path(f"/proc/{pid}").exists() for pid in pids):
        os.sched_yield()
    (folder / "orphans").write_text("none is left\n")
    sys.exit(1)


ENDS = {
    "kill": kill, "exit": leave, "error": error, "save": save, "fresh": fresh, "hang": hang,
    "ask": ask, "wait": wait, "print": say, "orphans": orphans,
}  # fmt: skip


def supervise(folder: Path, scripts: str) -> int:
    """A supervisor over such attempts, with real time and short delays."""
    from headway.journal import read_events
    from headway.supervise import EVENTS, Ears, Patience, Supervisor

    attempts, journal = iter(json.loads(scripts)), folder / "journal.jsonl"

    def command(again: bool) -> list[str]:
        return [sys.executable, "-S", __file__, str(folder), json.dumps(next(attempts))]

    with Ears() as ears:
        return Supervisor(
            journal,
            command,
            lambda: read_events(journal, EVENTS),
            lambda line: None,
            Patience(first_delay_seconds=0.01),
            wait=ears.wait,
        ).run()


if __name__ == "__main__":
    main(Path(sys.argv[1]), *json.loads(sys.argv[2]))
