"""Parametric parts, their face graphs, and edits told in sentences; numpy alone.

*Promises.* Part i and edit i are pure functions of (seed, i). Every part is valid, and encloses the
volume that its dimensions say. Every label of an edit can be read from its instruction by a reader
that shares no template with the writer. A folder exists exactly when its manifest does.

*Does not promise.* Other shapes than the six families, or parts that lie askew to the axes.
"""

from headway.data.cad.edits import Edit, Readings, edits
from headway.data.cad.faces import Graphs, graphs_of, one_part
from headway.data.cad.families import FAMILIES, Family, find_family, nearest_valid
from headway.data.cad.json_format import json_edits, read_json_edits, write_json_edits
from headway.data.cad.rows import (
    EditRows,
    EncodesParts,
    read_edits,
    read_parts,
    write_edits,
    write_parts,
)
from headway.data.cad.sampling import parts

__all__ = [
    "FAMILIES",
    "Edit",
    "EditRows",
    "EncodesParts",
    "Family",
    "Graphs",
    "Readings",
    "edits",
    "find_family",
    "graphs_of",
    "json_edits",
    "nearest_valid",
    "one_part",
    "parts",
    "read_edits",
    "read_json_edits",
    "read_parts",
    "write_edits",
    "write_json_edits",
    "write_parts",
]
