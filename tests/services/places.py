"""Where a test of the remotes writes."""

from __future__ import annotations

from dataclasses import dataclass

from headway.upload.remote import Remote
from services import servers
from services.proxy import FaultProxy


@dataclass
class Place:
    """One store to test, and a prefix in it that nobody else uses."""

    name: str
    url: str
    proxy: FaultProxy | None = None
    server: servers.Server | None = None
    patience_seconds: float = 20.0

    def remote(self, patience_seconds: float | None = None) -> Remote:
        """A new client of it."""
        return Remote(self.url, patience_seconds=patience_seconds or self.patience_seconds)
