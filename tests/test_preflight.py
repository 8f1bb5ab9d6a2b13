"""Checks become answers, whatever they do; and what the operating system says is judged."""

from __future__ import annotations

import errno
import http.server
import json
import os
import threading
from collections.abc import Iterator
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest

from headway.errors import DataError, StorageFull
from headway.preflight import Check, Finding, ask, has_blocker, prove_folder, tree
from headway.preflight.folder import Disk, _refused_elsewhere
from headway.preflight.host import (
    cpu_limit,
    environment,
    first_process,
    limit_findings,
    locale_findings,
    memory_findings,
    memory_limit_bytes,
    shared_memory_of,
    shown,
    usable_memory_bytes,
)
from headway.preflight.network import reach, sane_clock


def note(what: str, level: Any = "note", **more: str) -> Finding:
    return Finding(level=level, name="it", what=what, **more)


# ------------------------------------------------------------------ asking


def test_checks_are_asked_in_order_and_each_is_timed() -> None:
    now = iter([10.0, 12.5, 20.0, 20.25])
    asked: list[str] = []

    def answer(name: str) -> list[Finding]:
        asked.append(name)
        return [note(name)]

    checks = [Check("a", lambda: answer("a")), Check("b", lambda: answer("b"))]
    answers = list(ask(checks, clock=lambda: next(now)))
    assert asked == ["a", "b"]
    assert [(a.name, a.seconds, a.level) for a in answers] == [("a", 2.5, "ok"), ("b", 0.25, "ok")]


def test_an_answer_is_there_before_the_next_check_is_asked() -> None:
    asked: list[str] = []
    checks = [Check(name, lambda name=name: asked.append(name) or []) for name in "ab"]
    answers = ask(checks)
    assert next(answers).name == "a" and asked == ["a"]


def test_a_headway_error_is_a_blocker_with_its_own_words_and_keeps_its_exit_code() -> None:
    def full() -> Iterator[Finding]:
        yield note("found before")
        raise StorageFull("no room in /x; free some")

    [answer] = ask([Check("disk", full)])
    assert [f.what for f in answer.findings] == ["found before", "no room in /x; free some"]
    assert answer.level == "blocker" and answer.findings[1].name == "disk"
    assert answer.error is not None and answer.error.exit_code == 77


@pytest.mark.parametrize("error", [ZeroDivisionError("x"), OSError(5, "bad"), MemoryError()])
def test_any_other_exception_is_a_blocker_that_names_the_check_and_the_place(
    error: Exception,
) -> None:
    def breaks() -> list[Finding]:
        raise error

    first, second = ask([Check("odd", breaks), Check("next", lambda: [note("fine")])])
    [finding] = first.findings
    assert finding.level == "blocker" and first.error is None
    assert finding.what.startswith(f"the check odd could not be finished: {type(error).__name__}")
    assert "test_preflight.py, line" in finding.why and finding.fix
    assert second.level == "ok"


def test_a_person_who_stops_the_check_stops_it() -> None:
    """Negative control: not everything that is raised is an answer."""

    def stopped() -> list[Finding]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(ask([Check("long", stopped)]))


def test_what_needs_a_blocked_check_is_not_asked_and_says_why() -> None:
    def bad() -> list[Finding]:
        raise DataError("no rows")

    asked: list[str] = []
    checks = [
        Check("data", bad),
        Check("model", lambda: asked.append("model") or [], needs=("data",)),
        Check("price", lambda: asked.append("price") or [], needs=("model",)),
        Check("disk", lambda: asked.append("disk") or []),
    ]
    answers = {a.name: a for a in ask(checks)}
    assert asked == ["disk"]
    assert answers["model"].level == "not asked" and answers["model"].missing == "data"
    assert answers["price"].missing == "model"
    assert has_blocker(answers.values())


def test_a_warning_blocks_nothing() -> None:
    answers = list(
        ask(
            [
                Check("one", lambda: [note("careful", "warning")]),
                Check("two", lambda: [note("read me", why="because")], needs=("one",)),
            ]
        )
    )
    assert [a.level for a in answers] == ["warning", "note"]
    assert not has_blocker(answers)


def test_the_answers_are_plain_json() -> None:
    def bad() -> list[Finding]:
        raise DataError("no rows")

    checks = [Check("data", bad), Check("model", list, needs=("data",))]
    told = json.loads(json.dumps(tree(ask(checks))))
    assert told["blockers"] == ["data"] and told["warnings"] == []
    assert [c["level"] for c in told["checks"]] == ["blocker", "not asked"]
    assert told["checks"][0]["findings"][0]["what"] == "no rows"
    assert told["checks"][1]["needs"] == "data"


# ------------------------------------------------------------------ a folder


def proved(folder: Path, **other: Any) -> list[Finding]:
    return list(prove_folder(folder, Disk(**other)))


def test_a_folder_that_works_says_so_and_nothing_is_left(tmp_path: Path) -> None:
    [finding] = proved(tmp_path / "runs" / "a")
    assert finding.level == "note" and "renames and locks" in finding.what
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_was_there_stays_with_what_is_in_it(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "file").write_text("mine")
    assert proved(tmp_path / "runs")[0].level == "note"
    assert [p.name for p in (tmp_path / "runs").iterdir()] == ["file"]


def test_what_a_killed_check_left_is_removed_by_a_later_one(tmp_path: Path) -> None:
    for name, age in ((".preflight-old", 7200.0), (".preflight-now", 0.0)):
        (tmp_path / name).mkdir()
        then = (tmp_path / name).stat().st_mtime - age
        os.utime(tmp_path / name, (then, then))
    assert proved(tmp_path)[0].level == "note"
    assert [p.name for p in tmp_path.iterdir()] == [".preflight-now"]


def failing(number: int) -> Any:
    def fail(*_: Any) -> None:
        raise OSError(number, os.strerror(number), "there")

    return fail


def copies(old: Path, new: Path) -> None:
    new.mkdir(exist_ok=True)
    for file in old.iterdir():
        (new / file.name).write_bytes(file.read_bytes())


def replaces(old: Path, new: Path) -> None:
    if new.exists():
        for file in new.iterdir():
            file.unlink()
        new.rmdir()
    old.rename(new)


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ({"rename": failing(errno.EXDEV)}, "Invalid cross-device link"),
        ({"rename": copies}, "does not rename a folder in one piece"),
        ({"rename": replaces}, "renames a folder over another one"),
        ({"lock": failing(errno.ENOLCK)}, "gives no lock"),
        ({"refused_elsewhere": lambda path: False}, "gives one lock to two processes"),
        ({"sync": failing(errno.EIO)}, "Input/output error"),
        ({"rename": failing(errno.ENOSPC)}, "No space left on device"),
        ({"rename": failing(errno.EROFS)}, "Read-only file system"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_disk_that_cannot_keep_a_run_is_a_blocker(
    tmp_path: Path, fault: dict[str, Any], words: str
) -> None:
    [finding] = proved(tmp_path / "runs", **fault)
    assert finding.level == "blocker" and words in finding.what
    assert finding.why and finding.fix
    assert list(tmp_path.iterdir()) == []


def test_a_file_where_the_folder_should_be_is_a_blocker(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("")
    [finding] = proved(tmp_path / "runs" / "a")
    assert finding.level == "blocker" and "Not a directory" in finding.what


def test_a_lock_is_proved_by_another_process(tmp_path: Path) -> None:
    """Negative control: without a lock the other process would get one."""
    import fcntl

    (tmp_path / "file").write_bytes(b"")
    with (tmp_path / "file").open("r+b") as stream:
        assert not _refused_elsewhere(tmp_path / "file")
        fcntl.lockf(stream, fcntl.LOCK_EX)
        assert _refused_elsewhere(tmp_path / "file")


# ------------------------------------------------------------------ the host


def write(root: Path, **files: str) -> Path:
    """``proc__meminfo="…"``: another machine's files."""
    for name, text in files.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


MEMINFO = "MemTotal:       16000000 kB\nSwapTotal: 4000000 kB\nSwapFree:  4000000 kB\n"


def levels(findings: Iterator[Finding]) -> list[tuple[str, str]]:
    return [(f.level, f.what) for f in findings]


def test_a_container_that_may_use_less_memory_than_there_is_is_warned_of(tmp_path: Path) -> None:
    root = write(tmp_path, proc__meminfo=MEMINFO, proc__self__cgroup="0::/\n")
    limit = root / "sys/fs/cgroup/memory.max"
    assert levels(memory_findings(root)) == [("note", "16.4 GB")]
    limit.parent.mkdir(parents=True)
    limit.write_text("max\n")
    assert memory_limit_bytes(root) is None
    limit.write_text("8000000000\n")
    [(level, what)] = levels(memory_findings(root))
    assert level == "warning" and "8.0 GB of the machine's 16.4 GB" in what
    assert usable_memory_bytes(root) == 8_000_000_000


def test_the_tightest_limit_of_all_groups_above_counts(tmp_path: Path) -> None:
    root = write(tmp_path, proc__self__cgroup="0::/pod/box\n", proc__meminfo=MEMINFO)
    for place, limit in (("", "max"), ("pod", "3000000000"), ("pod/box", "9000000000")):
        (root / "sys/fs/cgroup" / place).mkdir(parents=True, exist_ok=True)
        (root / "sys/fs/cgroup" / place / "memory.max").write_text(limit)
    (root / "sys/fs/cgroup/pod/cpu.max").write_text("150000 100000\n")
    assert memory_limit_bytes(root) == 3_000_000_000
    assert cpu_limit(root) == 1.5


def test_limits_of_old_control_groups_are_read_too(tmp_path: Path) -> None:
    folder = tmp_path / "sys/fs/cgroup"
    (folder / "memory").mkdir(parents=True)
    (folder / "cpu").mkdir()
    (folder / "memory/memory.limit_in_bytes").write_text("9223372036854771712\n")
    (folder / "cpu/cpu.cfs_quota_us").write_text("-1\n")
    (folder / "cpu/cpu.cfs_period_us").write_text("100000\n")
    assert memory_limit_bytes(tmp_path) is None and cpu_limit(tmp_path) is None
    (folder / "memory/memory.limit_in_bytes").write_text("1000000000\n")
    (folder / "cpu/cpu.cfs_quota_us").write_text("400000\n")
    assert memory_limit_bytes(tmp_path) == 1_000_000_000 and cpu_limit(tmp_path) == 4.0


def test_swap_in_use_is_warned_of(tmp_path: Path) -> None:
    root = write(tmp_path, proc__meminfo=MEMINFO.replace("SwapFree:  4000000", "SwapFree: 100"))
    assert ("warning", "4.1 GB of swap are in use") in levels(memory_findings(root))


@pytest.mark.fault(38)
@pytest.mark.parametrize(("name", "level"), [("bash", "warning"), ("tini", "note"), ("", "note")])
def test_a_shell_as_the_first_process_is_warned_of(tmp_path: Path, name: str, level: str) -> None:
    [finding] = first_process(write(tmp_path, proc__1__comm=f"{name}\n"))
    assert finding.level == level


def test_dead_processes_that_nobody_collects_are_counted(tmp_path: Path) -> None:
    root = write(tmp_path, proc__1__comm="python3\n")
    for number in range(2, 14):
        write(tmp_path, **{f"proc__{number}__stat": f"{number} (a) b) {'Z' if number else 'S'} 1"})
    [finding] = first_process(root)
    assert finding.level == "warning" and "12 dead processes" in finding.what


def test_few_open_files_and_little_shared_memory_are_warned_of() -> None:
    assert [f.level for f in limit_findings(1024)] == ["warning"]
    assert [f.level for f in limit_findings(65536)] == ["note"]
    assert [f.level for f in limit_findings(-1)] == ["note"]
    assert [f.level for f in shared_memory_of(64 << 20)] == ["warning"]
    assert [f.level for f in shared_memory_of(8 << 30)] == ["note"]


def test_a_locale_that_is_not_utf_8_is_warned_of() -> None:
    assert [f.level for f in locale_findings({"texts": "UTF-8", "screen": "utf8"})] == ["note"]
    [finding] = locale_findings({"texts": "ANSI_X3.4-1968", "screen": "utf-8"})
    assert finding.level == "warning" and "ANSI_X3.4-1968" in finding.what


# ------------------------------------------------------------------ the environment


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("CUDA_LAUNCH_BLOCKING", "1", "slow"),
        ("WORLD_SIZE", "4", "wait for other processes"),
        ("OMP_NUM_THREADS", "64", "more than the 8 processors"),
    ],
)
def test_a_variable_that_surprises_is_a_warning(name: str, value: str, words: str) -> None:
    findings = list(environment({name: value}, cpus=8))
    [warning] = [f for f in findings if f.level == "warning"]
    assert words in warning.why and warning.fix
    assert all(f.level == "note" for f in environment({"HF_HUB_OFFLINE": "1"}, cpus=8))


def test_no_secret_is_ever_shown() -> None:
    secrets = {
        "HF_TOKEN": "hf_planted1",
        "AWS_SECRET_ACCESS_KEY": "planted2",
        "AWS_ACCESS_KEY_ID": "planted3",
        "WANDB_API_KEY": "planted4",
        "GOOGLE_APPLICATION_CREDENTIALS": "/home/me/planted5.json",
        "HTTPS_PROXY": "http://me:planted6@proxy:8080/x?sig=planted7",
        "HF_ENDPOINT": "https://planted8@hub.example",
    }
    [finding] = environment(secrets, cpus=8)
    assert "planted" not in repr(finding)
    assert all(name in finding.what for name in secrets)
    assert "HTTPS_PROXY=http://proxy:8080/x" in finding.what


def test_an_ordinary_value_is_shown() -> None:
    """Negative control of the test above: what is hidden is not everything."""
    assert shown("CUDA_VISIBLE_DEVICES", "0,1") == "0,1"
    assert shown("CUDA_VISIBLE_DEVICES", "") == '""'


# ------------------------------------------------------------------ the network and the clock


class Hub(http.server.BaseHTTPRequestHandler):
    def do_HEAD(self) -> None:
        code = 404 if self.path == "/gone" else 200
        self.send_response_only(code)
        self.send_header("Date", formatdate(1_800_000_000, usegmt=True))
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def hub() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("localhost", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://localhost:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize("path", ["", "/gone"])
def test_whoever_answers_is_reached(hub: str, path: str) -> None:
    [finding] = reach(hub + path, clock=lambda: 1_800_000_030.0)
    assert finding.level == "note" and f"{hub} answers" in finding.what


def test_a_clock_far_from_the_answer_is_warned_of(hub: str) -> None:
    _, finding = reach(hub, clock=lambda: 1_800_001_000.0)
    assert finding.level == "warning" and "1000 s ahead of" in finding.what
    _, finding = reach(hub, clock=lambda: 1_799_999_000.0)
    assert "1000 s behind" in finding.what


@pytest.mark.parametrize("url", ["http://localhost:1", "http://no.such.host.invalid", "nonsense"])
def test_to_be_offline_is_a_note_and_no_error(url: str) -> None:
    [finding] = reach(url)
    assert finding.level == "note" and "does not answer" in finding.what and finding.fix


def test_a_clock_before_the_newest_file_is_warned_of(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    written = file.stat().st_mtime
    [finding] = sane_clock([file], clock=lambda: written - 7200)
    assert finding.level == "warning" and "2.0 hours before" in finding.what
    [finding] = sane_clock([file], clock=lambda: written + 1)
    assert finding.level == "note"
