"""Each server is started once a session, behind one fault proxy; a test has its own prefix."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from services import servers
from services.places import Place
from services.proxy import FaultProxy

Starter = Callable[[str], tuple[servers.Server, FaultProxy]]


@pytest.fixture(scope="session")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Starter]:
    """Start a server by name, or say what it lacks."""
    running: dict[str, tuple[servers.Server, FaultProxy]] = {}
    exits: list[Callable[[], object]] = []

    def start(name: str) -> tuple[servers.Server, FaultProxy]:
        if name not in running:
            if lacks := servers.missing(name):
                pytest.skip(f"{name} is not installed: {lacks}")
            server = servers.SERVERS[name](tmp_path_factory.mktemp(name))
            exits.append(server.kill)
            server.start()
            servers.make_bucket(server)
            proxy = FaultProxy(server.url)
            context = proxy.running()
            context.__enter__()
            exits.append(lambda: context.__exit__(None, None, None))
            running[name] = (server, proxy)
        return running[name]

    yield start
    for leave in reversed(exits):
        leave()


@pytest.fixture
def place_of(
    started: Starter, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[Callable[[str], Place]]:
    """A place on the store of this name: ``folder``, ``memory``, or a server behind its proxy."""
    used: list[FaultProxy] = []

    def make(name: str) -> Place:
        prefix = f"test-{secrets.token_hex(6)}"
        if name == "folder":
            return Place(name, str(tmp_path / "bucket"))
        if name == "memory":
            return Place(name, f"memory://{prefix}")
        server, proxy = started(name)
        proxy.clear()
        used.append(proxy)
        for key, value in server.environ.items():
            monkeypatch.setenv(key, value.replace(server.url, proxy.url))
        return Place(name, f"{server.bucket_url}/{prefix}", proxy, server)

    yield make
    for proxy in used:
        proxy.clear()
