"""A W&B server on this machine: as much of it as its client needs to open a run and send to it.

It keeps each run's history line by line at the place where the client says it belongs, as the real
one does, and tells a client that resumes how many lines there are. It has no artifacts: no tables.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

HOST = "127.0.0.1"

HISTORY, SUMMARY = "wandb-history.jsonl", "wandb-summary.json"


@dataclass
class FakeWandb:
    """What was sent: run id -> its lines."""

    url: str = ""
    history: dict[str, list[str]] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    groups: dict[str, str] = field(default_factory=dict)
    alerts: list[str] = field(default_factory=list)
    ended: set[str] = field(default_factory=set)
    changed: threading.Condition = field(default_factory=threading.Condition)

    def rows(self, run: str) -> list[dict[str, Any]]:
        """A run's history."""
        with self.changed:
            return [json.loads(line) for line in self.history.get(run, [])]

    def wait_for_rows(self, run: str, count: int, seconds: float = 60.0) -> bool:
        """Until so many lines of a run are here."""
        with self.changed:
            return self.changed.wait_for(lambda: len(self.history.get(run, [])) >= count, seconds)

    def answer(self, query: str, given: dict[str, Any]) -> dict[str, Any]:
        """The data of one GraphQL request."""
        named = re.search(r"(?:query|mutation)\s+(\w+)", query)
        match named[1] if named else "":
            case "Viewer":
                return {"viewer": {"id": "u", "entity": "me", "username": "me", "email": "",
                                   "flags": "{}", "teams": {"edges": []}}}  # fmt: skip
            case "RunResumeStatus":
                return {"model": self._model(given, self._bucket(given["name"]))}
            case "UpsertBucket":
                run = str(given["name"])
                with self.changed:
                    inserted = run not in self.history
                    self.history.setdefault(run, [])
                    for kept, key in ((self.names, "displayName"), (self.groups, "groupName")):
                        if given.get(key) is not None:  # null: as it was
                            kept[run] = str(given[key])
                bucket = {**(self._bucket(run) or {}), "sweepName": None, "description": None,
                          "project": self._model(given, None)}  # fmt: skip
                return {"upsertBucket": {"bucket": bucket, "inserted": inserted}}
            case "CreateRunFiles":
                files = [{"name": name, "uploadUrl": f"{self.url}/put/{name}"}
                         for name in given["files"]]  # fmt: skip
                return {"createRunFiles": {"runID": "r", "uploadHeaders": [], "files": files}}
            case "MarkRunFilesUploaded":
                return {"markRunFilesUploaded": {"success": True}}
            case "NotifyScriptableRunAlert":
                with self.changed:
                    self.alerts.append(f"{given['title']}: {given['text']}")
                return {"notifyScriptableRunAlert": {"success": True}}
            case "ServerFeaturesQuery":
                return {"serverInfo": {"features": []}}
        return {}

    def stream(self, run: str, sent: dict[str, Any]) -> None:
        """One request of a run's file stream."""
        with self.changed:
            lines = self.history.setdefault(run, [])
            for name, part in (sent.get("files") or {}).items():
                if name == HISTORY:
                    at = int(part["offset"])
                    lines[at : at + len(part["content"])] = part["content"]
            if sent.get("complete"):
                self.ended.add(run)
            self.changed.notify_all()

    def _model(self, given: dict[str, Any], bucket: Any) -> dict[str, Any]:
        entity = {"id": "e", "name": given.get("entity") or "me"}
        found = {"id": "p", "name": given.get("project") or "x", "entity": entity}
        return found if bucket is None else {**found, "bucket": bucket}

    def _bucket(self, run: str) -> dict[str, Any] | None:
        with self.changed:
            lines = self.history.get(run)
            if lines is None:
                return None
            return {
                "id": run, "name": run, "displayName": self.names.get(run), "config": "{}",
                "summaryMetrics": lines[-1] if lines else "{}", "logLineCount": 0,
                "historyLineCount": len(lines), "eventsLineCount": 0, "tags": [], "notes": "",
                "historyTail": json.dumps(lines[-1:]), "eventsTail": "[]",
                "wandbConfig": json.dumps({"t": 1}),
            }  # fmt: skip


@contextlib.contextmanager
def fake_wandb(port: int = 0) -> Iterator[FakeWandb]:
    """The server, until the end of the block."""
    server = FakeWandb()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            sent = json.loads(self._body() or b"{}")
            if self.path.endswith("/graphql"):
                data = {"data": server.answer(sent["query"], sent.get("variables") or {})}
            elif self.path.endswith("/file_stream"):
                server.stream(self.path.split("/")[-2], sent)
                data = {"exitcode": None, "limits": {}}
            else:
                data = {}
            self._say(json.dumps(data).encode())

        def do_PUT(self) -> None:
            self._body()
            self._say(b"")

        def do_GET(self) -> None:
            self._say(b"{}")

        def _body(self) -> bytes:
            raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            return gzip.decompress(raw) if self.headers.get("Content-Encoding") == "gzip" else raw

        def _say(self, data: bytes) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            with contextlib.suppress(OSError):  # a client that was killed
                self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer((HOST, port), Handler) as listening:
        listening.daemon_threads = True
        server.url = f"http://{HOST}:{listening.server_address[1]}"
        thread = threading.Thread(target=listening.serve_forever, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            listening.shutdown()
            thread.join()
