"""What is secret stays in the environment: no file, no bucket and no line of output repeats it."""

from __future__ import annotations

import base64
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headway.config import RunConfig
from headway.errors import ConfigError
from toy import toy_config

TESTS = Path(__file__).parent
CANARIES = {
    name: f"CaNaRy{number}x{name.lower().replace('_', '')}"
    for number, name in enumerate(
        (
            "AWS_ACCESS_KEY_ID",
            "AWS_SECRET_ACCESS_KEY",
            "AWS_SESSION_TOKEN",
            "HF_TOKEN",
            "WANDB_API_KEY",
            "RUNPOD_API_KEY",
            "OPENAI_API_KEY",
            "DATABASE_PASSWORD",
        )
    )
}


SECRET = CANARIES["HF_TOKEN"]


def forms(secret: bytes) -> list[bytes]:
    """As it is, and the middle of it in Base64 at each of its three offsets."""
    shifted = [base64.b64encode(bytes(shift) + secret) for shift in range(3)]
    return [secret, *(text[4 if shift else 0 : -4] for shift, text in enumerate(shifted))]


FORMS = {name: forms(value.encode()) for name, value in CANARIES.items()}


def leaks(data: bytes) -> list[str]:
    """Names of the secrets in some bytes."""
    return [name for name, found in FORMS.items() if any(form in data for form in found)]


def leaking_files(*roots: Path) -> list[str]:
    """Every file below that repeats a secret, in its content or its name."""
    files = [path for root in roots for path in root.rglob("*")]
    assert any(path.is_file() for path in files)
    return [
        f"{path}: {found}"
        for path in files
        if (found := leaks(str(path).encode() + (path.read_bytes() if path.is_file() else b"")))
    ]


def headway(folder: Path, *words: object) -> subprocess.CompletedProcess[bytes]:
    """The command with every secret in its environment; its output holds none of them."""
    before = os.environ.get("PYTHONPATH")
    places = [str(TESTS), str(TESTS / "plugins"), *([before] if before else [])]
    environment = {
        **os.environ,
        **CANARIES,
        "PYTHONPATH": os.pathsep.join(places),
        "HEADWAY_CACHE": str(folder / "cache"),
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", "headway.cli", *map(str, words)]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True)
    assert leaks(done.stdout + done.stderr) == []
    return done


@pytest.mark.slow
@pytest.mark.fault(82)
def test_no_secret_of_the_environment_is_in_anything_a_run_leaves_or_says(tmp_path: Path) -> None:
    bucket = tmp_path / "bucket"
    upload = {"to": str(bucket), "keep_last": 9}
    config = toy_config(Path("runs"), upload=upload, evaluate={"every_steps": 2})
    config.save(tmp_path / "run.yaml")
    assert headway(tmp_path, "train", "run.yaml").returncode == 0
    assert leaking_files(tmp_path) == []
    for words in (
        ("report", "run"),
        ("status",),
        ("checkpoints", "show", "run", "6"),
        ("upload", "status", "run"),
    ):
        assert headway(tmp_path, *words).returncode == 0, words
    shutil.rmtree(tmp_path / "runs")
    assert headway(tmp_path, "restore", bucket / "run").returncode == 0
    assert headway(tmp_path, "train", "run.yaml", "task.rows=0", "--fresh").returncode == 65
    assert headway(tmp_path, "train", "run.yaml").returncode == 0
    assert list(bucket.rglob("manifest.json")) and (tmp_path / "runs/run/report.html").exists()
    assert leaking_files(tmp_path) == []


@pytest.mark.fault(82)
@pytest.mark.parametrize("user", [None, "", "a", "ab", "abc"])
def test_a_secret_in_any_of_those_files_would_be_seen(tmp_path: Path, user: str | None) -> None:
    """Negative control; ``user`` stands before it where it is written as Base64, as in HTTP."""
    (tmp_path / "journal.jsonl").write_text('{"event":"attempt"}')
    assert leaking_files(tmp_path) == []
    secret = SECRET.encode()
    said = secret if user is None else base64.b64encode(user.encode() + secret)
    (tmp_path / "model.safetensors").write_bytes(b"\0" * 9 + said + b"\0")
    assert "HF_TOKEN" in leaking_files(tmp_path)[0]
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / f"x-{SECRET}").touch()
    assert "HF_TOKEN" in leaking_files(tmp_path)[0]


SECRET_URLS = [
    f"https://me:{SECRET}@host/rows.jsonl",
    f"https://{SECRET}@host/rows.jsonl",
    f"s3://AKIA0:{SECRET}/with/slash@bucket/rows.jsonl",
    f"https://host/rows.jsonl?token={SECRET}",
    f"https://host/rows.jsonl?a=1&X-Amz-Signature={SECRET}",
    f"https://host/rows.jsonl?X-Amz-Credential={SECRET}",
    f"https://host/rows.jsonl?sv=1&sig={SECRET}",
    f"https://host/rows.jsonl?access_key_id={SECRET}",
    f"https://host/rows.jsonl?api_key={SECRET}",
    f"hf://datasets/x/rows.jsonl#auth={SECRET}",
]
PLAIN_URLS = [
    "https://host/rows.jsonl",
    "https://host:8080/package@1.2/rows.jsonl",
    "https://host/rows.jsonl?design=2&page=3",
    "https://host/rows.jsonl?download=true",
    "s3://bucket/a@b/rows.jsonl",
    "s3://bucket/keys/tokens/secret.jsonl",
    "hf:owner/name@train",
]


def sft(source: object) -> dict[str, object]:
    train = {"horizon": {"steps": 1}, "batch_size": 1, "learning_rate": 0.1}
    task = {"base_model": "x", "data": {"train": source}}
    return {"recipe": "sft", "train": train, "task": task}


@pytest.mark.fault(82)
@pytest.mark.parametrize("url", SECRET_URLS)
@pytest.mark.parametrize("shape", [str, lambda url: [{"path": "a.jsonl"}, {"path": url}]])
def test_a_url_with_a_secret_in_it_is_refused_at_its_key_and_not_repeated(
    shape: object, url: str
) -> None:
    with pytest.raises(
        ConfigError, match=r"task\.data\.train.*set them in the environment"
    ) as said:
        RunConfig(**sft(shape(url)))  # type: ignore[operator]
    assert leaks(str(said.value).encode()) == []


@pytest.mark.parametrize("url", PLAIN_URLS)
def test_a_url_without_a_secret_is_taken_as_it_is(url: str) -> None:
    assert RunConfig(**sft(url)).tree()["task"]["data"]["train"][0]["path"] == url


@pytest.mark.fault(82)
def test_a_url_with_a_secret_reaches_neither_the_run_nor_the_screen(tmp_path: Path) -> None:
    toy_config(Path("runs")).save(tmp_path / "run.yaml")
    (tmp_path / "bad.yaml").write_text(
        f"extends: run.yaml\nrun: {{warm_start: '{SECRET_URLS[0]}@3'}}\n"
        f"train: {{lr: '{SECRET_URLS[3]}'}}\n"
    )
    for words in (["bad.yaml"], ["run.yaml", f"run.warm_start={SECRET_URLS[0]}"]):
        done = headway(tmp_path, "train", *words)
        assert done.returncode == 78, done.stderr
        assert not (tmp_path / "runs").exists()


@given(st.recursive(st.text() | st.integers() | st.none() | st.booleans(), st.lists, max_leaves=9))
def test_whatever_a_config_holds_the_search_for_secrets_ends(value: object) -> None:
    from headway.config.problems import find_credentials

    assert all(problem.path[0] == "x" for problem in find_credentials({"x": value}))
