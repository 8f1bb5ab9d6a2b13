"""``headway upload`` and ``headway restore``: what a person sees and can do by hand."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fake_bucket import flipped, saved
from headway.api import train
from headway.bucket import leased, newest_here, open_uploader, parcel_of, url_of
from headway.checkpoint import CheckpointStore
from headway.claim import run_folder
from headway.cli import build_app
from headway.config import Upload, load_config
from headway.errors import CheckpointError, ConfigError, RunLocked
from headway.opening import opened
from headway.upload import Remote, acquire, remote_checkpoints
from toy import toy_config


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


def test_the_list_of_checkpoints_says_what_was_sent_and_what_the_bucket_really_has(run, tmp_path):
    assert "bucket" not in said("checkpoints", "list", "run").splitlines()[0]
    said("upload", "push", "run")
    rows = json.loads(said("checkpoints", "list", "run", "--json"))
    assert [row["bucket"] for row in rows] == [None, None, "sent"]
    said("upload", "push", "run", "--all")
    shutil.rmtree(run / "checkpoints/step-00000100")
    title, *lines = said("checkpoints", "list", "run").splitlines()
    assert title.split()[-1] == "bucket" and ["sent" in line for line in lines] == [True] * 3
    assert "not here" in lines[0] and "1.000" in lines[0]
    copy = tmp_path / "bucket/run/checkpoints/step-00000200"
    next(copy.rglob("state.json")).unlink()
    rows = json.loads(said("checkpoints", "list", "run", "--bucket", "--json"))
    assert [(row["here"], row["bucket"]) for row in rows[::2]] == [(False, "yes"), (True, "yes")]
    assert rows[1]["here"] and rows[1]["bucket"].startswith("DAMAGED")
    shutil.rmtree(tmp_path / "bucket")
    sent = json.loads(said("checkpoints", "list", "run", "--json"))
    assert [row["bucket"] for row in sent] == ["sent"] * 3, "the ledger asks no bucket"
    asked = json.loads(said("checkpoints", "list", "run", "--bucket", "--json"))
    assert [row["bucket"] for row in asked] == ["no", "no"]


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


def test_a_run_restored_elsewhere_goes_on_there_with_the_command_that_is_printed(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    sections = {"upload": {"to": str(tmp_path / "bucket")}}
    train(toy_config(tmp_path / "first", **sections))
    before = (tmp_path / "first/run/journal.jsonl").read_bytes()
    output = said("restore", str(tmp_path / "bucket/run"), "--to", "other place/mine")
    command = shlex.split(output.splitlines()[-1].removeprefix("go on with: "))
    assert command == ["headway", "train", "other place/mine/config.yaml"]
    config = load_config(command[2], ["train.horizon.steps=6"])
    assert run_folder(config) == (tmp_path / "other place/mine").resolve()
    assert "now names" not in said(
        "restore", str(tmp_path / "bucket/run"), "--to", "other place/mine"
    )
    with opened(config) as run:
        assert run.state.step == 6
    assert (tmp_path / "first/run/journal.jsonl").read_bytes() == before


def test_a_run_is_not_restored_over_another_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    train(toy_config(tmp_path / "first", upload={"to": str(tmp_path / "bucket")}))
    train(toy_config(tmp_path / "other", train={"learning_rate": 0.5, "horizon": {"steps": 2}}))
    with pytest.raises(ConfigError, match=r"learning_rate[\s\S]*--to DIR"):
        said("restore", str(tmp_path / "bucket/run"), "--to", "other/run")
    assert newest_here(tmp_path / "other/run") == (1, 2)


def test_what_is_to_be_kept_for_ever_or_is_best_is_not_skipped_by_a_slow_line(run, tmp_path):
    section = Upload(to=str(tmp_path / "bucket"), keep_best=2, keep_every_steps=100)
    remote = Remote(url_of(section, run))
    with leased(remote, section, 1, lambda line: None) as lease:
        with open_uploader(remote, section, run, lease) as uploader:
            for checkpoint in CheckpointStore(run, attempt="reader").checkpoints():
                uploader.submit(parcel_of(checkpoint), {100: 3.0, 200: 2.0, 300: 1.0})
            assert uploader.drain(until=lambda: False, show=lambda progress: None)
    assert [c.step for c in remote_checkpoints(remote)] == [100, 200, 300]


SECRET_URLS = [
    "s3://AKIAX:SECRETVALUE@bucket/x",
    "s3://AKIAX:SECRET/VALUE@bucket",
    "s3://b/x?sig=SECRETV",
]


@pytest.mark.parametrize("url", SECRET_URLS)
def test_a_secret_in_a_url_is_refused_and_never_shown(run, tmp_path, url):
    config = tmp_path / "c.yaml"
    config.write_text(f"recipe: toy\nupload:\n  to: {url}\n")
    for words in (
        ["train", str(config)],
        ["train", str(tmp_path / "c.yaml"), f"upload.to={url}"],
        ["upload", "status", "run", "--to", url],
        ["upload", "list", url],
        ["restore", url],
    ):
        command = [sys.executable, "-m", "headway.cli", *words]
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
        output = done.stdout + done.stderr
        assert done.returncode and "credentials" in output
        assert "SECRET" not in output and "AKIAX" not in output and "VALUE" not in output


@pytest.mark.parametrize("name", ["AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"])
@pytest.mark.parametrize(
    "value", ["https://me:SESAME@host", "SESAME", "host:9000", "http://h:SESAME", "http:// SESAME"]
)
def test_an_odd_address_of_a_server_is_said_without_showing_it(monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=f"{name} is not the address") as caught:
        Remote("s3://bucket/x")
    assert "SESAME" not in str(caught.value) and caught.value.__cause__ is None
    monkeypatch.setenv(name, "http://nobody.invalid:9000")
    Remote("s3://bucket/x")


def test_clean_deletes_nothing_while_another_process_sends(run, tmp_path):
    said("upload", "push", "run", "--all")
    url = str(tmp_path / "bucket/run")
    next((tmp_path / "bucket/run/checkpoints/step-00000200").rglob("state.json")).unlink()
    before = sorted(p for p in (tmp_path / "bucket").rglob("*") if p.name != "lease.json")
    with acquire(Remote(url), seconds=0.5) as held:
        with pytest.raises(RunLocked, match="is being written by"):
            said("upload", "clean", url, "--damaged", "--yes")
        held.check()
        assert "nothing was deleted" in said("upload", "clean", url, "--damaged"), "looking is free"
    after = sorted(p for p in (tmp_path / "bucket").rglob("*") if p.name != "lease.json")
    assert before == after
    assert "deleted 1 copies" in said("upload", "clean", url, "--damaged", "--yes")


def test_clean_of_a_place_where_nothing_is_leaves_nothing_there(tmp_path):
    (tmp_path / "bucket").mkdir()
    assert "deleted 0 copies" in said("upload", "clean", str(tmp_path / "bucket"), "--yes")
    assert not list((tmp_path / "bucket").iterdir())


@pytest.mark.parametrize("where", ["run", "url"])
def test_verify_sees_what_sizes_do_not_show(run, tmp_path, where):
    """By the same file on this disk, or by reading every byte back."""
    said("upload", "push", "run", "--all")
    place = "run" if where == "run" else str(tmp_path / "bucket/run")
    whole = json.loads(said("upload", "list", place, "--verify", "--json"))
    assert [row["whole"] for row in whole] == [True, True, True]
    victim = next((tmp_path / "bucket/run/checkpoints/step-00000200").rglob("state.json"))
    victim.write_bytes(flipped(victim.read_bytes()))
    blind = json.loads(said("upload", "list", place, "--json"))
    assert [row["whole"] for row in blind] == [True, True, True], "negative control"
    seen = json.loads(said("upload", "list", place, "--verify", "--json"))
    assert [row["whole"] for row in seen] == [True, False, True]
    assert "state.json has other bytes" in seen[1]["problems"][0]
    assert "DAMAGED: state.json" in said("upload", "status", "run", "--verify")


def test_verify_reads_the_copy_where_the_local_one_is_the_damaged_one(run, tmp_path):
    said("upload", "push", "run", "--all")
    victim = run / "checkpoints/step-00000200/state.json"
    victim.write_bytes(flipped(victim.read_bytes()))
    seen = json.loads(said("upload", "list", "run", "--verify", "--json"))
    assert [row["whole"] for row in seen] == [True, True, True]
