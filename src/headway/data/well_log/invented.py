"""Wells that never were: names, places, numbers and measurements as real headers have them.

Every well has a serial number, and its name and its API number are functions of that number which
never give the same twice: two serials are two wells, whatever else is drawn. States, counties and
API state codes are real, operators and leases are not.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

MOST_WELLS = 1_000_000


def _words(text: str, by: str | None = None) -> tuple[str, ...]:
    return tuple(text.split(by))


_LEASES = _words(
    "ABBOTT ACKER ALDRIDGE AMSLER ARCHER BAIRD BALDWIN BARNETT BATES BECKER BELCHER BENDER "
    "BISHOP BLAINE BOWMAN BRANSON BRIGGS BUCHANAN BURKETT CALDER CANTRELL CARLISLE CASSIDY "
    "CHILDRESS CLAYTON COBURN COLLIER CORBIN CRENSHAW CROCKETT DALTON DAWSON DENHAM DILLARD "
    "DOWNING DRISKELL DUNLAP EASTLAND ELLERBE EMERSON FARLEY FENTON FERRELL FINCH FLEMING "
    "FORSYTHE FULTON GALLAGHER GARNER GENTRY GIBSON GOODNIGHT GRIMES GUTHRIE HADLEY HALSELL "
    "HARGROVE HASKINS HENDRICK HOLLIS HORTON HUDSPETH IRION JARRELL JESSUP KELSEY KENDRICK "
    "KINCAID KIRKLAND LACKEY LANHAM LEDBETTER LINDSEY LOCKHART LUDLOW MABRY MCELROY MCKNIGHT "
    "MADDOX MAYFIELD MERRITT MITCHUM MONROE MULLINS NAYLOR NEWSOM NORWOOD OAKES OGLETREE "
    "OSBORNE PADGETT PARRISH PAXTON PENNINGTON PICKETT POINDEXTER PRESCOTT PRUITT QUARLES "
    "RADFORD RAMSEY RATLIFF REAGAN RHODES RUTLEDGE SAWYER SEALY SHACKELFORD SHELBY SIMPKINS "
    "SLAUGHTER STANCIL STOCKTON SWENSON TALIAFERRO TARKINGTON TILLMAN TRAYLOR TURNBOW UNDERHILL "
    "VANCE VICKERS WAGGONER WALDROP WEATHERBY WHITLOCK WINFREY YARBROUGH"
)
_KINDS = ("", "FEE", "UNIT", "STATE", "FEDERAL", "ET AL", "RANCH", "ESTATE")
_FIRST = _words(
    "ALAMO|APEX|BASIN|BIG SANDY|BLUE MESA|CAPROCK|CIMARRON|CLEARFORK|CONCHO|COPPERHEAD|"
    "CROSS TIMBERS|DRY CREEK|EAGLE ROCK|FOUR FORKS|GRANITE|GREAT DIVIDE|HIGH PLAINS|"
    "IRON HORSE|JAVELINA|KEYSTONE|LARIAT|LONE BUTTE|LLANO|MESQUITE|MIDCONTINENT|MUSTANG|"
    "NORTHERN STAR|PALO DURO|PECOS|PRAIRIE|RAWHIDE|RED RIVER|ROADRUNNER|SADDLEBACK|SAGEBRUSH|"
    "SILVER CREEK|SOUTHWESTERN|SUNDANCE|THUNDER|TRES PIEDRAS|UNION PASS|WESTBROOK|WHITE OAK|"
    "WIND RIVER|YUCCA",
    by="|",
)
_SECOND = (
    "OIL COMPANY", "PETROLEUM CORP.", "ENERGY INC.", "RESOURCES LTD.", "EXPLORATION CO.",
    "OIL & GAS", "PRODUCTION CO.", "OPERATING LLC", "DRILLING CO.", "PETROLEUM, INC.",
    "NATURAL GAS CO.",
)  # fmt: skip
_FIELDS = ("", "", " NORTH", " DRAW", " CREEK", " S.E.")
_QUARTERS = ("NE", "NW", "SE", "SW")
SERVICE = (
    "ACME WELL SURVEYS", "BOREHOLE LOGGING CO.", "CENTRAL WIRELINE SERVICES", "DEEPWELL LOGGING",
    "FRONTIER WIRELINE", "GEO-SURVEY WELL SERVICES", "LONGHORN LOGGING, INC.",
    "PERMIAN PERFORATORS", "PIONEER WELL SURVEYING", "STANDARD ELECTRICAL LOGGING",
    "TRI-COUNTY WIRELINE", "WESTERN LOG CO.",
)  # fmt: skip
LOGS = (
    "DUAL INDUCTION LOG", "COMPENSATED NEUTRON - DENSITY LOG", "BOREHOLE COMPENSATED SONIC LOG",
    "GAMMA RAY - NEUTRON LOG", "CEMENT BOND LOG", "ELECTRICAL LOG", "MICROLATEROLOG",
    "DUAL LATEROLOG", "INDUCTION ELECTRICAL LOG", "FORMATION DENSITY LOG",
    "MICROLOG WITH CALIPER", "SPECTRAL GAMMA RAY LOG", "CASING COLLAR LOG", "TEMPERATURE LOG",
    "ARRAY INDUCTION LOG", "FOUR ARM CALIPER LOG", "DIPMETER SURVEY", "SONIC LOG",
    "RADIOACTIVITY LOG", "PERFORATING RECORD",
)  # fmt: skip
CURVES = (
    "Gamma ray", "SP", "Caliper", "Sonic", "Neutron", "Density", "Induction", "Laterolog",
    "Microlog", "Dipmeter", "Temperature", "CBL", "CCL",
)  # fmt: skip
STATES = {
    (
        "TEXAS",
        "42",
    ): "ANDREWS BORDEN CRANE ECTOR GAINES GLASSCOCK HOWARD IRION MARTIN MIDLAND "
    "PECOS REAGAN REEVES SCURRY TERRY UPTON WARD WINKLER YOAKUM SCHLEICHER",
    ("OKLAHOMA", "35"): "ALFALFA BEAVER BLAINE CADDO CANADIAN CARTER CUSTER DEWEY ELLIS GARFIELD "
    "GARVIN GRADY KINGFISHER LINCOLN LOGAN MAJOR NOBLE PAYNE TEXAS WOODS",
    ("KANSAS", "15"): "BARBER BARTON COWLEY ELLIS FINNEY GRANT HASKELL KEARNY KINGMAN MEADE NESS "
    "PRATT RENO ROOKS RUSSELL SEWARD STAFFORD STANTON STEVENS SUMNER",
    (
        "COLORADO",
        "05",
    ): "ADAMS ARAPAHOE BACA CHEYENNE DOLORES ELBERT GARFIELD KIOWA LARIMER "
    "LINCOLN LOGAN MESA MOFFAT MORGAN PHILLIPS PROWERS ROUTT WASHINGTON WELD YUMA",
    ("WYOMING", "49"): "ALBANY CAMPBELL CARBON CONVERSE CROOK FREMONT HOT_SPRINGS JOHNSON LARAMIE "
    "LINCOLN NATRONA NIOBRARA PARK PLATTE SHERIDAN SUBLETTE SWEETWATER UINTA WASHAKIE WESTON",
}
"""(state, API code) -> twenty of its counties; what follows is counted in tens."""
_MONTHS = _words("JAN FEB MAR APR MAY JUN JUL AUG SEP OCT NOV DEC")
_CLOCK = re.compile(r"\b\d{1,2}:\d{2}\b")
_DAY = re.compile(r"\b\d{1,2}-[A-Z]{3}-\d{2,4}\b")


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Who and where a well is: what its name and number follow from, and what goes with them."""

    name: str
    api: str
    company: str
    field: str
    county: str
    state: str
    section: int
    township: str
    range: str
    metric: bool


Make = Callable[[Random, Place], str]


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of field: how it is called, what it says, in which units (imperial, metric)."""

    labels: tuple[str, ...]
    make: Make
    units: tuple[str, str] = ("", "")


def place_of(serial: int, rng: Random) -> Place:
    """The well of a serial number below ``MOST_WELLS``; name and API number never repeat."""
    rest, lease = divmod(serial, len(_LEASES))
    rest, kind = divmod(rest, len(_KINDS))
    number, section = divmod(rest, 36)
    (state, code), names = rng.choice(list(STATES.items()))
    counties = names.split()
    # One of two counties for each hundred thousand: the number gives the serial back.
    county = serial // 100_000 + 10 * rng.randrange(2)
    api = f"{code}-{2 * county + 1:03}-{serial % 100_000:05}"
    words = [_LEASES[lease], _KINDS[kind], f"{number + 1}-{section + 1}"]
    return Place(
        name=" ".join(word for word in words if word),
        api=api + rng.choice(("", "", "-00", "-0000")),
        company=f"{rng.choice(_FIRST)} {rng.choice(_SECOND)}",
        field=rng.choice(_LEASES + _FIRST) + rng.choice(_FIELDS),
        county=counties[county].replace("_", " "),
        state=state,
        section=section + 1,
        township=f"{rng.randint(1, 33)}{rng.choice('NS')}",
        range=f"{rng.randint(1, 70)}{rng.choice('EW')}",
        metric=rng.random() < 0.2,
    )


def number(low: float, high: float, decimals: int = 0) -> Make:
    """A number of so many decimals between two bounds."""
    return lambda rng, _: f"{rng.uniform(low, high):.{decimals}f}"


def one_of(*texts: str) -> Make:
    """One of some texts."""
    return lambda rng, _: rng.choice(texts)


def either(imperial: Make, metric: Make) -> Make:
    """By the units of the well."""
    return lambda rng, place: (metric if place.metric else imperial)(rng, place)


def date(rng: Random, _: Place) -> str:
    """A day between 1948 and 2019 in one of the ways people write it."""
    day, month, year = rng.randint(1, 28), rng.randint(1, 12), rng.randint(1948, 2019)
    name = _MONTHS[month - 1]
    ways = (
        f"{day:02}-{name}-{year}", f"{month}-{day}-{year % 100:02}", f"{month:02}/{day:02}/{year}",
        f"{name} {day}, {year}", f"{year}-{month:02}-{day:02}", f"{day:02}-{name}-{year % 100:02}",
    )  # fmt: skip
    return rng.choice(ways)


def person(rng: Random, _: Place) -> str:
    """Who was there."""
    return f"{rng.choice('ABCDEFGHJKLMPRSTW')}. {rng.choice(_LEASES)}"


def depth(rng: Random, place: Place) -> str:
    """In feet or metres, to a whole one or a half."""
    deep = rng.uniform(250, 4500) if place.metric else rng.uniform(800, 14_800)
    return rng.choice((f"{deep:.0f}", f"{deep:,.0f}", f"{int(deep)}.5", f"{deep:.1f}"))


def at_temperature(rng: Random, place: Place) -> str:
    """A resistivity and the temperature it was measured at."""
    measured = f"{rng.uniform(0.05, 3.5):.{rng.choice((2, 3))}f}"
    degrees = f"{rng.randint(12, 38)} °C" if place.metric else f"{rng.randint(55, 98)} °F"
    return f"{measured} @ {degrees}"


def clock(rng: Random, _: Place) -> str:
    """A time of day."""
    return f"{rng.randrange(24):02}:{rng.randrange(60):02}"


def like(example: str, rng: Random) -> str:
    """Another value of the same shape: digits drawn anew, everything else as it is."""
    if _CLOCK.search(example) or _DAY.search(example):
        then = f"{rng.randint(1, 28):02}-{rng.choice(_MONTHS)}-{rng.randint(1950, 2019)}"
        hour = f"{rng.randrange(24):02}:{rng.randrange(60):02}"
        return _DAY.sub(then, _CLOCK.sub(hour, example))
    draw = iter(lambda: str(rng.randrange(10)), "")
    first = re.search(r"[1-9]", example)  # the number keeps its size
    at = first.start() if first else -1
    return "".join(
        str(rng.randint(1, 9)) if i == at else next(draw) if c.isdigit() and i > at else c
        for i, c in enumerate(example)
    )


def location(rng: Random, place: Place) -> str:
    """Footages, quarters, or section, township and range."""
    north, east = rng.randint(330, 2310), rng.randint(330, 2310)
    quarter = f"{rng.choice(('C', *_QUARTERS))} {rng.choice(_QUARTERS)}"
    ways = (
        f"{north}' F{rng.choice('NS')}L & {east}' F{rng.choice('EW')}L",
        f"{quarter} SEC. {place.section}-T{place.township}-R{place.range}",
        f"SEC {place.section} TWP {place.township} RGE {place.range}",
    )
    return rng.choice(ways)
