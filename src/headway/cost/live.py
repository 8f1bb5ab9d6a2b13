"""What the provider says this very machine costs now, asked once when a run is opened."""

from __future__ import annotations

import json
import math
import os
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from headway.cost.meter import Price
from headway.errors import ConfigError

ANSWER_SECONDS = 5.0
Name = Literal["runpod", "vast"]


class Unanswered(ConfigError):
    """The provider did not say a price."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Provider:
    """Where one provider says it, and what the machine's own environment knows of itself."""

    host: str
    path: str
    machine: tuple[str, ...]
    """Environment variables that may hold the machine's id; the first one that does counts."""
    key: tuple[str, ...]
    """The same of the key to ask with."""
    price: tuple[tuple[str, ...], ...]
    """Where in the answer the whole machine's dollars an hour stand; the first that is there."""


PROVIDERS: Mapping[Name, Provider] = {
    # https://docs.runpod.io/api-reference/pods/GET/pods/podId (read 2026-11-21)
    "runpod": Provider(
        host="https://rest.runpod.io",
        path="/v1/pods/{}",
        machine=("RUNPOD_POD_ID",),
        key=("RUNPOD_API_KEY",),
        price=(("adjustedCostPerHr",), ("costPerHr",)),
    ),
    # https://docs.vast.ai/api/show-instance (read 2026-11-21)
    "vast": Provider(
        host="https://console.vast.ai",
        path="/api/v0/instances/{}/",
        machine=("CONTAINER_ID",),
        key=("CONTAINER_API_KEY", "VAST_API_KEY"),
        price=(("instances", "dph_total"),),
    ),
}


def live_price(
    name: Name,
    gpu: str | None = None,
    environ: Mapping[str, str] = os.environ,
    providers: Mapping[Name, Provider] = PROVIDERS,
) -> Price:
    """The price of this machine now. ``gpu``: what to call it.

    Raises Unanswered: this is no machine of theirs, or it could not be asked; without the key.
    """
    provider = providers[name]
    machine, key = _first(provider.machine, environ), _first(provider.key, environ)
    if not machine or not key:
        lacks = provider.key if machine else provider.machine
        raise Unanswered(f"{name} cannot be asked: {' and '.join(lacks)} is not set here")
    request = urllib.request.Request(provider.host + provider.path.format(machine))
    # Not sent on to where an answer may redirect.
    request.add_unredirected_header("Authorization", f"Bearer {key}")
    try:
        with urllib.request.urlopen(request, timeout=ANSWER_SECONDS) as answer:
            said = json.loads(answer.read(1 << 20))
    except urllib.error.HTTPError as error:
        error.close()
        raise Unanswered(f"{name} answered HTTP {error.code}") from None
    except (OSError, ValueError) as error:  # http.client's errors are OSErrors or these
        raise Unanswered(f"{name} did not answer ({type(error).__name__})") from None
    usd_per_hour = next((usd for at in provider.price if (usd := _number(said, at))), None)
    if usd_per_hour is None:
        raise Unanswered(f"{name} answered without a price")
    return Price(
        usd_per_hour=usd_per_hour,
        gpu=gpu or f"{name} {machine}",
        source=f"asked of {name}",
        date=datetime.now(UTC).date().isoformat(),
    )


def _first(names: tuple[str, ...], environ: Mapping[str, str]) -> str:
    return next((value for name in names if (value := environ.get(name))), "")


def _number(said: Any, at: tuple[str, ...]) -> float | None:
    """A positive number below these keys; RunPod writes one of its two as text."""
    for key in at:
        said = said.get(key) if isinstance(said, dict) else None
    try:
        number = float(said)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) and number > 0 else None
