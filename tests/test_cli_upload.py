"""``headway upload`` and ``headway restore``: what a person sees and can do by hand."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fake_bucket import saved
from headway.bucket import newest_here
from headway.cli import build_app
from headway.errors import CheckpointError, ConfigError, RunLocked
from headway.upload import Remote, acquire, remote_checkpoints


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """``runs/run`` with three checkpoints, a journal, and a config that names a bucket."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "runs" / "run"
    for step in (100, 200, 300):
        saved(folder, step)
    lines = [
        {"event": "attempt", "attempt": 1, "at": "2026-01-01T00:00:00+00:00"},
        *(
            {"event": "evaluation", "step": step, "metrics": {"loss": loss}}
            for step, loss in ((100, 1.0), (200, 3.0), (300, 2.0))
        ),
    ]
    (folder / "journal.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "config.yaml").write_text(f"upload: {{to: {tmp_path / 'bucket'}}}\n")
    return folder


def said(*arguments: str) -> str:
    done = CliRunner().invoke(build_app(), list(arguments), catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def test_push_sends_the_newest_one_or_all_and_status_says_what_is_missing(run, tmp_path):
    before = json.loads(said("upload", "status", "run", "--json"))
    assert before["backlog"] == [100, 200, 300] and before["holder"] is None
    assert "1 of 1 verified" in said("upload", "push", "run")
    table = said("upload", "status", "run")
    assert "yes  yes" in table and "yes  no" in table
    assert "1 of 1 verified" in said("upload", "push", "run", "100")
    assert "3 of 3 verified" in said("upload", "push", "run", "--all")
    after = json.loads(said("upload", "status", "run", "--json"))
    assert after["backlog"] == [] and after["bytes_per_second"] > 0
    assert [row["step"] for row in json.loads(said("upload", "list", "run", "--json"))] == [
        100, 200, 300,
    ]  # fmt: skip


def test_a_push_is_refused_while_another_process_sends(run, tmp_path):
    with acquire(Remote(str(tmp_path / "bucket/run")), seconds=0.5), pytest.raises(RunLocked):
        said("upload", "push", "run")


def test_list_names_a_bad_copy_and_clean_deletes_it_only_when_told_to(run, tmp_path):
    said("upload", "push", "run", "--all")
    url = str(tmp_path / "bucket/run")
    victim = next((tmp_path / "bucket/run/checkpoints/step-00000200").rglob("state.json"))
    victim.unlink()
    assert "DAMAGED: 1 files are missing" in said("upload", "list", url)
    assert "no leftovers" in said("upload", "clean", url)
    assert "nothing was deleted" in said("upload", "clean", url, "--damaged")
    assert "deleted 1 copies" in said("upload", "clean", url, "--damaged", "--yes")
    assert [c.step for c in remote_checkpoints(Remote(url))] == [100, 300]


def test_restore_brings_the_run_back_under_its_name(run, tmp_path, monkeypatch):
    said("upload", "push", "run", "--all")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert "restored step-00000300" in said("restore", str(tmp_path / "bucket/run"))
    assert newest_here(Path("runs/run")) == (1, 300)
    assert Path("runs/run/journal.jsonl").read_bytes() == (run / "journal.jsonl").read_bytes()
    assert "as new as the bucket: step 300" in said("restore", str(tmp_path / "bucket/run"))


def test_an_empty_bucket_a_run_without_one_and_a_secret_in_a_url_are_errors(run, tmp_path):
    with pytest.raises(CheckpointError, match="holds no copy"):
        said("restore", str(tmp_path / "nowhere"))
    (run / "config.yaml").write_text("upload: null\n")
    with pytest.raises(ConfigError, match="has no upload section"):
        said("upload", "status", "run")
    with pytest.raises(ConfigError, match="environment"):
        said("upload", "status", "run", "--to", "s3://key:secret@bucket/x")
    assert "no copy yet" in said("upload", "list", "run", "--to", str(tmp_path / "other"))


def test_a_sidecar_sends_what_a_trainer_saves_and_ends_when_asked(run, tmp_path):
    """A real process beside this one, which plays the trainer."""
    command = [sys.executable, "-m", "headway.cli", "upload", "--follow", str(run)]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    sidecar = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    )
    assert sidecar.stdout
    try:
        assert "following" in sidecar.stdout.readline()
        saved(run, 400)
        give_up_at = time.monotonic() + 60
        while "sent step 400" not in sidecar.stdout.readline():
            assert time.monotonic() < give_up_at
        sidecar.send_signal(signal.SIGTERM)
        rest = sidecar.stdout.read()
        assert sidecar.wait() == 0, rest
    finally:
        sidecar.kill()
        sidecar.wait()
        sidecar.stdout.close()
    steps = [c.step for c in remote_checkpoints(Remote(str(tmp_path / "bucket/run")))]
    assert 400 in steps and 100 in steps, "the newest and the best"
    acquire(Remote(str(tmp_path / "bucket/run"))).release()  # it gave the lease back


def test_the_key_of_a_copy_says_which_bytes_it_holds(run, tmp_path):
    said("upload", "push", "run", "--all")
    for copy in remote_checkpoints(Remote(str(tmp_path / "bucket/run"))):
        assert copy.copy.prefix.startswith(f"checkpoints/step-{copy.step:08d}/0001-")
        assert not copy.problems
