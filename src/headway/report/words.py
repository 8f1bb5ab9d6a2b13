"""Numbers as a person reads them: counts, durations, sizes, money, ages; each with its unit."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from typing import Any


def number(value: float | None, digits: int = 4) -> str:
    """``value`` with ``digits`` significant digits; an en dash for what was not measured."""
    if value is None:
        return "–"
    if not math.isfinite(value):
        return str(value)
    if value == 0:
        return "0"
    if abs(value) >= 10 ** (digits - 1):
        return f"{value:,.0f}"
    if abs(value) < 1e-3:
        mantissa, exponent = f"{value:.{digits - 2}e}".split("e")
        return f"{mantissa}e{int(exponent)}"
    return f"{value:.{digits - 1 - math.floor(math.log10(abs(value)))}f}"


def count(value: float | None) -> str:
    """A whole number with thousands separated: ``12,345``."""
    return "–" if value is None else f"{value:,.0f}"


def rows_in_words(rows: float | None, of_rows: float | None) -> str:
    """``120``, or ``200 of 2,212`` where those are a part of more."""
    return count(rows) if of_rows is None else f"{count(rows)} of {count(of_rows)}"


def short_count(value: float | None) -> str:
    """A whole number: ``12,345`` up to a hundred thousand, then three digits: ``1.23 M``."""
    if value is None:
        return "–"
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M")):
        if abs(value) >= size:
            return f"{value / size:.3g} {letter}"
    return f"{value / 1e3:.3g} k" if abs(value) >= 1e5 else count(value)


def duration(seconds: float | None) -> str:
    """Seconds as ``45 s``, ``12 min``, ``3 h 12 min`` or ``2 d 3 h``."""
    if seconds is None:
        return "–"
    if seconds < 10:
        return f"{seconds:.2g} s"
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    return f"{hours // 24} d {hours % 24} h"


def size(size_bytes: float | None) -> str:
    """Bytes in decimal units, as disks and clouds count them: ``1.3 GB``."""
    if size_bytes is None:
        return "–"
    for unit, letter in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if size_bytes >= unit:
            return f"{size_bytes / unit:.3g} {letter}"
    return f"{size_bytes:.0f} B"


def money(usd: float | None) -> str:
    """US dollars: cents from one cent up, two significant digits below."""
    if usd is None:
        return "–"
    if usd == 0 or abs(usd) >= 0.01:
        return f"${usd:,.2f}"
    return f"${usd:.{1 - math.floor(math.log10(abs(usd)))}f}"


def instant(at: Any) -> datetime | None:
    """A journal's ``at`` (ISO 8601 text, or seconds since 1970) as UTC; None if it is neither."""
    try:
        if isinstance(at, int | float):
            return datetime.fromtimestamp(at, UTC)
        read = datetime.fromisoformat(at)
    except (TypeError, ValueError, OverflowError, OSError):
        return None
    return read.astimezone(UTC) if read.tzinfo else read.replace(tzinfo=UTC)


def ago(at: datetime | None, now: datetime) -> str:
    """How long before ``now`` something was, in one unit: ``12 min ago``, ``3 d ago``."""
    if at is None:
        return "–"
    seconds = (now - at).total_seconds()
    for unit, word in ((86_400, "d"), (3_600, "h"), (60, "min"), (1, "s")):
        if seconds >= 1.5 * unit:
            return f"{seconds / unit:.0f} {word} ago"
    return "now"


def clock(at: datetime | None) -> str:
    """An instant to the minute, in UTC, with its zone said."""
    return "–" if at is None else f"{at:%Y-%m-%d %H:%M} UTC"
