"""What GPUs can do and cost: a dated table that everybody can lay a table of their own over.

Every figure says where it comes from and when it was read; a GPU nobody published a price for has
none. ``prices.toml`` beside this file is ours; the user's is named by ``cost.prices`` or by
``$HEADWAY_PRICES``.
"""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Mapping
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from headway.cost.meter import Price, an_hour
from headway.errors import ConfigError

OURS = Path(__file__).with_name("prices.toml")
VARIABLE = "HEADWAY_PRICES"
MAKERS = re.compile(r"nvidia|geforce|tesla|quadro|[^a-z0-9]")
CLOSED = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def _a_day(text: str) -> str:
    date.fromisoformat(text)  # its ValueError says what is wrong
    return text


Day = Annotated[str, AfterValidator(_a_day)]
"""ISO 8601: 2026-11-21."""
Said = Annotated[str, Field(min_length=3)]


class Rate(BaseModel):
    """What an hour on one GPU costs, who asks it, where that stands, and when it was read."""

    model_config = CLOSED
    usd_per_hour: float = Field(gt=0)
    provider: Said
    source: Said
    date: Day
    kind: Literal["on_demand", "spot"] | None = None
    """Of a price in ``also``."""

    @property
    def an_hour(self) -> str:
        """``$0.40 an hour``."""
        return an_hour(self.usd_per_hour)


class Gpu(BaseModel):
    """One kind of GPU: what it holds, what it can do, what it costs."""

    model_config = CLOSED
    name: str
    aliases: tuple[str, ...] = ()
    memory_mib: int = Field(gt=0)
    bf16_tflops: float | None = Field(default=None, gt=0)
    """Dense peak, summed in fp32."""
    fp8_tflops: float | None = Field(default=None, gt=0)
    bandwidth_gb_per_second: float | None = Field(default=None, gt=0)
    source: Said
    date: Day
    on_demand: Rate | None = None
    spot: Rate | None = None
    also: tuple[Rate, ...] = ()

    @property
    def memory_bytes(self) -> int:
        """As the driver shows it."""
        return self.memory_mib * 2**20

    @property
    def bf16_flops_per_second(self) -> float | None:
        """Dense peak."""
        return None if self.bf16_tflops is None else self.bf16_tflops * 1e12


def load_prices(
    path: str | Path | None = None, environ: Mapping[str, str] = os.environ
) -> dict[str, Gpu]:
    """Our table under the user's, by name: ``path`` (``cost.prices``), else ``$HEADWAY_PRICES``.

    Raises ConfigError: the user's file is not there, is not TOML, or holds what a price cannot be;
    all that is wrong at once, each with its GPU and key.
    """
    table = _read(OURS)
    theirs = path or environ.get(VARIABLE)
    if theirs:
        named = "cost.prices" if path else f"${VARIABLE}"
        table = _merged(table, _read(Path(theirs).expanduser(), named))
    problems: list[str] = []
    found = {}
    for name, entry in table.items():
        try:
            found[name] = Gpu.model_validate({**entry, "name": name})
        except ValidationError as error:
            problems += [f'["{name}"] {_said(each)}' for each in error.errors()]
    if problems:
        raise ConfigError(
            f"{theirs}: not a price table:\n  " + "\n  ".join(problems) + f"\nIts keys: see {OURS}"
        )
    return found


def find_gpu(prices: Mapping[str, Gpu], name: str) -> Gpu | None:
    """The GPU called ``name``, however it is written: ``rtx4090``, ``NVIDIA GeForce RTX 4090``."""
    wanted = _key(name)
    for gpu in prices.values():
        if wanted in map(_key, (gpu.name, *gpu.aliases)):
            return gpu
    return None


def nearest(prices: Mapping[str, Gpu], name: str) -> str:
    """What to say to somebody who asked for a GPU that is not there: `` (did you mean …?)``."""
    known = {_key(each): gpu.name for gpu in prices.values() for each in (gpu.name, *gpu.aliases)}
    near = difflib.get_close_matches(_key(name), known, n=1)
    return f" (did you mean {known[near[0]]}?)" if near else ""


def price_of(gpu: str | None, usd_per_hour: float | None, path: str | Path | None = None) -> Price:
    """The price a run is metered by: ``usd_per_hour`` if it is given, else the table's on demand.

    Raises ConfigError: neither is known.
    """
    if usd_per_hour is not None:
        today = datetime.now(UTC).date().isoformat()
        name = gpu or "this machine"
        return Price(usd_per_hour=usd_per_hour, gpu=name, source="config", date=today)
    prices = load_prices(path)
    found = find_gpu(prices, gpu or "")
    if found is None or found.on_demand is None:
        what = "is not in the price table" if found is None else "has no price in the table"
        hint = nearest(prices, gpu or "") if found is None else ""
        raise ConfigError(
            f"cost.gpu: {gpu} {what}{hint}; write cost.usd_per_hour, or give it a price in a file "
            "named by cost.prices"
        )
    rate = found.on_demand
    return Price(
        usd_per_hour=rate.usd_per_hour,
        gpu=found.name,
        source=f"{rate.provider}: {rate.source}",
        date=rate.date,
    )


def _read(path: Path, named: str = "") -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{named}: {path} cannot be read: {error}") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{named}: {path} is not TOML: {error}") from error


def _merged(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """``over`` laid on ``under``: a GPU's keys one by one, so that a price alone can be given."""
    merged = dict(under)
    for name, entry in over.items():
        own = next((each for each in under if _key(each) == _key(name)), name)
        keys = entry if isinstance(entry, dict) else {"": entry}  # refused later, with its name
        merged[own] = {**under.get(own, {}), **keys}
    return merged


def _key(name: str) -> str:
    return MAKERS.sub("", name.lower())


def _said(problem: Any) -> str:
    where = ".".join(map(str, problem["loc"]))
    return f"{where}: {problem['msg']}" + (
        f" (found {problem['input']!r})" if not isinstance(problem["input"], dict) else ""
    )
