"""Field tables: what a header asks for when no real header is given, and what LAS mnemonics mean.

The rows are those of the printed form most logs carry (API Recommended Practice 31A).
"""

from __future__ import annotations

from headway.data.well_log.invented import (
    SERVICE,
    Kind,
    Make,
    at_temperature,
    clock,
    date,
    depth,
    either,
    location,
    number,
    one_of,
    person,
)

IDENTITY = (
    Kind(("Company", "Operator", "Company name"), lambda _, p: p.company),
    Kind(("Well", "Well name", "Lease & well no."), lambda _, p: p.name),
    Kind(("Field", "Field or area", "Pool"), lambda _, p: p.field),
    Kind(("County", "Parish or county"), lambda _, p: p.county),
    Kind(("State", "State or prov."), lambda _, p: p.state),
    Kind(("API number", "API no.", "API serial no."), lambda _, p: p.api),
    Kind(("Location", "Surface location"), location),
)
"""What says which well it is; a page has the first two and some of the others."""

SITE = (
    Kind(("Sec.", "Section"), lambda _, p: str(p.section)),
    Kind(("Twp.", "Township"), lambda _, p: p.township),
    Kind(("Rge.", "Range"), lambda _, p: p.range),
    Kind(("Permanent datum", "Perm. datum"), one_of("G.L.", "GROUND LEVEL", "M.S.L.", "K.B.")),
    Kind(("Elevation", "Elev."), number(120, 7400, 1), ("FT", "M")),
    Kind(("Log measured from", "Depths from"), one_of("K.B.", "D.F.", "R.T.", "KELLY BUSHING")),
    Kind(("Elev. K.B.", "K.B."), number(130, 7400, 1), ("FT", "M")),
    Kind(("Elev. D.F.", "D.F."), number(130, 7400, 1), ("FT", "M")),
    Kind(("Elev. G.L.", "G.L."), number(120, 7400, 1), ("FT", "M")),
    Kind(("Above perm. datum",), number(3, 32, 1), ("FT", "M")),
    Kind(("Drilling measured from",), one_of("K.B.", "D.F.", "R.T.", "ROTARY TABLE")),
    Kind(("Latitude",), number(31, 48, 5)),
    Kind(("Longitude",), lambda rng, _: f"-{rng.uniform(94, 110):.5f}"),
    Kind(("Rig", "Rig name"), lambda rng, _: f"RIG {rng.randint(2, 480)}"),
    Kind(("Permit no.", "License no."), number(10_000, 999_999)),
    Kind(("Service order", "Ticket no."), number(10_000, 999_999)),
)  # fmt: skip

RUN = (
    Kind(("Date", "Date logged", "Log date"), date),
    Kind(("Depth - driller", "Depth driller", "T.D. driller"), depth, ("FT", "M")),
    Kind(("Depth - logger", "Depth logger", "T.D. logger"), depth, ("FT", "M")),
    Kind(("Btm. log interval", "Bottom logged interval", "Last reading"), depth, ("FT", "M")),
    Kind(("Top log interval", "First reading"), depth, ("FT", "M")),
    Kind(
        ("Casing - driller", "Casing driller", "Casing"),
        lambda rng, place: f"{rng.choice(('4-1/2', '5-1/2', '7', '8-5/8', '9-5/8', '13-3/8'))}\" @ "
        + depth(rng, place),
    ),
    Kind(("Casing - logger", "Casing logger"), depth, ("FT", "M")),
    Kind(
        ("Bit size", "Hole size"),
        either(one_of("6-1/8", "6-1/4", "7-7/8", "8-1/2", "8-3/4", "12-1/4"), number(120, 312, 1)),
        ("IN", "MM"),
    ),
    Kind(
        ("Type fluid in hole", "Mud type", "Type of fluid"),
        one_of("GEL CHEM", "FRESH GEL", "SALT MUD", "OIL BASE", "NATIVE", "AIR", "WATER"),
    ),
    Kind(
        ("Density", "Mud weight"),
        either(number(8.4, 14.9, 1), number(1010, 1790)),
        ("LB/G", "K/M3"),
    ),
    Kind(("Viscosity", "Funnel viscosity"), number(28, 98), ("S", "S")),
    Kind(("pH",), number(6.5, 12, 1)),
    Kind(("Fluid loss", "Water loss"), number(2.4, 28, 1), ("CC", "CC")),
    Kind(("Source of sample",), one_of("FLOWLINE", "CIRCULATED", "MUD PIT", "TANK", "FLOW LINE")),
    Kind(("Rm @ meas. temp.", "Rm"), at_temperature),
    Kind(("Rmf @ meas. temp.", "Rmf"), at_temperature),
    Kind(("Rmc @ meas. temp.", "Rmc"), at_temperature),
    Kind(("Time since circ.", "Time since circulation"), number(1.5, 26, 1), ("HRS", "HRS")),
    Kind(("Time on bottom", "Logger on bottom"), clock),
    Kind(
        ("Max. rec. temp.", "Max. recorded temp.", "Bottom hole temp."),
        either(number(84, 268), number(31, 140)),
        ("°F", "°C"),
    ),
    Kind(("Equip. no.", "Unit no."), number(101, 9899)),
    Kind(("Base", "Service location"), one_of("MIDLAND", "LIBERAL", "CASPER", "DUNCAN", "HOBBS")),
    Kind(("Recorded by", "Engineer"), person),
    Kind(("Witnessed by", "Witness"), person),
)  # fmt: skip

REMARKS = (
    "HOLE IN GOOD CONDITION.", "TOOL STOPPED AT 4820.", "LOG TIED TO PRIOR RUN.",
    "NO REPEAT SECTION RUN.", "CALIPER CHECKED IN CASING.", "MUD SAMPLE MEASURED TWICE.",
    "CABLE STRETCH CORRECTED.", "MATRIX 2.71 USED FOR POROSITY.", "RUN WITHOUT CENTRALIZERS.",
    "THANK YOU FOR YOUR BUSINESS.",
)  # fmt: skip

MNEMONICS: dict[str, Make] = {
    "COMP": lambda _, p: p.company,
    "WELL": lambda _, p: p.name,
    "LEAS": lambda _, p: p.name.rsplit(" ", 1)[0],
    "FLD": lambda _, p: p.field,
    "CNTY": lambda _, p: p.county,
    "COUN": lambda _, p: p.county,
    "STAT": lambda _, p: p.state,
    "PROV": lambda _, p: p.state,
    "CTRY": lambda _, __: "USA",
    "API": lambda _, p: p.api,
    "UWI": lambda _, p: p.api.replace("-", ""),
    "SECT": lambda _, p: str(p.section),
    "TOWN": lambda _, p: p.township,
    "RANG": lambda _, p: p.range,
    "LOC": location,
    "DATE": date,
    "SRVC": one_of(*SERVICE),
    "ENG": person,
    "WIT": person,
    "STRT": depth,
    "STOP": depth,
    "MUD": one_of("GEL CHEM", "FRESH GEL", "SALT MUD", "OIL BASE", "NATIVE", "KCL POLYMER"),
    "MATR": one_of("SAND", "LIME", "DOLO", "SANDSTONE", "LIMESTONE"),
    "DREF": one_of("KB", "DF", "GL", "RT"),
}
"""What a mnemonic of a real header stands for; any other keeps the shape of its real value."""
