"""What a provider says a machine costs: asked once, believed if a number, never in the way."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest

from headway.config import Cost
from headway.cost import Unanswered, live, live_price
from headway.errors import ConfigError
from headway.spending import price_now

HOST = "127.0.0.1"
KEY = "rp_canary_7f3a"
HERE = {
    "RUNPOD_POD_ID": "xedez", "RUNPOD_API_KEY": KEY, "CONTAINER_ID": "312", "VAST_API_KEY": KEY,
}  # fmt: skip


class Answers(BaseHTTPRequestHandler):
    """Answers as the server's ``said`` says, and keeps what it was asked."""

    def do_GET(self) -> None:
        self.server.asked.append((self.path, self.headers.get("Authorization")))  # type: ignore[attr-defined]
        status, headers, body = self.server.said  # type: ignore[attr-defined]
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Silent."""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Both providers, on this machine."""
    with HTTPServer((HOST, 0), Answers) as server:
        server.asked, server.said = [], (200, {}, b"{}")  # type: ignore[attr-defined]
        threading.Thread(target=server.serve_forever, daemon=True).start()
        host = f"http://{HOST}:{server.server_port}"
        ours = {name: replace(each, host=host) for name, each in live.PROVIDERS.items()}
        server.providers = ours  # type: ignore[attr-defined]
        yield server
        server.shutdown()


def answer(tree: Any) -> tuple[int, dict[str, str], bytes]:
    return 200, {}, json.dumps(tree).encode()


@pytest.mark.parametrize(
    ("name", "tree", "usd", "path"),
    [
        ("runpod", {"adjustedCostPerHr": 0.69, "costPerHr": "0.74"}, 0.69, "/v1/pods/xedez"),
        ("runpod", {"adjustedCostPerHr": None, "costPerHr": "0.74"}, 0.74, "/v1/pods/xedez"),
        ("vast", {"instances": {"dph_total": 0.3}}, 0.3, "/api/v0/instances/312/"),
    ],
)
def test_a_machine_asks_for_itself_with_its_own_key(
    server: Any, name: Any, tree: Any, usd: float, path: str
) -> None:
    server.said = answer(tree)
    price = live_price(name, None, HERE, server.providers)
    assert (price.usd_per_hour, price.source) == (usd, f"asked of {name}")
    assert server.asked == [(path, f"Bearer {KEY}")]
    assert KEY not in repr(price)


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ((403, {}, b""), "answered HTTP 403"),
        ((200, {}, b"<html>"), "did not answer"),
        (answer({}), "without a price"),
        (answer({"costPerHr": "free"}), "without a price"),
        (answer({"costPerHr": 0}), "without a price"),
        (answer({"costPerHr": float("inf")}), "without a price"),
        (answer([1]), "without a price"),
    ],
)
def test_what_is_no_price_is_said_and_is_none(server: Any, said: Any, why: str) -> None:
    server.said = said
    with pytest.raises(Unanswered, match=why) as caught:
        live_price("runpod", None, HERE, server.providers)
    assert KEY not in str(caught.value) and server.asked


def test_the_key_does_not_follow_a_redirect(server: Any) -> None:
    server.said = (302, {"Location": f"http://{HOST}:{server.server_port}/elsewhere"}, b"")
    with pytest.raises(Unanswered, match="HTTP 302"):  # urllib gives up: it goes round in a ring
        live_price("runpod", None, HERE, server.providers)
    first, *others = server.asked
    assert first[1] == f"Bearer {KEY}" and others and {key for _, key in others} == {None}


@pytest.mark.parametrize("missing", ["RUNPOD_POD_ID", "RUNPOD_API_KEY"])
def test_elsewhere_nobody_is_asked(server: Any, missing: str) -> None:
    environ = {name: value for name, value in HERE.items() if name != missing}
    with pytest.raises(Unanswered, match=f"{missing} is not set here"):
        live_price("runpod", None, environ, server.providers)
    assert server.asked == []


def test_without_an_answer_the_configs_price_counts_and_says_why(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("RUNPOD_POD_ID", raising=False)
    price = price_now(Cost(provider="runpod", usd_per_hour=2.0))
    assert price.usd_per_hour == 2.0
    assert price.source == "config (runpod cannot be asked: RUNPOD_POD_ID is not set here)"
    with pytest.raises(ConfigError, match=r"cost\.provider: .*; write cost\.usd_per_hour"):
        price_now(Cost(provider="runpod"))


def test_the_providers_answer_wins_over_the_configs_price(
    server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.said = answer({"adjustedCostPerHr": 0.69})
    monkeypatch.setattr("headway.spending.live_price", lambda name, gpu: live_price(
        name, gpu, HERE, server.providers
    ))  # fmt: skip
    assert price_now(Cost(provider="runpod", usd_per_hour=2.0)).usd_per_hour == 0.69
    assert price_now(Cost(usd_per_hour=2.0)).usd_per_hour == 2.0
