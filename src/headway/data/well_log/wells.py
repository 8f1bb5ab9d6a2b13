"""A well and what its header says: made up for a serial number, or as a real LAS file has it.

With real headers given, most pages are *forms*: the labels, units and the shape of each value are a
real file's, in its order, the values another well's. Some pages are a real well as it stands.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from random import Random

from headway.data.well_log import las
from headway.data.well_log.fields import IDENTITY, MNEMONICS, RUN, SITE
from headway.data.well_log.invented import LOGS, SERVICE, Kind, Place, like, place_of
from headway.data.well_log.las import Header, HeaderItem

REAL_SHARE = 0.15
"""Of the pages, where real wells are at hand; less where they are few."""
FORM_SHARE = 0.6
"""Of the other pages, where real headers are at hand."""
_BLANK_SHARE = 0.07


@dataclass(frozen=True, slots=True)
class Fact:
    """One line of a header. ``values``: one for each run, else a single one; "" where left open."""

    label: str
    values: tuple[str, ...]
    unit: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Well:
    """What a header says of one well."""

    name: str
    key: str
    """Tells wells apart."""
    service: str
    log: str
    identity: tuple[Fact, ...]
    site: tuple[Fact, ...]
    runs: tuple[Fact, ...]
    num_runs: int


@dataclass(frozen=True, slots=True)
class Sources:
    """What a page may draw on: forms for all, and the real wells of its side of the split."""

    forms: tuple[Header, ...] = ()
    real: tuple[Header, ...] = ()


def split(headers: Sequence[Header], rng: Random) -> tuple[Sources, Sources]:
    """(train's, eval's): each real well on one side, a fifth of them held out, none if only one."""
    real = las.wells(headers)
    rng.shuffle(real)
    held_out = max(1, round(len(real) / 5)) if len(real) > 1 else 0
    forms = tuple(las.forms(headers))
    return Sources(forms, tuple(real[held_out:])), Sources(forms, tuple(real[:held_out]))


def well_at(serial: int, rng: Random, sources: Sources) -> Well:
    """The well of a page: a real one, or the made-up one of this serial number."""
    if rng.random() < min(REAL_SHARE, len(sources.real) / 100):
        return _real(rng.choice(sources.real), rng)
    place = place_of(serial, rng)
    if sources.forms and rng.random() < FORM_SHARE:
        return _on_a_form(rng.choice(sources.forms), place, rng)
    num_runs = rng.choice((1, 1, 2, 3))
    first, rest = IDENTITY[:2], list(IDENTITY[2:])
    some = rng.sample(rest, rng.randint(2, len(rest)))
    identity = [*first, *(some if rng.random() < 0.5 else [k for k in rest if k in some])]
    return Well(
        name=place.name,
        key=f"{place.name} | {place.api}",
        service=rng.choice(SERVICE),
        log=rng.choice(LOGS),
        identity=tuple(_made(kind, place, rng, blank=0) for kind in identity),
        site=_some(SITE, rng.randint(3, 10), place, rng, 1),
        runs=_some(RUN, rng.randint(6, 18), place, rng, num_runs),
        num_runs=num_runs,
    )


def _real(header: Header, rng: Random) -> Well:
    """As it stands in the file."""
    facts = {s: [_as_is(item) for item in header.items if item.section == s] for s in "WP"}
    return _of_header(header, header.well, f"{header.well} | {header.file}", facts, rng)


def _on_a_form(form: Header, place: Place, rng: Random) -> Well:
    """The labels of a real header, filled in for another well."""
    facts: dict[str, list[Fact]] = {"W": [], "P": []}
    for item in form.items:
        make = MNEMONICS.get(item.mnemonic)
        value = make(rng, place) if make else like(item.value, rng)
        facts[item.section].append(Fact(item.label, (value,), item.unit))
    if not any(item.mnemonic == "WELL" for item in form.items):
        facts["W"].insert(0, Fact("WELL", (place.name,)))
    well = _of_header(form, place.name, f"{place.name} | {place.api}", facts, rng)
    if rng.random() < (0.3 if well.site else 0.75):  # ~W alone is half of a page
        num_runs = rng.choice((1, 2, 3))
        runs = _some(RUN, rng.randint(5, 14), place, rng, num_runs)
        return replace(well, runs=runs, num_runs=num_runs)
    return well


def _of_header(
    header: Header, name: str, key: str, facts: dict[str, list[Fact]], rng: Random
) -> Well:
    known = {item.mnemonic: item.value for item in header.items}
    return Well(
        name=name,
        key=key,
        service=known.get("SRVC") or rng.choice(SERVICE),
        log=rng.choice(LOGS),
        identity=tuple(facts["W"]),
        site=tuple(facts["P"]),
        runs=(),
        num_runs=1,
    )


def _as_is(item: HeaderItem) -> Fact:
    return Fact(item.label, (item.value,), item.unit if item.value else "")


def _some(
    kinds: Sequence[Kind], count: int, place: Place, rng: Random, num_runs: int
) -> tuple[Fact, ...]:
    """So many kinds, in the order of the table."""
    chosen = sorted(rng.sample(range(len(kinds)), min(count, len(kinds))))
    return tuple(_made(kinds[i], place, rng, num_runs=num_runs) for i in chosen)


def _made(
    kind: Kind, place: Place, rng: Random, *, num_runs: int = 1, blank: float = _BLANK_SHARE
) -> Fact:
    values = tuple("" if rng.random() < blank else kind.make(rng, place) for _ in range(num_runs))
    return Fact(rng.choice(kind.labels), values, kind.units[place.metric])
