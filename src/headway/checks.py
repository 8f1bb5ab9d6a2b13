"""What every ``headway train`` asks before step 1, in less than a second, beside the recipe.

``headway check`` asks these too, and all that takes longer (``checking.py``).
"""

from __future__ import annotations

import importlib.util
import netrc
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from headway.checkpoint import CheckpointStore
from headway.config import RunConfig, Track
from headway.devices import device_findings
from headway.engine.state import TrainState, checkpoint_bytes
from headway.engine.steps import Plan
from headway.errors import ConfigError, StorageFull
from headway.preflight import ask, prove_folder
from headway.records import Check, Finding
from headway.tracking import PACKAGES


def sentence(finding: Finding) -> str:
    """A finding on one line."""
    return ". ".join(part for part in (finding.what, finding.why, finding.fix) if part)


def passed(checks: Iterable[Check]) -> list[tuple[str, str]]:
    """Ask the quick checks; their warnings as journal lines. The first blocker is raised.

    As what the check itself raised, with its exit code, else as a ConfigError.
    """
    notes = []
    for answer in ask(check for check in checks if check.quick):
        if answer.error:
            raise answer.error
        for finding in answer.findings:
            if finding.level == "blocker":
                raise ConfigError(f"{finding.name}: {sentence(finding)}")
            if finding.level == "warning":
                notes.append(("warning", f"{finding.name}: {sentence(finding)}"))
    return notes


def before_build(
    config: RunConfig, folder: Path, idle_gpu: Literal["blocker", "warning"] = "warning"
) -> list[Check]:
    """What can be asked before there is a model. Training on the CPU of a machine with a GPU is
    said loudly and goes on: a laptop with a torch for CPUs is no mistake."""

    def machine() -> Iterator[Finding]:
        section = config.hardware
        return device_findings(section.device, section.precision, idle_gpu=idle_gpu)

    section = config.track
    return [
        Check("folder", lambda: prove_folder(folder), quick=True),
        Check("machine", machine, quick=True),
        *([Check("trackers", lambda: tracker_findings(section), quick=True)] if section else []),
    ]


def disk_check(config: RunConfig, state: TrainState, plan: Plan, store: CheckpointStore) -> Check:
    """Room for the checkpoints that retention keeps."""
    return Check("disk", lambda: disk_findings(config, state, plan, store), quick=True)


# ------------------------------------------------------------------ trackers


def tracker_findings(section: Track) -> Iterator[Finding]:
    """Whether each tracker's package is here, and a key where it needs one. Nobody is asked."""
    for name, options in section.options().items():
        what = fix = ""
        if importlib.util.find_spec(PACKAGES[name]) is None:
            what = f"the package {PACKAGES[name]} is not installed"
            fix = "pip install 'headway[track]'"
        elif name == "wandb" and is_online(options) and not wandb_key():
            what = "W&B has no key: WANDB_API_KEY is not set, and netrc has none for its host"
            fix = "Run `wandb login`, set WANDB_API_KEY, or write track.wandb.mode: offline"
        if what:
            why = "training is not held up, but nothing is shown there until `headway track RUN`"
            yield Finding(level="warning", name="trackers", what=what, why=why, fix=fix)
        else:
            yield Finding(level="note", name="trackers", what=f"{name}: can be fed")


def is_online(options: Mapping[str, Any]) -> bool:
    """Whether W&B's client will ask its server."""
    return (options["mode"] or os.environ.get("WANDB_MODE") or "online") == "online"


def wandb_key() -> bool:
    """Whether the client will find a key, or a token that stands for one; it is not read here."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai").hostname
    file = Path(os.environ.get("NETRC") or "~/.netrc").expanduser()
    try:
        return netrc.netrc(file).authenticators(host or "") is not None
    except (OSError, netrc.NetrcParseError):
        return False


# ------------------------------------------------------------------ disk


def disk_findings(
    config: RunConfig, state: TrainState, plan: Plan, store: CheckpointStore
) -> Iterator[Finding]:
    """Whether the checkpoints that will be there together fit, those that are there counted in.

    Raises StorageFull where it is certain that they do not.
    """
    size = checkpoint_bytes(state)
    here = store.checkpoints()
    place = next(path for path in (store.root, *store.root.parents) if path.exists())
    free_bytes = shutil.disk_usage(place).free - store.reserve_bytes
    certain, at_most = kept_checkpoints(config, state.step, plan.num_steps)
    fit = len(here) + max(0, free_bytes) // max(1, size)
    room = f"{place} has room for {fit} checkpoints of {size / 1e6:.1f} MB"
    if fit < certain:
        raise StorageFull(
            f"{room} beside a reserve of {store.reserve_bytes / 1e6:.0f} MB, and {certain} will be "
            f"there at a time (checkpoint.keep_last is {config.checkpoint.keep_last}, and one is "
            "being written). From then on nothing would be saved, the run's last state neither. "
            "Free space, set run.root to a larger disk, or lower checkpoint.keep_last"
        )
    if fit < at_most:
        yield Finding(
            level="warning",
            name="disk",
            what=f"{room}, and up to {at_most} may be there at a time",
            why="a save for which there is no room is skipped",
            fix="Free space, or lower checkpoint.keep_last, keep_best, or leave out "
            "keep_every_steps",
        )
    else:
        yield Finding(
            level="note", name="disk", what=f"{room}; at most {at_most} will be there at a time"
        )


def kept_checkpoints(config: RunConfig, step: int, num_steps: int) -> tuple[int, int]:
    """(certainly, at most) how many checkpoints are on the disk at one time, one being written."""
    section = config.checkpoint
    intervals = [section.every_steps, config.evaluate.every_steps if config.evaluate else None]
    saves = {num_steps}
    for every in intervals:
        saves.update(range(every, num_steps, every) if every else ())
    saves = {save for save in saves if save > step}
    certain = min(section.keep_last + 1, len(saves))
    forever = num_steps // section.keep_every_steps if section.keep_every_steps else 0
    best = section.keep_best if config.evaluate else 0
    at_most = section.keep_last + best + forever + 1
    if section.every_minutes is None:
        at_most = min(at_most, len(saves))
    return max(1, certain), max(1, certain, at_most)
