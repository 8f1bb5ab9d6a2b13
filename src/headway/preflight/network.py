"""Whether an address answers, asked once and briefly; to be offline is no error."""

from __future__ import annotations

import http.client
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from email.utils import parsedate_to_datetime
from pathlib import Path
from urllib.parse import urlsplit

from headway.records import Finding

TIMEOUT_SECONDS = 3.0
SKEW_SECONDS = 60.0
"""Clocks further apart than this are said to be wrong; S3 refuses requests from 15 minutes on."""


def reach(
    url: str, clock: Callable[[], float] = time.time, timeout_seconds: float = TIMEOUT_SECONDS
) -> Iterator[Finding]:
    """One HEAD request; any answer is one. Also compares the clocks, where the answer says its."""
    parts = urlsplit(url)
    place = f"{parts.scheme}://{parts.hostname}" + (f":{parts.port}" if parts.port else "")
    started = time.perf_counter()
    try:
        date = _asked(url, timeout_seconds)
    except (OSError, http.client.HTTPException, ValueError) as error:
        yield Finding(
            level="note",
            name="network",
            what=f"{place} does not answer ({error or type(error).__name__})",
            why="models and data sets can then only come from this disk or the cache",
            fix="Nothing, if you mean to work offline; else check the network, a proxy "
            "(HTTPS_PROXY), or HF_ENDPOINT",
        )
        return
    took = 1000 * (time.perf_counter() - started)
    yield Finding(level="note", name="network", what=f"{place} answers in {took:.0f} ms")
    if date:
        yield from _compared(date, clock(), place)


def sane_clock(
    known_files: list[Path], clock: Callable[[], float] = time.time
) -> Iterator[Finding]:
    """A clock that is behind what was written on this disk long ago is wrong."""
    newest = max((path.stat().st_mtime for path in known_files if path.exists()), default=0.0)
    behind = newest - clock()
    if behind > SKEW_SECONDS:
        yield Finding(
            level="warning",
            name="clock",
            what=f"the clock is {behind / 3600:.1f} hours before the newest file of headway",
            why="certificates and bucket signatures are refused, and dates in the journal are "
            "wrong (what a run costs is not: that is counted by another clock)",
            fix="Set the clock (timedatectl set-ntp true), or ask the provider",
        )
    else:
        told = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(clock()))
        yield Finding(level="note", name="clock", what=told)


def _asked(url: str, timeout_seconds: float) -> str | None:
    """The answer's ``Date``, by way of the proxies that the environment names.

    Raises OSError, HTTPException, ValueError (no address).
    """
    if not url.startswith(("http://", "https://")):
        raise ValueError("not an http address")
    request = urllib.request.Request(url, method="HEAD")
    try:
        with urllib.request.urlopen(request, timeout=timeout_seconds) as answer:
            return str(answer.headers.get("Date") or "") or None
    except urllib.error.HTTPError as refusal:  # somebody is there
        with refusal:
            return str(refusal.headers.get("Date") or "") or None


def _compared(date: str, now: float, place: str) -> Iterator[Finding]:
    try:
        apart = now - parsedate_to_datetime(date).timestamp()
    except (TypeError, ValueError):
        return
    if abs(apart) > SKEW_SECONDS:
        yield Finding(
            level="warning",
            name="clock",
            what=f"this machine's clock is {abs(apart):.0f} s "
            f"{'ahead of' if apart > 0 else 'behind'} {place}",
            why="buckets refuse requests signed at another time (S3: from 15 minutes on)",
            fix="Set the clock (timedatectl set-ntp true), or ask the provider",
        )


__all__ = ["reach", "sane_clock"]
