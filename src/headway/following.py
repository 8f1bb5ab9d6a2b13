"""A run followed while it trains: its journal as it grows, and what lies beside it. Without torch.

Reads only, and nothing twice, so it may come and go at any time, here or on another machine that
sees the run's folder.
"""

from __future__ import annotations

import socket
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from headway.journal import Tail
from headway.report.live import Beside, Live, View
from headway.report.live_text import Line, lines
from headway.report.timeline import Event, measured
from headway.viewing import CONFIG_FILE, JOURNAL_FILE, config_tree, find_run, writer_pid

SPARSE_STEPS = 2000
"""Of many steps at once so many are looked at: a curve in a terminal has no room for more."""


class Following:
    """One run. ``look`` takes in what is new, ``view`` says what it comes to."""

    def __init__(self, run: str | Path) -> None:
        """Raises ConfigError if there is no such run."""
        self.path = find_run(run)
        self.name = self.path.resolve().name
        self.trouble = ""
        """Why the journal could not be read just now; empty if it could."""
        self._tail = Tail(self.path / JOURNAL_FILE)
        self._live = Live()
        self._host = socket.gethostname()
        self._peaks: dict[str, float] = {}
        self._config: tuple[float, dict[str, Any]] = (0.0, {})

    def look(self) -> list[Event]:
        """What the journal says since the last look; of many steps only some."""
        try:
            grown = self._tail.read(SPARSE_STEPS)
        except OSError as error:  # a network disk that is away for a moment
            self.trouble = f"the journal cannot be read: {error.strerror}"
            return []
        self.trouble = ""
        if grown.anew:
            self._live = Live()
        self._live.take(grown.events)
        return list(grown.events)

    def view(self, now: datetime | None = None) -> View:
        """The run at this moment."""
        self._know_peak(self._live.gpu)
        beside = Beside(
            name=self.name,
            writer_pid=self._writer_pid(),
            host=self._host,
            budget_usd=self._budget_usd(),
            peak_flops_per_second=self._peaks,
        )
        return self._live.view(now or datetime.now(UTC), beside)

    def lines(self, view: View | None = None) -> list[Line]:
        """The run at this moment in words."""
        now = datetime.now(UTC)
        trouble = [Line("disk", self.trouble, "warning")] if self.trouble else []
        return [*trouble, *lines(view or self.view(now), now)]

    def _writer_pid(self) -> int | None:
        try:
            return writer_pid(self.path)
        except OSError:  # a lock that this user may not read says nothing
            return None

    def _know_peak(self, gpu: str) -> None:
        if not gpu or gpu in self._peaks:
            return
        from headway.cost.prices import find_gpu, load_prices

        found = find_gpu(load_prices(environ={}), gpu)
        self._peaks[gpu] = (found.bf16_flops_per_second or 0.0) if found else 0.0

    def _budget_usd(self) -> float | None:
        """From the run's saved config, which every attempt writes anew."""
        try:
            written_at = (self.path / CONFIG_FILE).stat().st_mtime
        except OSError:
            return None
        if written_at != self._config[0]:
            self._config = (written_at, config_tree(self.path))
        cost = self._config[1].get("cost")
        return measured(cost.get("budget_usd")) if isinstance(cost, dict) else None
