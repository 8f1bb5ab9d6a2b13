"""Several runs of one config that differ in a few keys: which they are, and one after the other.

Each is a run of its own, named after its values, in a process of its own: what one leaves behind
cannot touch the next, and the same command goes on where a sweep was stopped, in the run that was
stopped. The budget is the sweep's: each run may spend what the others leave.

``python -m headway.sweeping`` lists the runs as JSON: reading a config loads its recipe, and torch,
which would stay in the memory of whoever waits for the runs.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from headway.errors import ConfigError, HeadwayError
from headway.report.summary import Summary, summarise
from headway.viewing import JOURNAL_FILE, glance, open_run

RESERVED = ("run.name", "run.root", "cost.budget_usd")
"""Keys that the sweep itself gives to each run."""
MOST_RUNS = 1000
LAST = {75: "stopped", 76: "the budget is reached", 77: "the disk is full"}
"""Exit codes of a run after which no other is begun."""


@dataclass(frozen=True, slots=True)
class Point:
    """One run of a sweep."""

    name: str
    folder: str
    values: tuple[tuple[str, str], ...]
    """(key, value as it was written) of each swept key."""
    budget_usd: float | None
    """Of the whole sweep."""

    @property
    def overrides(self) -> list[str]:
        """What makes it of the config."""
        return [f"{key}={value}" for key, value in self.values] + [f"run.name={self.name}"]


def axis(text: str) -> tuple[str, list[str]]:
    """``train.learning_rate=1e-4,2e-4`` as key and values; commas within brackets or quotes are
    part of a value. Raises ConfigError."""
    key, found, rest = text.partition("=")
    values = [value.strip() for value in _split(rest)]
    if not found or not key.strip() or not all(values):
        raise ConfigError(f"--sweep {text}: write key.path=value,value,… as in train.seed=1,2,3")
    if key.strip() in RESERVED:
        raise ConfigError(f"--sweep {text}: the sweep itself sets {key.strip()} for each run")
    if len(set(values)) < len(values):
        raise ConfigError(f"--sweep {text}: a value is written twice")
    return key.strip(), values


def product(sweeps: Sequence[str]) -> list[tuple[tuple[str, str], ...]]:
    """All combinations, the last axis fastest. Raises ConfigError."""
    axes = [axis(text) for text in sweeps]
    keys = [key for key, _ in axes]
    if len(set(keys)) < len(keys):
        raise ConfigError(f"--sweep: a key is swept twice ({', '.join(keys)})")
    if math.prod(len(values) for _, values in axes) > MOST_RUNS:
        raise ConfigError(f"--sweep: that is more than {MOST_RUNS} runs")
    return list(itertools.product(*([(key, value) for value in values] for key, values in axes)))


def name_of(base: str, values: Iterable[tuple[str, str]]) -> str:
    """``support-bot.learning_rate-2e-4``: so that the same command finds the same runs."""
    parts = [base]
    for key, value in values:
        plain = re.sub(r"[^A-Za-z0-9._-]+", "-", value).strip("-")
        if plain != value or len(plain) > 24:
            plain = f"{plain[:24]}-{hashlib.sha256(value.encode()).hexdigest()[:6]}".lstrip("-")
        parts.append(f"{key.rpartition('.')[2]}-{plain}")
    return ".".join(parts)


def planned(config: str, overrides: Sequence[str], sweeps: Sequence[str]) -> list[Point]:
    """The runs, each config read and found valid. Raises ConfigError for the first that is not."""
    from headway.claim import run_folder
    from headway.config import load_config

    points: list[Point] = []
    for values in product(sweeps):
        given = [*overrides, *(f"{key}={value}" for key, value in values)]
        loaded = load_config(config, given)
        name = name_of(loaded.run.name or loaded.recipe, values)
        folder = run_folder(load_config(config, [*given, f"run.name={name}"]))
        budget = loaded.cost.budget_usd if loaded.cost else None
        points.append(Point(name, str(folder), values, budget))
    if len({point.name for point in points}) < len(points):
        raise ConfigError("--sweep: two swept keys have one last name and one value; rename a run")
    return points


def asked(config: str, overrides: Sequence[str], sweeps: Sequence[str]) -> list[Point]:
    """``planned`` in a process of its own. Raises what it says."""
    product(sweeps)  # what is wrong with the words themselves is said at once
    words = json.dumps([config, list(overrides), list(sweeps)])
    command = [sys.executable, "-P", "-m", "headway.sweeping", words]
    done = subprocess.run(command, stdout=subprocess.PIPE)
    if done.returncode != 0:
        raise SweepRefused(done.returncode)
    found = json.loads(done.stdout.decode().splitlines()[-1])
    return [Point(**{**one, "values": tuple(map(tuple, one["values"]))}) for one in found]


class SweepRefused(Exception):
    """The config was refused, and the reason is on stderr already."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = abs(code)


def state_of(point: Point) -> Summary | None:
    """A run of the sweep as far as it is; None where it has not begun."""
    folder = Path(point.folder)
    return glance(folder) if (folder / JOURNAL_FILE).is_file() else None


def sweep(
    points: Sequence[Point],
    start: Callable[[Point, float | None], int],
    say: Callable[[str], None],
    *,
    fresh: bool = False,
) -> int:
    """Run what is not finished, in order; the sweep's exit code.

    ``start(point, budget_usd)`` trains one run and gives its exit code. A run that fails does not
    keep the others back; the first failure's code is the sweep's. One that stops because it was
    asked to, for want of money or of disk is the last. ``fresh``: finished ones are run again too.
    """
    failed = 0
    for n, point in enumerate(points, 1):
        found = state_of(point)
        if found is not None and found.state == "finished" and not fresh:
            say(f"{n}/{len(points)} {point.name}: finished already")
            continue
        budget_usd, own_usd = left_for(point, points), (found and found.cost_usd) or 0.0
        if budget_usd is not None and budget_usd <= own_usd:
            say(f"the sweep's budget is spent; {point.name} and what follows was not run")
            return 76
        say(f"{n}/{len(points)} {point.name}")
        code = start(point, budget_usd)
        if code in LAST or code in (128 + 1, 128 + 2, 128 + 15):
            say(f"{point.name}: {LAST.get(code, 'stopped')}; the same command goes on")
            return code
        if code != 0:
            say(f"{point.name}: ended with exit code {code}; the others go on without it")
            failed = failed or code
    return failed


def left_for(point: Point, points: Sequence[Point]) -> float | None:
    """What a run may cost over all its attempts: the sweep's budget less what the others cost."""
    if point.budget_usd is None:
        return None
    others = (state_of(other) for other in points if other is not point)
    return point.budget_usd - sum(found.cost_usd or 0.0 for found in others if found)


def compared(points: Sequence[Point]) -> list[tuple[Point, Summary]]:
    """The runs that have begun, best first: by held-out loss, where there is none by training's."""
    found = [
        (point, summarise(view.told, name=point.name, writer_pid=view.writer_pid))
        for point in points
        if (Path(point.folder) / JOURNAL_FILE).is_file()
        for view in [open_run(point.folder)]
    ]
    return sorted(found, key=lambda one: (_rank(one[1].best_loss), _rank(one[1].loss)))


def _rank(loss: float | None) -> float:
    return loss if loss is not None and math.isfinite(loss) else math.inf


def _split(text: str) -> list[str]:
    """At commas that are in no bracket and no quote."""
    parts, depth, quote = [""], 0, ""
    for letter in text:
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "\"'":
            quote = letter
        elif letter in "[{(":
            depth += 1
        elif letter in "]})":
            depth -= 1
        if letter == "," and not quote and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return parts


if __name__ == "__main__":
    try:
        found = planned(*json.loads(sys.argv[1]))
    except HeadwayError as error:
        sys.stderr.write(f"headway: {error}\n")
        sys.exit(error.exit_code)
    sys.stdout.write(json.dumps([asdict(point) for point in found]) + "\n")
