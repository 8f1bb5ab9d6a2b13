"""Attempts of a run as real processes: the ``headway`` command, or a fork that skips its imports.

Both look the same to a test: ``pid``, ``poll()`` (None while it runs) and ``wait()``, which return
the exit code, or minus the signal that ended it.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
from pathlib import Path
from typing import Any

from headway.config import RunConfig
from toy import toy_config

HERE = Path(__file__).parent
HEADWAY = Path(sys.executable).parent / "headway"
ENVIRONMENT = {
    **os.environ,
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": os.pathsep.join(
        str(place) for place in (HERE.parents[1] / "src", HERE.parent, HERE.parent / "plugins")
    ),
}
TOY: dict[str, Any] = {
    "train": {"horizon": {"steps": 16}},
    "evaluate": {"every_steps": 4, "worst_rows": 2},
    "checkpoint": {"every_steps": 2, "keep_last": 2, "keep_best": 1},
    "task": {"buffer_values": 500_000, "step_seconds": 0.004},
}
"""A run of a second with 2 MB checkpoints, evaluations and pruning."""


def toy_run(root: Path, **sections: Any) -> Path:
    """A config file of the toy recipe below ``root``; its run is ``root/runs/run``."""
    return config_below(root, toy_config(root, **sections).tree())


def config_below(root: Path, tree: dict[str, Any]) -> Path:
    """The config as a file below ``root``, where its run will be too."""
    root.mkdir(parents=True, exist_ok=True)
    run = {**tree["run"], "name": "run", "root": root / "runs"}
    RunConfig(**{**tree, "run": run}).save(root / "run.yaml")
    return root / "run.yaml"


def run_of(config: Path) -> Path:
    """Where the run of such a config lives."""
    return config.parent / "runs" / "run"


def output_of(config: Path) -> Path:
    """What all attempts of such a config printed, both streams."""
    return config.parent / "output.txt"


def said(config: Path) -> str:
    """The text of that."""
    return output_of(config).read_text() if output_of(config).exists() else ""


def command(config: Path) -> subprocess.Popen[bytes]:
    """``headway train CONFIG``, as a person starts it."""
    with output_of(config).open("ab") as output:
        return subprocess.Popen(
            [HEADWAY, "train", config], stdout=output, stderr=output, env=ENVIRONMENT
        )


class Forks:
    """Starts attempts by forking a process that has imported torch already."""

    def __init__(self) -> None:
        self._parent = subprocess.Popen(
            [sys.executable, HERE / "forks.py"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=ENVIRONMENT,
            text=True,
            bufsize=1,
        )

    def start(self, config: Path, sabotage: str | None = None) -> Fork:
        """One more attempt of this config; the one before must have ended."""
        request = {"config": str(config), "output": str(output_of(config)), "sabotage": sabotage}
        assert self._parent.stdin
        self._parent.stdin.write(json.dumps(request) + "\n")
        return Fork(self._parent)

    def finish(self, config: Path, sabotage: str | None = None) -> int:
        """An attempt that nothing disturbs; its exit code."""
        return self.start(config, sabotage).wait()

    def close(self) -> None:
        """Let the parent end."""
        self._parent.communicate()


class Fork:
    """One forked attempt."""

    def __init__(self, parent: subprocess.Popen[str]) -> None:
        self._parent = parent
        self._ended: int | None = None
        self.pid = self._number()

    def poll(self) -> int | None:
        """None while it runs."""
        assert self._parent.stdout
        if self._ended is None and select.select([self._parent.stdout], [], [], 0)[0]:
            self._ended = self._number()
        return self._ended

    def wait(self) -> int:
        """How it ended."""
        if self._ended is None:
            self._ended = self._number()
        return self._ended

    def _number(self) -> int:
        assert self._parent.stdout
        line = self._parent.stdout.readline()
        assert line, "the parent of the forks is gone"
        return int(line)
