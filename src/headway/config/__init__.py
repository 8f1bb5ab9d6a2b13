"""The config: everything that defines a run, stated once, and refused when it cannot be meant.

*Promises*: an unknown key is an error with its place, its nearest name and, for other tools' keys,
its translation; all problems are said at once; a saved config loads to an equal one; two configs
with the same fingerprint learn the same thing.

*Does not promise*: that data or models exist (preflight asks), or that the run fits the machine.
"""

from headway.config.fingerprint import difference, differing, fingerprint, identity
from headway.config.load import load_config
from headway.config.monitor_section import Monitor
from headway.config.problems import InvalidConfig, Place, Problem
from headway.config.recipes import find_recipe, known_recipes
from headway.config.run_config import RunConfig, schema
from headway.config.sections import (
    CLOSED,
    Checkpoint,
    Cost,
    Count,
    EarlyStop,
    Evaluate,
    Hardware,
    Horizon,
    Run,
    Train,
    Upload,
)
from headway.config.track_section import Track
from headway.config.translate import translate

__all__ = [
    "CLOSED",
    "Checkpoint",
    "Cost",
    "Count",
    "EarlyStop",
    "Evaluate",
    "Hardware",
    "Horizon",
    "InvalidConfig",
    "Monitor",
    "Place",
    "Problem",
    "Run",
    "RunConfig",
    "Track",
    "Train",
    "Upload",
    "difference",
    "differing",
    "find_recipe",
    "fingerprint",
    "identity",
    "known_recipes",
    "load_config",
    "schema",
    "translate",
]
