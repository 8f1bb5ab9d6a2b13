"""``headway doctor``: the machine alone, judged without a config and without a secret shown."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from headway import doctor
from headway.cli import build_app
from headway.devices import (
    Gpu,
    Torch,
    driver_version,
    product_findings,
    thread_findings,
    torch_findings,
)
from headway.preflight import ask

NAMES = [
    "python", "torch", "gpu", "product", "cpu", "memory", "disk", "network", "clock", "process 1",
    "locale", "limits", "shared memory", "environment",
]  # fmt: skip


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://localhost:1")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)


def test_every_question_is_answered_on_this_machine_and_nothing_is_left(tmp_path: Path) -> None:
    answers = list(ask(doctor.checks(tmp_path, {"HF_ENDPOINT": "http://localhost:1"})))
    assert [answer.name for answer in answers] == NAMES
    assert all(answer.findings for answer in answers)
    assert not [f for a in answers for f in a.findings if "could not be finished" in f.what]
    assert list(tmp_path.iterdir()) == []


def test_without_a_network_it_is_a_note_without_a_traceback(tmp_path: Path) -> None:
    answers = {
        a.name: a for a in ask(doctor.checks(tmp_path, {"HF_ENDPOINT": "http://localhost:1"}))
    }
    assert answers["network"].level == "note"
    assert "http://localhost:1 does not answer" in answers["network"].findings[0].what


def test_who_asks_to_be_offline_is_not_asked_for(tmp_path: Path) -> None:
    answers = {a.name: a for a in ask(doctor.checks(tmp_path, {"HF_HUB_OFFLINE": "1"}))}
    assert answers["network"].findings[0].what == "HF_HUB_OFFLINE is set: the hub is not asked"


def test_a_secret_of_the_environment_is_nowhere_in_the_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_TOKEN", "hf_planted")
    monkeypatch.setenv("MY_SECRET", "planted too")
    monkeypatch.setenv("HTTPS_PROXY", "http://me:planted@localhost:1")
    done = CliRunner().invoke(build_app(), ["doctor", "--json"])
    assert "planted" not in done.output and "HF_TOKEN=(set)" in done.output


def test_as_json_it_is_one_document_and_the_exit_code_is_that_of_the_blockers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(build_app(), ["doctor", "--json"])
    told: dict[str, Any] = json.loads(done.output)
    assert [check["name"] for check in told["checks"]] == NAMES
    assert done.exit_code == (1 if told["blockers"] else 0)


def test_a_disk_that_cannot_be_written_ends_with_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    real = doctor.checks
    monkeypatch.setattr(doctor, "checks", lambda: real(tmp_path / "file" / "x"))
    done = CliRunner().invoke(build_app(), ["doctor"])
    assert done.exit_code == 1 and "this would not work (disk)" in done.output


# ------------------------------------------------------------------ torch against the driver


def judged(**facts: Any) -> tuple[str, str]:
    [finding] = torch_findings(Torch(version="2.13", **facts))
    return finding.level, f"{finding.what}. {finding.fix}"


A100 = Gpu(name="A100", memory_bytes=80 << 30, free_bytes=79 << 30, capability=(8, 0))


def test_a_torch_that_fits_the_driver_is_told() -> None:
    level, said = judged(cuda_version="13.0", gpus=(A100,), driver="580.1")
    assert (level, said) == ("note", "torch 2.13, built for CUDA 13.0, NVIDIA driver 580.1. ")
    assert judged(cuda_version=None, gpus=())[0] == "note"


def test_a_torch_that_cannot_use_the_gpu_is_a_blocker() -> None:
    level, said = judged(cuda_version=None, gpus=(), driver="580.1")
    assert level == "blocker" and "for CPUs only) cannot use it" in said and "pytorch.org" in said
    level, said = judged(cuda_version="13.0", gpus=(), driver="470.1", said="driver too old")
    assert level == "blocker" and "CUDA says: driver too old" in said and "a newer driver" in said
    assert judged(cuda_version="13.0", gpus=(), driver="580.1", hidden=True)[0] == "note"


def test_the_drivers_version_is_read_from_the_kernel(tmp_path: Path) -> None:
    assert driver_version(tmp_path) is None
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev/nvidia0").write_text("")
    assert driver_version(tmp_path) == "unknown"
    place = tmp_path / "proc/driver/nvidia"
    place.mkdir(parents=True)
    (place / "version").write_text(
        "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.95.05  Release Build\n"
    )
    assert driver_version(tmp_path) == "580.95.05"


def test_more_threads_than_the_container_may_use_are_warned_of() -> None:
    assert [f.level for f in thread_findings(8, 8, None)] == ["note"]
    [finding] = thread_findings(8, 8, 2.0)
    assert finding.level == "warning" and finding.fix == "Set hardware.threads: 2"


def test_a_device_that_multiplies_wrongly_is_a_blocker(monkeypatch: pytest.MonkeyPatch) -> None:
    [finding] = product_findings(torch.device("cpu"))
    assert finding.level == "note"
    real = torch.Tensor.__matmul__
    monkeypatch.setattr(torch.Tensor, "__matmul__", lambda a, b: real(a, b) + a.element_size() % 8)
    [finding] = product_findings(torch.device("cpu"))
    assert finding.level == "blocker" and "multiplies two matrices wrongly" in finding.what
