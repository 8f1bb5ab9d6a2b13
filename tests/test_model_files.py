"""What there is of a model, on this disk or on a hub, said before anything is loaded."""

from __future__ import annotations

import http.server
import json
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cases import tiny_base
from headway.errors import ConfigError, StorageFull
from headway.models.files import model_files

NAME = "owner/model"


class Hub(http.server.BaseHTTPRequestHandler):
    """Says of every model what the test wrote down."""

    answers: dict[str, tuple[int, dict[str, str], Any]]
    asked: list[str]

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        self.asked.append(path)
        code, headers, body = self.answers.get(path, (404, {"X-Error-Code": "RepoNotFound"}, {}))
        self.send_response_only(code)
        for name, value in headers.items():
            self.send_header(name, value)
        data = json.dumps(body).encode()
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Hub]]:
    """A hub on this machine."""
    kind = type("ThisHub", (Hub,), {"answers": {}, "asked": []})
    with http.server.ThreadingHTTPServer(("localhost", 0), kind) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("HF_ENDPOINT", f"http://localhost:{server.server_port}")
        yield kind
        server.shutdown()


def model(weight_bytes: int = 1000, **more: Any) -> dict[str, Any]:
    files = [
        {"rfilename": "config.json", "size": 10},
        {"rfilename": "model.safetensors", "size": weight_bytes},
        {"rfilename": "onnx/model.safetensors", "size": 10**15},
    ]
    return {"id": NAME, "siblings": files, "gated": False, **more}


def said(name: str = NAME, revision: str | None = None) -> str:
    return "\n".join(finding.what for finding in model_files(name, revision))


def test_a_model_on_the_hub_is_found_with_the_size_of_its_weights(hub: type[Hub]) -> None:
    hub.answers[f"/api/models/{NAME}"] = (200, {}, model(2_500_000_000))
    assert said() == f"{NAME}: will be fetched from the hub, 2.50 GB"


def test_a_gated_model_says_where_to_ask_for_it(hub: type[Hub]) -> None:
    hub.answers[f"/api/models/{NAME}"] = (200, {}, model(gated="manual"))
    refused = (403, {"X-Error-Code": "GatedRepo"}, {})
    hub.answers[f"/api/models/{NAME}/auth-check"] = refused
    with pytest.raises(ConfigError, match=rf"is gated.*https://huggingface.co/{NAME}.*HF_TOKEN"):
        said()
    hub.answers[f"/api/models/{NAME}/auth-check"] = (200, {}, {})
    assert "will be fetched" in said()


def test_a_model_that_is_not_there_or_private_is_refused(hub: type[Hub]) -> None:
    with pytest.raises(ConfigError, match=r"the hub has no model owner/model that.*HF_TOKEN"):
        said()
    assert hub.asked


def test_a_revision_that_is_not_there_is_refused(hub: type[Hub]) -> None:
    missing = (404, {"X-Error-Code": "RevisionNotFound"}, {})
    hub.answers[f"/api/models/{NAME}/revision/v9"] = missing
    with pytest.raises(ConfigError, match=r"task.revision: owner/model has no .* v9"):
        said(revision="v9")


def test_a_model_of_pickles_only_is_refused(hub: type[Hub]) -> None:
    files = [{"rfilename": "pytorch_model.bin", "size": 5}]
    hub.answers[f"/api/models/{NAME}"] = (200, {}, {**model(), "siblings": files})
    with pytest.raises(ConfigError, match=r"no \*.safetensors on the hub.*no pickles"):
        said()


def test_a_model_larger_than_the_disk_is_refused(hub: type[Hub]) -> None:
    hub.answers[f"/api/models/{NAME}"] = (200, {}, model(10**17))
    with pytest.raises(StorageFull, match=r"100000000.0 GB, and .* GB free.*HF_HOME"):
        said()


def test_a_name_that_no_model_can_have_is_refused(hub: type[Hub]) -> None:
    with pytest.raises(ConfigError, match=r"task\.base_model: owner/--x"):
        said("owner/--x")


def test_without_a_network_only_what_is_in_the_cache_is_found(
    hub: type[Hub], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://localhost:1")
    with pytest.raises(ConfigError, match=r"is not on this disk, and the hub does not answer"):
        said()
    snapshot = tmp_path / "models--owner--model" / "snapshots" / ("a" * 40)
    shutil.copytree(tiny_base(tmp_path), snapshot)
    refs = tmp_path / "models--owner--model" / "refs"
    refs.mkdir()
    (refs / "main").write_text("a" * 40)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert f"in the hub's cache ({snapshot})" in said()
    (snapshot / "model.safetensors").write_bytes(b"half")
    with pytest.raises(ConfigError, match="is not on this disk"):
        said()
