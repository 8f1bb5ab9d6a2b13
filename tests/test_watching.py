"""Around the rules: the watchdog, the webhook, and what a run says where."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import urllib.error
from email.message import Message
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

import headway
from headway.api import train
from headway.errors import ConfigError
from headway.journal import read, read_events
from headway.monitor import Sampler, Webhook, look_at, webhook_text
from headway.monitor.gauges import gpu_share
from headway.monitor.history import Gauges
from headway.monitor.webhook import TRIES, WAITING
from headway.records import StopReason
from headway.report.summary import summarise
from headway.report.timeline import timeline as told_of
from headway.show import Quiet
from headway.supervise import SilenceLimits, Watchdog
from headway.viewing import write_report
from toy import TREE, toy_config

ADDRESS = "https://hooks.example/T0/B0/a-canary-that-must-not-leak"


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Kennel:
    """A watchdog with a clock of our own, and what it did."""

    def __init__(self, folder: Path, **limits: Any) -> None:
        self.clock, self.silences, self.ends, self.left = Clock(), [], [], []
        self.dog = Watchdog(
            folder, SilenceLimits(**limits), heartbeat=folder / "heartbeat", clock=self.clock,
            on_silence=lambda seconds, path: self.silences.append((seconds, path)),
            on_end=self.ends.append, leave=self.left.append,
        )  # fmt: skip

    def after(self, seconds: float) -> float:
        self.clock.now += seconds
        return self.dog.look()


# ------------------------------------------------------------------ the watchdog


def test_silence_is_told_once_with_all_stacks_and_ends_with_70(tmp_path: Path) -> None:
    kennel = Kennel(tmp_path, alert_seconds=300, end_seconds=1800)
    kennel.dog.beat(step_seconds=2.0)
    assert kennel.after(299) == pytest.approx(1.0) and kennel.silences == []
    kennel.after(1)
    kennel.after(1000)
    assert [seconds for seconds, _ in kennel.silences] == [300.0]
    stacks = (tmp_path / "hang-1.txt").read_text()
    assert "test_silence_is_told_once" in stacks and "no sign of life for 300 s" in stacks
    kennel.after(499)
    assert kennel.left == []
    kennel.after(1)
    assert kennel.left == [70] and kennel.ends == [1800.0]


def test_a_sign_of_life_begins_the_count_again_and_the_next_silence_is_told_too(
    tmp_path: Path,
) -> None:
    kennel = Kennel(tmp_path, alert_seconds=300)
    kennel.dog.beat(step_seconds=1.0)
    for _ in range(2):
        kennel.after(310)
        kennel.dog.beat()
        kennel.after(10)
    assert [seconds for seconds, _ in kennel.silences] == [310.0, 320.0]
    assert sorted(p.name for p in tmp_path.glob("hang-*")) == ["hang-1.txt", "hang-2.txt"]
    assert int((tmp_path / "heartbeat").read_text()) == 3  # what a supervisor looks at


def test_slow_steps_and_the_time_before_the_first_one_are_no_silence(tmp_path: Path) -> None:
    kennel = Kennel(tmp_path, alert_seconds=300, end_seconds=1800)
    kennel.after(4 * 300 - 1)
    assert kennel.silences == []
    kennel.dog.beat(step_seconds=100.0)
    kennel.after(999)  # ten median steps are 1000 s
    assert kennel.silences == []
    kennel.after(1)
    assert len(kennel.silences) == 1
    kennel.after(999)  # 20 median steps are 2000 s
    assert kennel.left == []
    kennel.after(1)
    assert kennel.left == [70]


def test_without_an_end_it_only_says_so(tmp_path: Path) -> None:
    kennel = Kennel(tmp_path, alert_seconds=1, end_seconds=None)
    kennel.after(10**6)
    kennel.after(10**6)
    assert len(kennel.silences) == 1 and kennel.left == []


def test_last_words_that_hang_do_not_keep_the_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("headway.supervise.watchdog.LAST_WORDS_SECONDS", 0.01)
    kennel, never = Kennel(tmp_path, alert_seconds=1, end_seconds=1), threading.Event()
    kennel.dog._on_end = lambda seconds: never.wait()
    kennel.after(10)
    assert kennel.left == [70]
    never.set()


HANGS = """
import sys, threading
sys.path[:0] = {paths!r}
from pathlib import Path
from headway.api import train
from headway.records import StepReport
from headway.show import Quiet
from toy import toy_config

class Hangs(Quiet):
    def step(self, report, plan, cost_usd):
        if report.step == 3:
            the_line_it_waits_at = threading.Event()
            the_line_it_waits_at.wait()

watchdog = {{"alert_seconds": 2.0, "end_seconds": 4.0}}
train(toy_config(Path({root!r}), monitor={{"watchdog": watchdog}}), show=Hangs())
"""


def test_a_run_that_hangs_ends_with_70_says_where_and_goes_on_afterwards(tmp_path: Path) -> None:
    tests = Path(__file__).parent
    paths = [str(Path(headway.__file__).parents[1]), str(tests), str(tests / "plugins")]
    program = HANGS.format(paths=paths, root=str(tmp_path))
    environment = {**os.environ, "PYTHONPATH": ":".join(paths), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=environment, timeout=90
    )
    assert done.returncode == 70, done.stderr[-3000:]
    assert "in step" in (tmp_path / "run/hang-1.txt").read_text()
    events = read(tmp_path / "run/journal.jsonl")
    assert "a hang" in events[-1]["message"] and events[-1]["event"] == "stop"
    (alert,) = [e for e in events if e["event"] == "alert"]
    assert alert["kind"] == "silence" and "hang-1.txt" in alert["what"]
    assert train(toy_config(tmp_path)) is StopReason.FINISHED


# ------------------------------------------------------------------ the webhook


class Slack(BaseHTTPRequestHandler):
    """A real server that answers as told and keeps what it was sent."""

    answers: list[int]
    got: list[Any]
    heard: threading.Event

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        answer = self.answers.pop(0) if self.answers else 200
        self.send_response(answer)
        self.end_headers()
        if answer == 200:
            self.got.append(json.loads(body))
            self.heard.set()

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def slack() -> Any:
    Slack.answers, Slack.got, Slack.heard = [], [], threading.Event()
    server = HTTPServer(("127.0.0.1", 0), Slack)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://localhost:{server.server_port}/T0/secret"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_message_arrives_after_a_server_that_is_down_for_a_while(slack: str) -> None:
    Slack.answers = [500, 503, 429]
    rests: list[float] = []
    with Webhook(slack, rest=lambda _, s: bool(rests.append(s)), draw=lambda: 1.0) as webhook:
        webhook.send(webhook_text("run", "critical: loss <b>", "it & rose", ""))
        assert Slack.heard.wait(30)
    assert Slack.got == [{"text": "[run] critical: loss &lt;b&gt;\nit &amp; rose"}]
    assert rests == [1.0, 2.0, 4.0] and webhook.dropped() == (0, "")


@pytest.mark.parametrize(
    ("error", "tries", "why"),
    [
        (ConnectionResetError("reset by " + ADDRESS), TRIES, "ConnectionResetError"),
        (TimeoutError(), TRIES, "TimeoutError"),
        (urllib.error.URLError(OSError(ADDRESS)), TRIES, "OSError"),
        (urllib.error.HTTPError(ADDRESS, 503, ADDRESS, Message(), None), TRIES, "HTTP 503"),
        (urllib.error.HTTPError(ADDRESS, 404, ADDRESS, Message(), None), 1, "HTTP 404"),
        (ValueError(f"unknown url type: {ADDRESS}"), 1, "ValueError"),
    ],
)
def test_what_cannot_be_sent_is_dropped_and_counted_without_the_address(
    error: Exception, tries: int, why: str
) -> None:
    posts = []

    def post(url: str, data: bytes) -> None:
        posts.append(url)
        raise error

    with Webhook(ADDRESS, post=post, rest=lambda *_: False) as webhook:
        webhook.send("text")
    assert posts == [ADDRESS] * tries
    assert webhook.dropped() == (1, why) and webhook.dropped()[0] == 0


def test_a_server_that_never_answers_fills_a_bounded_queue_and_stops_nobody() -> None:
    asked, never = threading.Event(), threading.Event()

    def post(url: str, data: bytes) -> None:
        asked.set()
        never.wait()

    webhook = Webhook(ADDRESS, post=post)
    webhook._thread.start()
    webhook.send("first")
    assert asked.wait(30)
    for n in range(WAITING + 5):
        webhook.send(str(n))  # returns at once: the test would end here otherwise
    assert webhook.dropped() == (5, f"{WAITING} others were waiting")
    never.set()
    webhook.__exit__(None, None, None)


def test_an_address_that_is_none_is_refused_without_showing_it() -> None:
    with pytest.raises(ConfigError) as caught:
        Webhook("file:///a-canary")
    assert "canary" not in str(caught.value)


# ------------------------------------------------------------------ gauges


def test_disk_and_gpu_are_read_or_unknown(tmp_path: Path) -> None:
    found = look_at(tmp_path, gpu=False)
    assert found.disk_free_bytes is not None and found.disk_free_bytes > 0
    assert look_at(tmp_path / "gone", gpu=False).disk_free_bytes is None
    assert gpu_share(("no-such-program",)) is None
    assert gpu_share(("false",)) is None


def test_the_least_busy_of_the_gpus_this_process_may_use_counts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answer = ("printf", "0, GPU-aa11, 97\n1, GPU-bb22, 12\n2, GPU-cc33, [N/A]\n")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert gpu_share(answer) == 0.12
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert gpu_share(answer) == 0.97
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-bb,2")
    assert gpu_share(answer) == 0.12
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2")
    assert gpu_share(answer) is None


def test_a_sampler_gives_each_look_once() -> None:
    looked = threading.Event()

    def look() -> Gauges:
        looked.set()
        return Gauges(at_seconds=1.0)

    sampler = Sampler(look, every_seconds=0.001)
    assert sampler.newest() is None
    with sampler:
        assert looked.wait(30)
    sampler._thread.join()
    assert sampler.newest() == Gauges(at_seconds=1.0) and sampler.newest() is None


# ------------------------------------------------------------------ a run


class Says(Quiet):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, what: str) -> None:
        self.lines.append(what)


def test_an_alert_reaches_terminal_journal_report_status_and_webhook_and_the_secret_none(
    tmp_path: Path, slack: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALERTS_TO", slack)
    config = toy_config(tmp_path, task={"nan_at_steps": (3,)}, monitor={"webhook_env": "ALERTS_TO"})
    show = Says()
    assert train(config, show=show) is StopReason.FINISHED
    assert Slack.heard.wait(30)
    (line,) = [line for line in show.lines if line.startswith("ALERT")]
    assert "non finite, step 4" in line and "What to do: look at these rows" in line
    assert Slack.got[0]["text"].startswith("[run] warning: non finite, step 4\nstep 4 was refused")
    run = tmp_path / "run"
    assert "non finite at step 4" in write_report(run).read_text()
    events = read(run / "journal.jsonl")
    assert summarise(events).alerts == ("non finite",)
    for file in run.rglob("*"):
        if file.is_file():
            assert b"T0/secret" not in file.read_bytes(), file
    assert not any("T0/secret" in line for line in show.lines)


def test_alerts_that_did_not_arrive_are_counted_in_the_journal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A webhook that is down costs no step; the steps go on until it has given up."""
    gave_up = threading.Event()

    def post(url: str, data: bytes) -> None:
        gave_up.set()
        raise urllib.error.HTTPError(url, 410, "gone", Message(), None)

    class Waits(Quiet):
        def step(self, report: Any, plan: Any, cost_usd: float | None) -> None:
            if report.step == 6:
                assert gave_up.wait(30)
                webhook_thread = next(t for t in threading.enumerate() if "webhook" in t.name)
                webhook_thread.join(0.5)  # it goes on waiting for the next message

    monkeypatch.setattr("headway.monitor.webhook.post_json", post)
    monkeypatch.setenv("ALERTS_TO", ADDRESS)
    config = toy_config(tmp_path, task={"nan_at_steps": (3,)}, monitor={"webhook_env": "ALERTS_TO"})
    assert train(config, show=Waits()) is StopReason.FINISHED
    (line,) = read_events(tmp_path / "run/journal.jsonl", {"webhook"})
    assert (line["dropped"], line["why"]) == (1, "HTTP 410")


def test_a_webhook_variable_that_is_not_set_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ALERTS_TO", raising=False)
    train(toy_config(tmp_path, monitor={"webhook_env": "ALERTS_TO"}))
    warnings = [e["what"] for e in read_events(tmp_path / "run/journal.jsonl", {"warning"})]
    assert any("ALERTS_TO is not set" in line for line in warnings)


@pytest.mark.parametrize("given", [ADDRESS, "https://x", "A-B", ""])
def test_an_address_in_the_config_is_refused(tmp_path: Path, given: str) -> None:
    with pytest.raises(ConfigError, match="webhook_env"):
        toy_config(tmp_path, monitor={"webhook_env": given})


def test_a_section_left_out_is_the_section_with_its_defaults(tmp_path: Path) -> None:
    assert "monitor" not in TREE
    assert toy_config(tmp_path).monitor == toy_config(tmp_path, monitor={}).monitor


def test_an_alert_of_the_machine_ends_with_its_attempt_and_one_of_learning_does_not() -> None:
    def after(kind: str, restored: int) -> list[Any]:
        events = [
            {"event": "attempt", "attempt": 1, "restored_step": 0},
            {"event": "alert", "attempt": 1, "kind": kind, "step": 50},
            {"event": "attempt", "attempt": 2, "restored_step": restored},
        ]
        return [alert["kind"] for alert in told_of(events).alerts]

    assert after("loss_rising", 60) == ["loss_rising"]
    assert after("loss_rising", 40) == []  # the steps that it was about were taken back
    assert after("throughput_drop", 60) == []
